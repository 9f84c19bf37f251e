// A map (batch, channels, pixels) as (batch, pixels, channels). Only bytes move, so elements are known by their size: 1, 2 or 4 bytes.
//
// Floor: every byte read and written once, at the bandwidth of a copy.
#pragma once

#include "cpu/core/types.h"

namespace mvit {

struct ChannelsLastProblem {
    int64_t element_size, batch, channels, pixels;
    const void* from;  // (batch, channels, pixels)
    void* to;          // (batch, pixels, channels)
};

Status channels_last(const ChannelsLastProblem& problem, int threads);

// --- what isa/channels_last.cpp implements ---

struct ChannelsLastKernels {
    // Pixels [first, last) of an image; indexed by log2 of the element size.
    void (*run[3])(const ChannelsLastProblem&, int64_t image, int64_t first, int64_t last);
};

}  // namespace mvit
