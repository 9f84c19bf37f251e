// Convolution of maps of bytes (B, H, W, C) with everything that stands around it in a quantized network, k = 1 or 3, stride s = 1 or 2:
//
//     sum[b, i, j, n] = init[n] + sum_{ky, kx, c} x[b, s i + ky - k / 2, s j + kx - k / 2, c] w[n, ky, kx, c],    y = epilogue(sum)
//
// where the channels of `second` stand behind those of x, as in the fusion convolution of MobileViT (arXiv 2110.02178, figure 1b); no
// concatenation is made. It is ops/qgemm.h on rows of k k C bytes, what each pixel of y sees, and zero-points fold into init as there. One
// for each channel may differ from the next.
//
// Outside of the map real values are 0, so bytes are the zero-point z[c] of their channel, and what such a tap adds, z w, is what init
// takes away. A zero-point that is no byte cannot be written there: then bytes outside are 0, and a sum begins with
//
//     border[class][n] = init[n] + sum_{taps outside, c} z[c] w[n, tap, c]        modulo 2^32
//
// instead, where the class says which taps are outside: those above (1) and below (2), times 4, and those to the left (1) and right (2).
// Maps of one pixel have all of them outside but the middle one. Either way a final sum is that of the taps inside, within the bound of
// ops/qgemm.h.
//
// The lines of the map that a block of rows of y sees are copied once, with their padding and both inputs side by side; then rows of k k C
// bytes are three runs of 3 C bytes each, which lie side by side in a line. Gathering moves 9 C bytes a pixel and the product takes
// 9 C N / 64 instructions, so it is about 2 / N of the whole. A 1x1 convolution with stride 1 needs none: it is the product itself.
//
// Floor: 2 B H W / s^2 N K operations; x and w read once, y written once.
#pragma once

#include "cpu/core/qepilogue_types.h"
#include "cpu/core/types.h"

namespace mvit {

// A map of bytes that is read where it lies: channels contiguous, strides in bytes.
struct QMap {
    const uint8_t* data;
    int64_t channels, image, row, pixel;
};

inline constexpr int qborder_classes = 16;

struct QConv2dProblem {
    int64_t batch, height, width;  // of x
    int64_t kernel, stride;
    QMap x, second;             // second: or with 0 channels
    const int32_t* zero_point;  // of each channel of both
    const int32_t* border;      // k = 3: qborder_classes times all panels' columns; null where zero-points are bytes
    QWeight weight;             // columns in the order (ky, kx, c)
    const int16_t* filtered;    // for ops/qwinograd.h: panels of [36][pairs of channels][16][2]; or null
    QEpilogue epilogue;         // y and residual dense: (B, H / s, W / s, N)
};

Status qconv2d(const QConv2dProblem& problem, int threads);

inline int64_t qconv2d_size(const QConv2dProblem& p, int64_t size) { return (size - 1) / p.stride + 1; }

// --- what isa/qconv2d.cpp implements: a block of rows of y of one image times a range of panels ---

struct QConv2dBlock {
    const QConv2dProblem* problem;
    int64_t image, row, rows, panel_begin, panel_end;
    void* scratch;
};

struct QConv2dKernels {
    void (*block)(const QConv2dBlock&);
    int64_t (*scratch)(const QConv2dProblem&, int64_t rows);  // bytes
};

}  // namespace mvit
