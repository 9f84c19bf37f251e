#include "engine/plan.h"

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "cpu/core/crew.h"

namespace mvit {

// Memory of one image on its way through the network.
class Arena {
  public:
    explicit Arena(int64_t bytes) : data_(static_cast<char*>(std::aligned_alloc(64, static_cast<size_t>((bytes + 127) / 64 * 64)))) {}
    Arena(const Arena&) = delete;
    ~Arena() { std::free(data_); }
    char* data() const { return data_; }

  private:
    char* data_;
};

struct Plan::Image {
    const char* weights;
    char* arena;
    void* const* inputs;
    void* const* outputs;
    int64_t index;
};

Plan::Plan(std::vector<PlanStep> steps, int64_t arena_bytes, std::vector<int64_t> inputs, std::vector<int64_t> outputs)
    : steps_(std::move(steps)), arena_bytes_(arena_bytes), inputs_(std::move(inputs)), outputs_(std::move(outputs)) {}

Plan::~Plan() = default;

std::unique_ptr<Arena> Plan::take() {
    {
        const std::lock_guard<std::mutex> lock(pool_lock_);
        if (!pool_.empty()) {
            auto arena = std::move(pool_.back());
            pool_.pop_back();
            return arena;
        }
    }
    auto arena = std::make_unique<Arena>(arena_bytes_);
    return arena->data() ? std::move(arena) : nullptr;
}

void Plan::give(std::unique_ptr<Arena> arena) {
    const std::lock_guard<std::mutex> lock(pool_lock_);
    pool_.push_back(std::move(arena));
}

Status Plan::run_steps(const Image& image, int threads, double* seconds) const {
    const auto address = [&](const Place& place) -> const char* {
        const auto index = static_cast<size_t>(place.index);
        switch (place.space) {
            case Space::arena:
                return image.arena + place.offset;
            case Space::weights:
                return image.weights + place.offset;
            case Space::input:
                return static_cast<const char*>(image.inputs[index]) + image.index * inputs_[index] + place.offset;
            case Space::output:
                return static_cast<const char*>(image.outputs[index]) + image.index * outputs_[index] + place.offset;
            default:
                return nullptr;
        }
    };
    alignas(64) char arguments[most_step_bytes];
    for (size_t i = 0; i < steps_.size(); ++i) {
        const PlanStep& step = steps_[i];
        std::memcpy(arguments, step.arguments.data(), step.arguments.size());
        for (const auto& pointer : step.pointers) {
            const char* to = address(pointer.place);
            std::memcpy(arguments + pointer.at, &to, sizeof(to));
        }
        const auto begin = seconds ? std::chrono::steady_clock::now() : std::chrono::steady_clock::time_point{};
        if (const Status status = step.kind->run(arguments, threads); status != Status::ok) return status;
        if (seconds) seconds[i] += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    }
    return Status::ok;
}

Status Plan::run_with_crew(const Image& image, int threads, double* seconds) const {
    if (threads <= 1 || steps_.size() == 1) return run_steps(image, threads, seconds);  // one step needs its own region only
    Status status = Status::ok;
    Crew::with(threads, [&] { status = run_steps(image, threads, seconds); });
    return status;
}

Status Plan::run(const char* weights, void* const* inputs, void* const* outputs, int64_t batch, int threads, double* seconds) {
    const int64_t shared = seconds || threads <= 1 ? 0 : batch / threads * threads;  // images that threads take for themselves
    std::atomic<int> worst{0};
    if (shared > 0)
        Crew::with(threads, [&] {
            Crew::led()->deal(shared, [&](int64_t i) {
                auto arena = take();
                const Status status = arena ? run_steps({weights, arena->data(), inputs, outputs, i}, 1, nullptr) : Status::out_of_memory;
                if (status != Status::ok) worst.store(static_cast<int>(status));
                if (arena) give(std::move(arena));
            });
        });
    if (worst.load() != 0) return static_cast<Status>(worst.load());
    if (shared == batch) return Status::ok;
    auto arena = take();
    if (!arena) return Status::out_of_memory;
    Status status = Status::ok;
    for (int64_t i = shared; i < batch && status == Status::ok; ++i)
        status = run_with_crew({weights, arena->data(), inputs, outputs, i}, threads, seconds);
    give(std::move(arena));
    return status;
}

}  // namespace mvit
