// The extension mvit_kernels._cpu: pointers, shapes and strides in, a status out. Tensors are checked in mvit_kernels/ops; nothing here
// knows torch. Every kernel runs without the GIL. bind_floats.cpp and bind_integers.cpp have the ops.
#include <string>
#include <utility>
#include <vector>

#include "bind.h"
#include "cpu/core/fingerprint.h"
#include "cpu/core/isa.h"
#include "cpu/ops/ceiling.h"

namespace py = pybind11;
using namespace mvit;

namespace {

std::vector<std::string> isas(bool (*holds)(Isa)) {
    std::vector<std::string> names;
    for (int level = 0; level < isa_count; ++level)
        if (holds(static_cast<Isa>(level))) names.emplace_back(isa_name(static_cast<Isa>(level)));
    return names;
}

bool set_isa(const std::string& name) {
    for (int level = 0; level < isa_count; ++level)
        if (name == isa_name(static_cast<Isa>(level))) return isa_set(static_cast<Isa>(level));
    return false;
}

// Of several pieces of memory, as they are whenever it is asked for.
struct Fingerprint {
    std::vector<std::pair<uintptr_t, int64_t>> pieces;
    uint64_t value() const {
        uint64_t all = 0;
        for (const auto& [address, bytes] : pieces) {
            const uint64_t both[] = {all, fingerprint(pointer(address), bytes)};
            all = fingerprint(both, sizeof both);
        }
        return all;
    }
};

}  // namespace

PYBIND11_MODULE(_cpu, m) {
    m.def("isas_built", [] { return isas(isa_built); });
    m.def("isas_supported", [] { return isas(isa_supported); });
    m.def("isa", [] { return std::string(isa_name(isa_active())); });
    m.def("set_isa", set_isa);
    m.def("fingerprint", [](uintptr_t data, int64_t bytes) { return fingerprint(pointer(data), bytes); });
    py::class_<Fingerprint>(m, "Fingerprint").def(py::init<std::vector<std::pair<uintptr_t, int64_t>>>()).def("value", &Fingerprint::value);
    m.def("fma_gflops", fma_gflops, py::call_guard<py::gil_scoped_release>());
    m.def("bf16_gflops", bf16_gflops, py::call_guard<py::gil_scoped_release>());
    m.def("dot_gops", dot_gops, py::call_guard<py::gil_scoped_release>());

    bind_floats(m);
    bind_integers(m);
    bind_engine(m);
    bind_snapshot(m);
    bind_forms(m);
}
