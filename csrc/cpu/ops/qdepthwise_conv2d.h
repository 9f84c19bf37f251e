// Integer depthwise 3x3 convolution on channels-last bytes, with zero-points and everything that stands around it in a quantized network:
//
//     sum[b, i, j, c] = bias[c] + sum_{ky, kx} (x[b, s i + ky - 1, s j + kx - 1, c] - z[c]) w[c, ky, kx],   s = 1 or 2
//     y[b, i, j, c] = epilogue(sum[b, i, j, c])                                                            (core/qepilogue.h)
//
// Outside of the map x is real 0, the zero-point z, so that those taps add nothing; z is any int32. core/qdepthwise_types.h says how z
// becomes a part of what sums begin with. Nothing overflows that matters: additions are modulo 2^32, so only the final value must fit, and
// |final| <= max_c sum |w[c]| max(|z|, |x_max - z|) + |bias| is checked where init is made.
//
// Floor: 9 multiply-adds a value of y, of which core/qdepthwise.h counts the instructions; x read and y written once. At 20 cycles for 64
// bytes in and out a core moves about 20 GB/s: as much as it copies beyond its caches, so that large maps are bound by both.
#pragma once

#include "cpu/core/qdepthwise_types.h"
#include "cpu/core/qepilogue_types.h"
#include "cpu/core/types.h"

namespace mvit {

struct QDepthwiseConv2dProblem {
    int64_t batch, height, width, channels;  // channels: of y
    int64_t stride;
    int64_t multiplier;  // as of ops/depthwise_conv2d.h: filters for each channel of x
    const uint8_t* x;    // the channels of a pixel are contiguous
    int64_t image_stride, row_stride, pixel_stride;
    const QDepthwiseBlock* blocks;  // of 64 channels each
    bool narrow;                    // see core/qdepthwise.h
    QEpilogue epilogue;             // y is (B ceil(H / s) ceil(W / s), C), a residual likewise
};

Status qdepthwise_conv2d(const QDepthwiseConv2dProblem& problem, int threads);

// --- what isa/qdepthwise_conv2d.cpp implements: one output row ---

struct QDepthwiseConv2dRow {
    const uint8_t* rows[3];  // null where outside of the map
    int64_t first;           // number of its first pixel
    int64_t pixel_stride;
    const QDepthwiseConv2dProblem& problem;
};

struct QDepthwiseConv2dKernels {
    void (*row[2])(const QDepthwiseConv2dRow&);  // by stride - 1
};

}  // namespace mvit
