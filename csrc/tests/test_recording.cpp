#include "engine/recording.h"

#include <cstring>
#include <vector>

#include "cpu/ops/add.h"
#include "engine/fields.h"
#include "engine/plan.h"
#include "tests/check.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

const DirectKind direct("add", sizeof(AddProblem), run_op<AddProblem, add>);

uintptr_t address(const void* at) { return reinterpret_cast<uintptr_t>(at); }

}  // namespace

TEST(recorded_calls_run_again_on_other_memory) {
    constexpr int64_t count = 37;
    float a[count], w[count], hidden[count], y[count];
    for (int64_t i = 0; i < count; ++i) a[i] = random_float(), w[i] = random_float();

    Recording recording;
    CHECK(Recording::current() == nullptr);
    Recording::set_current(&recording);
    CHECK(Recording::current() == &recording);
    AddProblem p{};
    p.dtype = DType::f32, p.count = count, p.activation = Activation::none, p.a = a, p.b = w, p.y = hidden;
    Recording::current()->add(direct, &p);
    p.a = p.b = hidden, p.y = y;
    Recording::current()->add(direct, &p);
    Recording::set_current(nullptr);
    CHECK(recording.whole() && recording.calls().size() == 2);

    std::vector<PlanStep> steps;
    for (const Recording::Call& call : recording.calls()) {
        PlanStep step{call.kind, call.arguments, {}};
        const auto pointers = Recording::pointers(call);
        CHECK(pointers.size() == 3);
        for (const auto& [at, to] : pointers) {
            if (to == address(a)) step.pointers.push_back({at, {Space::input, 0, 0}});
            if (to == address(hidden)) step.pointers.push_back({at, {Space::output, 1, 0}});
            if (to == address(y)) step.pointers.push_back({at, {Space::output, 0, 0}});
        }
        CHECK(step.pointers.size() == (call.arguments == recording.calls()[0].arguments ? 2 : 3));  // the weight is where it was
        steps.push_back(std::move(step));
    }
    Plan plan(std::move(steps), 0, {0}, {0, 0});
    Guarded<float> in(count), out(count), between(count);
    for (int64_t i = 0; i < count; ++i) in[i] = random_float();
    void *inputs[] = {in.data()}, *outputs[] = {out.data(), between.data()};
    for (int threads : {1, 3}) {
        CHECK(plan.run(nullptr, inputs, outputs, 1, threads, nullptr) == Status::ok);
        for (int64_t i = 0; i < count; ++i) CHECK(out[i] == (in[i] + w[i]) + (in[i] + w[i]));
    }
    CHECK(in.canary_intact() && out.canary_intact() && between.canary_intact());
}

TEST(a_recording_says_what_it_lacks) {
    Recording recording;
    recording.add(DirectKind("no such step", 8, run_op<AddProblem, add>), nullptr);
    CHECK(!recording.whole() && recording.calls().empty());
    Recording other;
    other.miss();
    CHECK(!other.whole());
    CHECK(!DirectKind("add", 4096, run_op<AddProblem, add>).exists());
}

TEST(an_address_that_is_no_pointer_is_hidden) {
    Recording recording;
    AddProblem p{};
    float a[4];
    p.a = a, p.count = static_cast<int64_t>(address(a)) + 4;
    recording.add(direct, &p);
    const Recording::Call& call = recording.calls()[0];
    CHECK(Recording::pointers(call).size() == 1);
    CHECK(Recording::hides(call, address(a), address(a + 4)));
    CHECK(!Recording::hides(call, address(a), address(a + 1)));
    CHECK(!Recording::hides(call, address(a + 2), address(a + 4)));
}
