// Plans: from names and values to structs, once, or from what ops were run with; then addresses in, a status out.
#include <pybind11/stl.h>

#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bind.h"
#include "bind_replay.h"
#include "cpu/core/crew.h"
#include "engine/plan.h"
#include "engine/recording.h"

namespace py = pybind11;
using namespace mvit;

namespace {

using Entry = std::pair<std::string, py::dict>;  // the kind of a step, and what its fields are
using PlaceTuple = std::tuple<int, int64_t, int64_t>;

template <class T>
void put(std::vector<char>& arguments, int64_t at, T value) {
    std::memcpy(arguments.data() + at, &value, sizeof(value));
}

PlanStep read_step(const Entry& entry) {
    const StepKind* kind = find_step_kind(entry.first.c_str());
    if (!kind) throw py::value_error("Plan: steps: expected the kind of a step, got '" + entry.first + "'");
    PlanStep step{kind, std::vector<char>(static_cast<size_t>(kind->bytes), 0), {}};
    for (const auto& [key, value] : entry.second) {
        const auto name = key.cast<std::string>();
        const Field* field = kind->find(name.c_str());
        if (!field) throw py::value_error("Plan: steps: expected a field of " + entry.first + ", got '" + name + "'");
        switch (field->type) {
            case FieldType::i64:
                put(step.arguments, field->offset, value.cast<int64_t>());
                break;
            case FieldType::i32:
                put(step.arguments, field->offset, value.cast<int32_t>());
                break;
            case FieldType::f32:
                put(step.arguments, field->offset, value.cast<float>());
                break;
            case FieldType::f64:
                put(step.arguments, field->offset, value.cast<double>());
                break;
            case FieldType::boolean:
                put(step.arguments, field->offset, value.cast<bool>());
                break;
            case FieldType::pointer: {
                const auto [space, index, offset] = value.cast<PlaceTuple>();
                step.pointers.push_back({field->offset, {static_cast<Space>(space), index, offset}});
            }
        }
    }
    return step;
}

constexpr int64_t most_bytes = int64_t{1} << 46;  // of an arena: of several images they are still a number

// How many bytes there are where a place is, or -1.
int64_t bytes_at(const Place& place, int64_t arena_bytes, int64_t weight_bytes, const std::vector<int64_t>& inputs,
                 const std::vector<int64_t>& outputs, const std::vector<int64_t>& side_by_side) {
    const auto one_of = [&](const std::vector<int64_t>& sizes) {
        const bool known = place.index >= 0 && place.index < static_cast<int64_t>(sizes.size());
        return known ? sizes[static_cast<size_t>(place.index)] : -1;
    };
    switch (place.space) {
        case Space::arena:
            return arena_bytes;
        case Space::weights:
            return weight_bytes;
        case Space::input:
            return one_of(inputs);
        case Space::output:
            return one_of(outputs);
        case Space::side_by_side:
            return one_of(side_by_side);
        default:
            return -1;
    }
}

std::unique_ptr<Plan> make_plan(const std::vector<Entry>& entries, int64_t arena_bytes, int64_t weight_bytes,
                                const std::vector<int64_t>& inputs, const std::vector<int64_t>& outputs,
                                const std::vector<std::string>& counts, int64_t first,
                                const std::vector<std::pair<int64_t, int64_t>>& side_by_side) {
    const auto fits = [](int64_t size) { return size >= 0 && size <= most_bytes; };
    if (!fits(arena_bytes)) throw py::value_error("Plan: arena_bytes: expected 0 to 2^46, got " + std::to_string(arena_bytes));
    if (first < 0) throw py::value_error("Plan: first: expected at least 0, got " + std::to_string(first));
    std::vector<SideBySide> values;
    std::vector<int64_t> value_bytes;
    for (const auto& [offset, bytes] : side_by_side) {
        if (!fits(offset) || !fits(bytes)) throw py::value_error("Plan: side_by_side: expected offsets and bytes from 0 to 2^46");
        values.push_back({offset, bytes});
        value_bytes.push_back(bytes);
    }
    std::vector<PlanStep> steps;
    for (const Entry& entry : entries) {
        steps.push_back(read_step(entry));
        const size_t i = steps.size() - 1;
        if (i < counts.size() && !counts[i].empty()) {
            const Field* field = steps.back().kind->find(counts[i].c_str());
            if (!field || field->type != FieldType::i64)
                throw py::value_error("Plan: counts: expected a number of " + entry.first + ", got '" + counts[i] + "'");
            steps.back().count_at = field->offset;
        }
        for (const auto& [at, place] : steps.back().pointers)
            if (place.offset < 0 || place.offset > bytes_at(place, arena_bytes, weight_bytes, inputs, outputs, value_bytes) ||
                (place.space == Space::arena && i >= static_cast<size_t>(first)))  // which has room for one image
                throw py::value_error("Plan: steps: expected places in the memory of a plan, got (" +
                                      std::to_string(static_cast<int>(place.space)) + ", " + std::to_string(place.index) + ", " +
                                      std::to_string(place.offset) + ") in " + entry.first);
    }
    return std::make_unique<Plan>(std::move(steps), arena_bytes, inputs, outputs, first, std::move(values));
}

// Of each recorded call: where in its arguments pointers are (or -1), and what to. `places`: those that the plan has another place for.
using Pointers = std::vector<std::vector<std::pair<int64_t, uintptr_t>>>;
using Places = std::vector<std::vector<std::pair<int64_t, PlaceTuple>>>;

Pointers recorded_pointers(const Recording& recording) {
    Pointers all;
    for (const Recording::Call& call : recording.calls()) {
        auto& found = all.emplace_back();
        for (const auto& [at, address] : Recording::pointers(call)) found.emplace_back(at, address);
    }
    return all;
}

bool hides(const Recording& recording, const std::vector<std::pair<uintptr_t, uintptr_t>>& ranges) {
    for (const Recording::Call& call : recording.calls())
        for (const auto& [begin, end] : ranges)
            if (Recording::hides(call, begin, end)) return true;
    return false;
}

std::unique_ptr<Replay> replay_of(const Recording& recording, const Places& places, int64_t inputs, bool large) {
    if (places.size() != recording.calls().size()) throw py::value_error("Recording: replay: expected places of each call");
    std::vector<PlanStep> steps;
    for (size_t i = 0; i < places.size(); ++i) {
        const Recording::Call& call = recording.calls()[i];
        PlanStep step{call.kind, call.arguments, {}};
        for (const auto& [at, tuple] : places[i]) {
            const auto [space, index, offset] = tuple;
            const Place place{static_cast<Space>(space), index, offset};
            const int64_t count = place.space == Space::input ? inputs : place.space == Space::output ? 2 : 0;
            if (at < 0 || at + static_cast<int64_t>(sizeof(void*)) > call.kind->bytes || index < 0 || index >= count)
                throw py::value_error("Recording: replay: expected places of pointers among inputs and outputs");
            step.pointers.push_back({at, place});
        }
        steps.push_back(std::move(step));
    }
    const auto count = static_cast<size_t>(inputs);
    return std::unique_ptr<Replay>(new Replay{Plan(std::move(steps), 0, std::vector<int64_t>(count, 0), {0, 0}), count, large});
}

// A plan that runs is no op that a recording could hold.
void not_recorded() {
    if (Recording* recording = Recording::current()) recording->miss();
}

std::vector<void*> pointers(const std::vector<uintptr_t>& addresses) {
    std::vector<void*> result;
    for (const uintptr_t address : addresses) result.push_back(pointer(address));
    return result;
}

int run(Plan& plan, uintptr_t weights, const std::vector<uintptr_t>& inputs, const std::vector<uintptr_t>& outputs, int64_t batch,
        int threads) {
    not_recorded();
    const auto from = pointers(inputs), to = pointers(outputs);
    py::gil_scoped_release release;
    return static_cast<int>(plan.run(static_cast<const char*>(pointer(weights)), from.data(), to.data(), batch, threads, nullptr));
}

int run_again_at(Replay& replay, const std::vector<uintptr_t>& inputs, uintptr_t result, uintptr_t between, int threads) {
    if (inputs.size() != replay.inputs) throw py::value_error("Replay: inputs: expected " + std::to_string(replay.inputs) + " addresses");
    return static_cast<int>(run_again(replay, pointers(inputs).data(), pointer(result), pointer(between), threads));
}

std::pair<int, std::vector<double>> profile(Plan& plan, uintptr_t weights, const std::vector<uintptr_t>& inputs,
                                            const std::vector<uintptr_t>& outputs, int64_t batch, int threads) {
    not_recorded();
    const auto from = pointers(inputs), to = pointers(outputs);
    std::vector<double> seconds(plan.steps().size(), 0.0);
    py::gil_scoped_release release;
    const Status status = plan.run(static_cast<const char*>(pointer(weights)), from.data(), to.data(), batch, threads, seconds.data());
    return {static_cast<int>(status), std::move(seconds)};
}

}  // namespace

