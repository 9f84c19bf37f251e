// What the parts of the extension mvit_kernels._cpu share. Addresses come as integers, sizes and strides as arrays.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>

#include "engine/fields.h"
#include "engine/recording.h"

namespace mvit {

using Sizes = std::array<int64_t, 4>;

inline void* pointer(uintptr_t address) { return reinterpret_cast<void*>(address); }
inline const float* floats(uintptr_t address) { return static_cast<const float*>(pointer(address)); }

// Runs an op without the GIL, and writes it down where its thread records. step: the name that it has as a step of plans, or null where its
// struct points to what ends with the call. weight: an address in the memory that pointers lead to which such a step has no fields for.
template <auto op, class Problem>
int launch(const char* step, const Problem& p, int threads, uintptr_t weight = 0) {
    if (Recording* recording = Recording::current()) {
        if (step) {
            static const DirectKind direct(step, sizeof(Problem), run_op<Problem, op>);
            recording->add(direct, &p, weight);
        } else {
            recording->miss();
        }
    }
    pybind11::gil_scoped_release release;
    return static_cast<int>(op(p, threads));
}

void bind_floats(pybind11::module_& m);
void bind_integers(pybind11::module_& m);
void bind_engine(pybind11::module_& m);
void bind_snapshot(pybind11::module_& m);
void bind_forms(pybind11::module_& m);

}  // namespace mvit
