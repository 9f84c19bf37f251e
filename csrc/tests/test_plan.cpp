#include "engine/plan.h"

#include <algorithm>
#include <climits>
#include <cstring>
#include <thread>
#include <vector>

#include "cpu/core/crew.h"
#include "tests/check.h"

using namespace mvit;
using namespace mvit::tests;

template <class T>
static void set(PlanStep& step, const char* name, T value) {
    const Field* field = step.kind->find(name);
    CHECK(field);
    std::memcpy(step.arguments.data() + field->offset, &value, sizeof(value));
}

static void point(PlanStep& step, const char* name, Place place) {
    const Field* field = step.kind->find(name);
    CHECK(field && field->type == FieldType::pointer);
    step.pointers.push_back({field->offset, place});
}

// y = a + b of `count` floats.
static PlanStep sum(int64_t count, Place a, Place b, Place y) {
    const StepKind* kind = find_step_kind("add");
    PlanStep step{kind, std::vector<char>(static_cast<size_t>(kind->bytes), 0), {}};
    set(step, "count", count);
    point(step, "a", a);
    point(step, "b", b);
    point(step, "y", y);
    return step;
}

TEST(a_plan_runs_any_number_of_images) {
    constexpr int64_t count = 37, bytes = count * 4;
    const Place x{Space::input, 0, 0}, w{Space::weights, 0, 64}, h{Space::arena, 0, 128}, y{Space::output, 0, 0}, z{Space::output, 1, 0};
    Plan plan({sum(count, x, w, h), sum(count, h, h, y), sum(count, h, y, z)}, 128 + bytes, {bytes}, {bytes, bytes});
    std::vector<float> weights(16 + count);

    for (float& value : weights) value = random_float();
    for (int64_t batch : {0, 1, 2, 3, 7})
        for (int threads : {1, 2, 3}) {
            Guarded<float> in(batch * count), twice(batch * count), thrice(batch * count);
            for (int64_t i = 0; i < in.size(); ++i) in[i] = random_float();
            void* inputs[] = {in.data()};
            void* outputs[] = {twice.data(), thrice.data()};
            double seconds[3] = {};
            for (double* times : {static_cast<double*>(nullptr), seconds}) {
                std::fill_n(twice.data(), twice.size(), 0.0f);
                CHECK(plan.run(reinterpret_cast<const char*>(weights.data()), inputs, outputs, batch, threads, times) == Status::ok);
                for (int64_t i = 0; i < in.size(); ++i) {
                    const float hidden = in[i] + weights[static_cast<size_t>(16 + i % count)];
                    CHECK(twice[i] == hidden + hidden);
                    CHECK(thrice[i] == hidden + twice[i]);
                }
            }
            CHECK(in.canary_intact() && twice.canary_intact() && thrice.canary_intact());
        }
}

// Steps of one image, of several at once, and of one at a time between these; with values of both kinds, and one behind another.
TEST(a_plan_takes_several_images_at_once) {
    constexpr int64_t count = 37, bytes = count * 4;
    const Place x{Space::input, 0, 0}, w{Space::weights, 0, 0}, h{Space::arena, 0, 64}, y{Space::output, 0, 0};
    const Place a{Space::side_by_side, 0, 0}, b{Space::side_by_side, 1, 0}, c{Space::side_by_side, 2, 0};
    std::vector<PlanStep> steps{sum(count, x, w, h), sum(count, h, x, a), sum(count, a, a, b), sum(count, b, w, c), sum(count, c, a, y)};
    for (size_t i : {2, 4}) steps[i].count_at = steps[i].kind->find("count")->offset;
    Plan plan(std::move(steps), 64 + bytes, {bytes}, {bytes}, 2, {{0, bytes}, {192, bytes}, {384, bytes}});
    std::vector<float> weights(count);
    for (float& value : weights) value = random_float();
    for (int64_t batch : {9, 0, 1, 2, 3, 4, 5, 8, 17})  // an arena for many, then for few
        for (int threads : {1, 2, 3}) {
            Guarded<float> in(batch * count), out(batch * count);
            for (int64_t i = 0; i < in.size(); ++i) in[i] = random_float();
            void* inputs[] = {in.data()};
            void* outputs[] = {out.data()};
            double seconds[5] = {};
            for (double* times : {static_cast<double*>(nullptr), seconds}) {
                std::fill_n(out.data(), out.size(), 0.0f);
                CHECK(plan.run(reinterpret_cast<const char*>(weights.data()), inputs, outputs, batch, threads, times) == Status::ok);
                for (int64_t i = 0; i < in.size(); ++i) {
                    const float weight = weights[static_cast<size_t>(i % count)], first = (in[i] + weight) + in[i];
                    CHECK(out[i] == ((first + first) + weight) + first);
                }
            }
            CHECK(in.canary_intact() && out.canary_intact());
        }
}

