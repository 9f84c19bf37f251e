// Channels of a pixel, bytes side by side, as words.
#pragma once

#include "cuda/primitives/device.cuh"

namespace mvit::cuda {

// Four channels, of which `lanes` are there; the others are 0. aligned: all four are there, in a word of memory.
MVIT_DEVICE uint32_t load_channels(const uint8_t* from, int lanes, bool aligned) {
    if (aligned) return *reinterpret_cast<const uint32_t*>(from);
    uint32_t word = 0;
    MVIT_UNROLL
    for (int i = 0; i < 4; ++i)
        if (i < lanes) word |= uint32_t{from[i]} << (8 * i);
    return word;
}

}  // namespace mvit::cuda
