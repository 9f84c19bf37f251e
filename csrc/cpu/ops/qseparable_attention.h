// Separable self-attention (MobileViTv2, arXiv 2206.02680, equation 3) on bytes, exact, in the two halves around the key projection. As
//
//     sum_n s_n (W_k x_n + b_k) = W_k (sum_n s_n x_n) + b_k,      s = softmax_n(q),
//
// the keys of all pixels need not exist: only the context of x, one vector for each phase of pixels of an image. Maps are channels last;
// pixel (y, x) is in phase (y mod ph) pw + x mod pw.
//
// Context. Scores are bytes (their zero-point cancels). e_n = table[max q - q_n], fixed-point exponentials of at most 2^16:
//
//     S = sum_n e_n,   C[c] = sum_n e_n x[n, c]                  int64, exact
//     t = (double(C[c]) / double(S) - z_x) s_x                    float64, every step a single rounded operation; y = float(t)
//     or for bytes, with s_x / s_y instead of s_x: y = rint(min(max(t, -z_y), 2^bits - 1 - z_y)) + z_y
//
// Gate. With k, the context's projection (float32, a vector for each phase of an image):
//
//     m[c] = k[c] float(s_v / s_y),   t = float(max(v[n, c] - z_v, 0)) m[c]                float32, likewise
//     y[n, c] = rint(min(max(t, -z_y), 2^bits - 1 - z_y)) + z_y                            NaN becomes 0
//
// mvit_kernels/reference/qseparable_attention.py defines the same. Floor: the context reads q and x once, the gate reads v and writes y
// once.
#pragma once

#include "cpu/core/qreal.h"
#include "cpu/core/types.h"

namespace mvit {

// Bytes (batch, height, width, dim), the channels of a pixel side by side; strides from image to image, row to row and pixel to pixel.
struct QPhaseMap {
    const uint8_t* data;
    int64_t image, row, pixel;
    const uint8_t* at(int64_t b, int64_t y, int64_t x) const { return data + b * image + y * row + x * pixel; }
};

struct QPhases {
    int64_t batch, dim, height, width, patch_h, patch_w;
    int64_t phases() const { return patch_h * patch_w; }
};

struct QSeparableContextProblem {
    QPhases size;
    QPhaseMap scores, x;
    const int32_t* table;        // 256 values in [0, 2^16], the first not 0
    double x_zero_point, scale;  // s_x or s_x / s_y
    bool bytes;
    QByte byte;
    void* y;  // (batch, phases, dim) float32 or bytes
};

struct QSeparableGateProblem {
    QPhases size;
    QPhaseMap v;
    int32_t v_zero_point;
    const float* context;  // (batch, phases, dim)
    float scale;           // s_v / s_y
    QByte byte;
    uint8_t* y;  // (batch, height, width, dim), dense
};

Status qseparable_context(const QSeparableContextProblem& problem, int threads);
Status qseparable_gate(const QSeparableGateProblem& problem, int threads);

// --- what isa/qseparable_attention.cpp implements ---

struct QSeparableAttentionKernels {
    // Channels [begin, end) of one phase of an image; scratch of a value a pixel of a phase and 64 int64.
    void (*context)(const QSeparableContextProblem&, int64_t image, int64_t phase, int64_t begin, int64_t end, void* scratch);
    // Rows [begin, end) of an image, whole patches; scratch of phases x dim floats.
    void (*gate)(const QSeparableGateProblem&, int64_t image, int64_t begin, int64_t end, float* scratch);
};

}  // namespace mvit