// Each with a crew of its own, of either kind, while all take arenas from one pool.
TEST(threads_share_a_plan) {
    constexpr int64_t count = 8192, bytes = count * 4, batch = 5;
    const Place x{Space::input, 0, 0}, h{Space::arena, 0, 0}, y{Space::output, 0, 0};
    const Place a{Space::side_by_side, 0, 0}, b{Space::side_by_side, 1, 0};
    std::vector<PlanStep> steps{sum(count, x, x, h), sum(count, h, x, a), sum(count, a, a, b), sum(count, b, a, y)};
    steps[2].count_at = steps[2].kind->find("count")->offset;
    Plan plan(std::move(steps), bytes, {bytes}, {bytes}, 2, {{0, bytes}, {bytes, bytes}});
    for (int milliseconds : {0, 60000, 0}) {
        Crew::expect_other_work(milliseconds);
        std::vector<std::thread> callers;
        for (int caller = 1; caller <= 3; ++caller)
            callers.emplace_back([&plan, caller] {
                for (int64_t images : {int64_t{1}, batch, int64_t{2}, batch}) {
                    std::vector<float> in(static_cast<size_t>(images * count), static_cast<float>(caller)), out(in.size());
                    void* inputs[] = {in.data()};
                    void* outputs[] = {out.data()};
                    CHECK(plan.run(nullptr, inputs, outputs, images, caller, nullptr) == Status::ok);
                    for (const float value : out) CHECK(value == 9.0f * static_cast<float>(caller));
                }
            });
        for (std::thread& caller : callers) caller.join();
    }
}

// A step alone opens a region of OpenMP, whose threads are all begun.
TEST(a_plan_takes_any_number_of_threads) {
    constexpr int64_t count = 1 << 20, bytes = count * 4;
    Plan plan({sum(count, {Space::input, 0, 0}, {Space::input, 0, 0}, {Space::output, 0, 0})}, 0, {bytes}, {bytes});
    std::vector<float> in(count, 1.5f), out(count);
    void* inputs[] = {in.data()};
    void* outputs[] = {out.data()};
    for (int threads : {INT_MIN, -1, 0, 1, 100, 100000, INT_MAX}) {
        std::fill(out.begin(), out.end(), 0.0f);
        CHECK(plan.run(nullptr, inputs, outputs, 1, threads, nullptr) == Status::ok);
        CHECK(std::count(out.begin(), out.end(), 3.0f) == count);
    }
}

TEST(a_plan_stops_at_what_cannot_run) {
    const Place x{Space::input, 0, 0}, y{Space::output, 0, 0};
    Plan plan({sum(-1, x, x, y)}, 0, {4}, {4});
    float in[2] = {}, out[2] = {};
    void* inputs[] = {in};
    void* outputs[] = {out};
    for (int threads : {1, 2}) CHECK(plan.run(nullptr, inputs, outputs, 2, threads, nullptr) == Status::bad_shape);
}

TEST(every_step_has_a_name_and_fields_of_its_own) {
    CHECK(find_step_kind("gemm") && find_step_kind("qgemm") && !find_step_kind("nothing"));
    const StepKind* kind = find_step_kind("conv2d");
    CHECK(kind->find("x.data") && kind->find("x.data")->type == FieldType::pointer && !kind->find("z"));
}
