// A network as a list of steps for one image, and what runs it.
//
// Results of steps lie in one arena, each at an offset of its own as long as somebody needs it; weights in one block of memory that the
// plan only reads; images and results of the network where the caller has them. A plan is immutable once it is built, so any number of
// threads may run it; each run takes an arena from a pool.
//
// Of one image, all threads share each step (core/crew.h). Of several, each thread takes whole images: no thread waits for another one, and
// an image's values stay in the caches of one core. Either way the results are the same bits.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "engine/step.h"

namespace mvit {

enum class Space : int { none = 0, arena = 1, weights = 2, input = 3, output = 4 };

// Where a pointer of a step points to.
struct Place {
    Space space;
    int64_t index;   // of an input or output
    int64_t offset;  // bytes
};

struct PlanStep {
    const StepKind* kind;
    std::vector<char> arguments;  // pointers among them are null
    struct Pointer {
        int64_t at;  // in the arguments
        Place place;
    };
    std::vector<Pointer> pointers;
};

class Arena;

class Plan {
  public:
    // Bytes of an image in each input and output.
    Plan(std::vector<PlanStep> steps, int64_t arena_bytes, std::vector<int64_t> inputs, std::vector<int64_t> outputs);
    ~Plan();

    // `seconds`: of each step, added to; or null. With it, images run one after another.
    Status run(const char* weights, void* const* inputs, void* const* outputs, int64_t batch, int threads, double* seconds);

    const std::vector<PlanStep>& steps() const { return steps_; }

  private:
    struct Image;
    Status run_steps(const Image& image, int threads, double* seconds) const;
    Status run_with_crew(const Image& image, int threads, double* seconds) const;
    std::unique_ptr<Arena> take();  // null where memory ran out
    void give(std::unique_ptr<Arena> arena);

    const std::vector<PlanStep> steps_;
    const int64_t arena_bytes_;
    const std::vector<int64_t> inputs_, outputs_;
    std::mutex pool_lock_;
    std::vector<std::unique_ptr<Arena>> pool_;
};

}  // namespace mvit
