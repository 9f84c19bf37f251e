// What addresses of rows have in common.
#pragma once

#include <cstdint>

namespace mvit::cuda {

// 16, 4 or 1: what divides an address and the strides from it.
template <class... Strides>
int alignment_of(const void* p, Strides... strides) {
    const uint64_t all = (static_cast<uint64_t>(reinterpret_cast<uintptr_t>(p)) | ... | static_cast<uint64_t>(strides));
    return all % 16 == 0 ? 16 : all % 4 == 0 ? 4 : 1;
}

}  // namespace mvit::cuda
