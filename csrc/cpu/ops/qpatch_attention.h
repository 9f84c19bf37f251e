// Softmax attention inside pixel phases (MobileViT, arXiv 2110.02178, section 3.1) on bytes, exact. q, k and v have d channels each, H
// heads of c = d / H; maps are channels last, and pixel (y, x) is in phase (y mod ph) pw + x mod pw, of N pixels. In each phase and head
//
//     S[n, m] = sum_c (q[n, c] - z_q) k[m, c]                       int32, exact; terms that all keys of a query share cancel below, so k
//                                                                   may be taken as k - 128, an int8, whatever its zero-point is
//     i[n, m] = rint(min(float(max_j S[n, j] - S[n, m]) f, 255))    f = float32(s_q s_k scale steps), ties to even
//     e[n, m] = table[i[n, m]]                                      rint(255 exp(-i / steps)): exponentials as bytes
//     A[n, c] = sum_m e[n, m] (v[m, c] - z_v)                       int32, exact: sum_m e (v - 128) and (128 - z_v) sum_m e
//     y[n, c] = rint(min(max(float(A[n, c]) (g / float(sum_m e[n, m])), -z_y), 2^bits - 1 - z_y)) + z_y         g = float32(s_v / s_y)
//
// every float operation a single rounded one. mvit_kernels/reference/qpatch_attention.py defines the same.
//
// Both products are the tiles of core/qtile.h. S multiplies rows of q by keys, packed like a weight of N columns and depth c; sum e v
// multiplies rows of e by values, packed like one of c columns and depth N. z_q is in what sums begin with, -z_q sum_c k[m, c].
//
// Floor: 2 N^2 c H P B multiply-adds, P = ph pw, 64 an instruction with AVX512-VNNI; and about 30 instructions for 64 exponentials.
#pragma once

#include "cpu/core/qreal.h"
#include "cpu/core/qtile.h"
#include "cpu/core/types.h"

namespace mvit {

// Strides in bytes from image to image, row to row and pixel to pixel; channels lie side by side.
struct QPatchAttentionProblem {
    int64_t batch, dim, heads;  // heads divides dim
    int64_t height, width, patch_h, patch_w;
    const uint8_t* qkv;  // 3 dim channels: q, k, v
    int64_t qkv_stride[3];
    int32_t q_zero_point, v_zero_point;
    float score_steps, ratio;  // f, g
    const uint8_t* table;      // 256 bytes, the first not 0
    QByte byte;
    uint8_t* y;  // dim channels
    int64_t y_stride[3];
};

Status qpatch_attention(const QPatchAttentionProblem& problem, int threads);

// --- what isa/qpatch_attention.cpp implements: some queries of one phase and head ---

struct QPatchAttentionTask {
    const QPatchAttentionProblem* problem;
    const uint8_t *q, *k, *v;  // of pixel 0 of the phase
    uint8_t* y;
    int64_t qkv_row, qkv_column, y_row, y_column;  // strides from pixel to pixel of the phase
    int64_t columns, pixels;                       // of the phase: in a row, in all
    int64_t depth;                                 // c
    int64_t begin, end;                            // queries
    void* scratch;
};

struct QPatchAttentionKernels {
    void (*attend)(const QPatchAttentionTask&);
    int64_t (*scratch)(int64_t pixels, int64_t depth);  // bytes
};

}  // namespace mvit
