// What the parts of the extension mvit_kernels._cpu share. Addresses come as integers, sizes and strides as arrays.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>

namespace mvit {

using Sizes = std::array<int64_t, 4>;

inline void* pointer(uintptr_t address) { return reinterpret_cast<void*>(address); }
inline const float* floats(uintptr_t address) { return static_cast<const float*>(pointer(address)); }

void bind_floats(pybind11::module_& m);
void bind_integers(pybind11::module_& m);
void bind_engine(pybind11::module_& m);

}  // namespace mvit
