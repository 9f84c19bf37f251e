// Convolution with what stands around it in a network, k = 1 or 3, stride s = 1 or 2, zeros outside the map:
//
//     y[b, i, j, n] = act(bias[n] + sum_{ky, kx, c} x[b, s i + ky - k / 2, s j + kx - k / 2, c] w[n, ky, kx, c]) + residual[b, i, j, n]
//
// where the channels of `second` stand behind those of x, as in the fusion convolution of MobileViT (arXiv 2110.02178, figure 1b); no
// concatenation is made. It is a matrix product whose rows are gathered: a row holds what one pixel of y sees (im2col), and exists only for
// a block of pixels, in the second cache. Gathering moves K = k k C values a pixel and the product takes K N / W multiply-adds of W lanes,
// so it is about 2 / N of the whole. A 1x1 convolution with stride 1 needs no gathering: it is the product itself (ops/gemm.h).
//
// Floor: 2 B H W / s^2 N K operations; x and w read once, y written once.
#pragma once

#include "cpu/core/products.h"
#include "cpu/core/types.h"

namespace mvit {

// A block of `height` rows each, the last with what is left.
struct EvenCut {
    int64_t blocks, height;
};

// Rows of `row_bytes` into blocks of at most `most` rows that fit into `bytes`. Few blocks are a power of two and many a multiple of 8, so
// that they divide evenly among the usual numbers of threads.
inline EvenCut cut_evenly(int64_t rows, int64_t row_bytes, int64_t bytes, int64_t most) {
    const int64_t fitting = bytes / row_bytes < 1 ? 1 : bytes / row_bytes;
    const int64_t height = fitting < most ? fitting : most, needed = (rows + height - 1) / height;
    const int64_t wanted = needed <= 2 ? needed : needed <= 4 ? 4 : round_up(needed, 8), even = (rows + wanted - 1) / wanted;
    return {(rows + even - 1) / even, even};
}

// How many ranges of columns make enough tasks of them.
inline int64_t ranges_of(int64_t units, int64_t blocks, int64_t tasks) {
    const int64_t pieces = (tasks + blocks - 1) / blocks;
    return pieces < units ? pieces : units;
}

// A map that is read where it lies; strides are in elements.
struct InputMap {
    const void* data;
    int64_t channels;
    int64_t image, channel, row, pixel;
};

// How, and so the order of the weight's columns.
enum class Conv2dMethod : int {
    gathered = 0,  // (ky, kx, c)
    planes = 1,    // (c, ky, kx): k = 3 and the rows of x contiguous, not its channels; for few channels, without second
    winograd = 2,  // 16 matrices, ops/winograd.h: k = 3, s = 1
};

struct Conv2dProblem {
    DType dtype;                   // of x, second, residual and y
    int64_t batch, height, width;  // of x
    int64_t columns;               // N
    int64_t kernel, stride;
    Conv2dMethod method;
    InputMap x, second;  // second: channels contiguous; or with 0 channels
    const void* weight;  // packed (core/tile.h); of planes and winograd for float32 whatever x is
    const float* bias;   // panels(N) * panel values
    Activation activation;
    const void* residual;  // dense (B, ceil(H / s), ceil(W / s), N), as y is; or null
    void* y;
};

Status conv2d(const Conv2dProblem& problem, int threads);

// --- what isa/conv2d.cpp implements ---

// A block of pixels times a range of panels.
struct Conv2dBlock {
    int64_t first, pixels;  // of y, counted through all images
    int64_t panel_begin, panel_end;
    float* scratch;  // conv2d_scratch floats
    const Conv2dProblem& problem;
};

// An output row, by planes.
struct Conv2dRow {
    int64_t image, row;
    float* scratch;  // 3 C rows of conv2d_padded floats
    const Conv2dProblem& problem;
};

inline int64_t conv2d_depth(const Conv2dProblem& p) { return p.kernel * p.kernel * (p.x.channels + p.second.channels); }
inline int64_t conv2d_scratch(int64_t pixels, int64_t depth, int64_t columns) {
    return pixels * (scratch_stride(depth) + product_floats(columns));
}
inline int64_t conv2d_padded(const Conv2dProblem& p) { return p.width + 2; }

struct Conv2dKernels {
    void (*block[3])(const Conv2dBlock&);        // by DType
    void (*planes_row[3][2])(const Conv2dRow&);  // and stride - 1
};

}  // namespace mvit