Status mvit::run_again(Replay& replay, void* const* inputs, void* result, void* between, int threads) {
    not_recorded();
    void* const to[] = {result, between};
    py::gil_scoped_release release;
    const auto run = [&] { return replay.plan.run(nullptr, inputs, to, 1, threads, nullptr); };
    if (!replay.large || threads <= 1 || replay.plan.steps().size() > 1) return run();
    Status status = Status::ok;
    Crew::with(threads, [&] { status = run(); });
    return status;
}

void mvit::bind_engine(py::module_& m) {
    py::class_<Plan>(m, "Plan")
        .def(py::init(&make_plan), py::arg("steps"), py::arg("arena_bytes"), py::arg("weight_bytes"), py::arg("inputs"), py::arg("outputs"),
             py::arg("counts") = std::vector<std::string>(), py::arg("first") = INT64_MAX,
             py::arg("side_by_side") = std::vector<std::pair<int64_t, int64_t>>())
        .def("run", run)
        .def("profile", profile);
    py::class_<Recording>(m, "Recording")
        .def(py::init<>())
        .def("begin", [](Recording& recording) { Recording::set_current(&recording); })
        .def("end", [](Recording&) { Recording::set_current(nullptr); })
        .def_property_readonly("whole", &Recording::whole)
        .def_property_readonly("count", [](const Recording& recording) { return recording.calls().size(); })
        .def("pointers", recorded_pointers)
        .def("hides", hides)
        .def("replay", replay_of);
    py::class_<Replay>(m, "Replay").def("run", run_again_at);
}
