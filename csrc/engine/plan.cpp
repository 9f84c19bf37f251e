#include "engine/plan.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "cpu/core/crew.h"

namespace mvit {

// Memory of some images on their way through the network.
class Arena {
  public:
    explicit Arena(int64_t bytes)
        : bytes_(bytes), data_(static_cast<char*>(std::aligned_alloc(64, static_cast<size_t>((bytes + 127) / 64 * 64)))) {}
    Arena(const Arena&) = delete;
    ~Arena() { std::free(data_); }
    char* data() const { return data_; }
    int64_t bytes() const { return bytes_; }

  private:
    int64_t bytes_;
    char* data_;
};

// Of a call, `count` from the one at `begin` on.
struct Plan::Images {
    const char* weights;
    char* arena;
    void* const* inputs;
    void* const* outputs;
    int64_t begin, count;
};

Plan::Plan(std::vector<PlanStep> steps, int64_t arena_bytes, std::vector<int64_t> inputs, std::vector<int64_t> outputs, int64_t first,
           std::vector<SideBySide> side_by_side)
    : steps_(std::move(steps)),
      arena_bytes_((arena_bytes + 63) / 64 * 64),
      inputs_(std::move(inputs)),
      outputs_(std::move(outputs)),
      first_(std::min(static_cast<size_t>(first), steps_.size())),
      side_by_side_(std::move(side_by_side)) {
    for (const SideBySide& value : side_by_side_) side_by_side_bytes_ = std::max(side_by_side_bytes_, value.offset + value.bytes);
}

Plan::~Plan() = default;

std::unique_ptr<Arena> Plan::take(int64_t images) {
    const int64_t bytes = arena_bytes_ + images * side_by_side_bytes_;
    {
        const std::lock_guard<std::mutex> lock(pool_lock_);
        if (!pool_.empty()) {
            auto arena = std::move(pool_.back());
            pool_.pop_back();
            if (arena->bytes() >= bytes) return arena;
        }
    }
    auto arena = std::make_unique<Arena>(bytes);
    return arena->data() ? std::move(arena) : nullptr;
}

void Plan::give(std::unique_ptr<Arena> arena) {
    const std::lock_guard<std::mutex> lock(pool_lock_);
    pool_.push_back(std::move(arena));
}

// Of `count` images from the one at `index` on, of those in work.
Status Plan::run_step(size_t i, const Images& images, int64_t index, int64_t count, int threads, double* seconds) const {
    const PlanStep& step = steps_[i];
    const auto address = [&](const Place& place) -> const char* {
        const auto which = static_cast<size_t>(place.index);
        switch (place.space) {
            case Space::arena:
                return images.arena + place.offset;
            case Space::weights:
                return images.weights + place.offset;
            case Space::input:
                return static_cast<const char*>(images.inputs[which]) + (images.begin + index) * inputs_[which] + place.offset;
            case Space::output:
                return static_cast<const char*>(images.outputs[which]) + (images.begin + index) * outputs_[which] + place.offset;
            case Space::side_by_side:
                return images.arena + arena_bytes_ + images.count * side_by_side_[which].offset + index * side_by_side_[which].bytes +
                       place.offset;
            default:
                return nullptr;
        }
    };
    alignas(64) char arguments[most_step_bytes];
    std::memcpy(arguments, step.arguments.data(), step.arguments.size());
    for (const auto& pointer : step.pointers) {
        const char* to = address(pointer.place);
        std::memcpy(arguments + pointer.at, &to, sizeof(to));
    }
    if (count > 1) {
        int64_t each;
        std::memcpy(&each, arguments + step.count_at, sizeof(each));
        each *= count;
        std::memcpy(arguments + step.count_at, &each, sizeof(each));
    }
    const auto begin = seconds ? std::chrono::steady_clock::now() : std::chrono::steady_clock::time_point{};
    const Status status = step.kind->run(arguments, threads);
    if (seconds) seconds[i] += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    return status;
}

Status Plan::run_steps(const Images& images, int threads, double* seconds) const {
    for (int64_t index = 0; index < images.count; ++index)
        for (size_t i = 0; i < first_; ++i)
            if (const Status status = run_step(i, images, index, 1, threads, seconds); status != Status::ok) return status;
    for (size_t i = first_; i < steps_.size(); ++i) {
        const int64_t count = steps_[i].count_at < 0 ? 1 : images.count;
        for (int64_t index = 0; index < images.count; index += count)
            if (const Status status = run_step(i, images, index, count, threads, seconds); status != Status::ok) return status;
    }
    return Status::ok;
}

Status Plan::run_with_crew(const Images& images, int threads, double* seconds) const {
    if (threads <= 1 || steps_.size() == 1) return run_steps(images, threads, seconds);  // one step needs its own region only
    Status status = Status::ok;
    Crew::with(threads, [&] { status = run_steps(images, threads, seconds); });
    return status;
}

Status Plan::run(const char* weights, void* const* inputs, void* const* outputs, int64_t batch, int threads, double* seconds) {
    threads = Crew::possible(threads);  // a region of OpenMP would begin any number of them
    const int64_t team = threads, each = seconds ? 0 : batch / team;
    const int64_t at_once = first_ < steps_.size() ? most_at_once : 1, tasks = team * ((each + at_once - 1) / at_once);
    const int64_t whole = each * team;  // images that threads take for themselves
    std::atomic<int> worst{0};
    const auto some = [&](int64_t task) {
        const int64_t begin = whole * task / tasks, count = whole * (task + 1) / tasks - begin;
        auto arena = take(count);
        const Status status =
            arena ? run_steps({weights, arena->data(), inputs, outputs, begin, count}, 1, nullptr) : Status::out_of_memory;
        if (status != Status::ok) worst.store(static_cast<int>(status));
        if (arena) give(std::move(arena));
    };
    if (threads > 1 && whole > 0) {
        Crew::with(threads, [&] { Crew::led()->deal(tasks, some); });
    } else {
        for (int64_t task = 0; task < tasks && worst.load() == 0; ++task) some(task);
    }
    if (worst.load() != 0) return static_cast<Status>(worst.load());
    if (whole == batch) return Status::ok;
    auto arena = take(1);
    if (!arena) return Status::out_of_memory;
    Status status = Status::ok;
    for (int64_t i = whole; i < batch && status == Status::ok; ++i)
        status = run_with_crew({weights, arena->data(), inputs, outputs, i, 1}, threads, seconds);
    give(std::move(arena));
    return status;
}

}  // namespace mvit
