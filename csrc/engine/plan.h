// A network as a list of steps for one image, and what runs it.
//
// Results of steps lie in one arena, each at an offset of its own as long as somebody needs it; weights in one block of memory that the
// plan only reads; images and results of the network where the caller has them. A plan is immutable once it is built, so any number of
// threads may run it; each run takes an arena from a pool.
//
// Of one image, all threads share each step (core/crew.h). Of several, each thread takes whole images: no thread waits for another one, and
// an image's values stay in the caches of one core. Where weights are larger than what they are multiplied by, as in the last layers of
// most networks, a thread takes some images through each step at once, and reads its weights once. Either way the results are the same
// bits.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "engine/step.h"

namespace mvit {

// side_by_side: a value of steps that take several images at once, of each image behind that of the one before.
enum class Space : int { none = 0, arena = 1, weights = 2, input = 3, output = 4, side_by_side = 5 };

// Where a pointer of a step points to.
struct Place {
    Space space;
    int64_t index;   // of an input, an output or a value that lies side by side
    int64_t offset;  // bytes
};

// Where such a value lies behind the arena of one image; of n images, at n times that offset.
struct SideBySide {
    int64_t offset, bytes;  // bytes: of an image
};

inline constexpr int64_t most_at_once = 4;  // images

struct PlanStep {
    const StepKind* kind;
    std::vector<char> arguments;  // pointers among them are null
    struct Pointer {
        int64_t at;  // in the arguments
        Place place;
    };
    std::vector<Pointer> pointers;
    int64_t count_at = -1;  // in the arguments, the int64_t that several images are so many times as much of; or -1
};

class Arena;

class Plan {
  public:
    // inputs, outputs: bytes of an image in each. Steps from `first` on take several images at once, and share no arena with those before.
    Plan(std::vector<PlanStep> steps, int64_t arena_bytes, std::vector<int64_t> inputs, std::vector<int64_t> outputs,
         int64_t first = INT64_MAX, std::vector<SideBySide> side_by_side = {});
    ~Plan();

    // `seconds`: of each step, added to; or null. With it, images run one after another.
    Status run(const char* weights, void* const* inputs, void* const* outputs, int64_t batch, int threads, double* seconds);

    const std::vector<PlanStep>& steps() const { return steps_; }

  private:
    struct Images;
    Status run_step(size_t i, const Images& images, int64_t index, int64_t count, int threads, double* seconds) const;
    Status run_steps(const Images& images, int threads, double* seconds) const;
    Status run_with_crew(const Images& images, int threads, double* seconds) const;
    std::unique_ptr<Arena> take(int64_t images);  // null where memory ran out
    void give(std::unique_ptr<Arena> arena);

    const std::vector<PlanStep> steps_;
    const int64_t arena_bytes_;
    const std::vector<int64_t> inputs_, outputs_;
    const size_t first_;
    const std::vector<SideBySide> side_by_side_;
    int64_t side_by_side_bytes_ = 0;  // of one image
    std::mutex pool_lock_;
    std::vector<std::unique_ptr<Arena>> pool_;
};

}  // namespace mvit
