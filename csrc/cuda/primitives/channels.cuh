// Four channels of a pixel, bytes side by side, as a word; of those at the end of a pixel `left` are there, perhaps more than four.
#pragma once

#include "cuda/primitives/device.cuh"

namespace mvit::cuda {

// Channels that are not there are 0. aligned: all are, in a word of memory.
MVIT_DEVICE uint32_t load_channels(const uint8_t* from, int left, bool aligned) {
    if (aligned) return *reinterpret_cast<const uint32_t*>(from);
    uint32_t word = 0;
    MVIT_UNROLL
    for (int i = 0; i < 4; ++i)
        if (i < left) word |= uint32_t{from[i]} << (8 * i);
    return word;
}

MVIT_DEVICE void store_channels(uint32_t word, uint8_t* to, int left, bool aligned) {
    if (aligned) {
        *reinterpret_cast<uint32_t*>(to) = word;
        return;
    }
    MVIT_UNROLL
    for (int i = 0; i < 4; ++i)
        if (i < left) to[i] = static_cast<uint8_t>(word >> (8 * i));
}

}  // namespace mvit::cuda
