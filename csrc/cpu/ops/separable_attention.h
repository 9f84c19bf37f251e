// Separable self-attention (MobileViTv2, arXiv 2206.02680, equation 3), forward and backward. q has one channel, k and v have d:
//
//     y[c, n] = relu(v[c, n]) * context[c],   context[c] = sum_n s[n] k[c, n],   s = softmax_n(q)
//
// inside each pixel phase. For g = dL/dy:
//
//     dv[c, n] = g[c, n] context[c] where v > 0          dk[c, n] = s[n] dcontext[c],  dcontext[c] = sum_n g[c, n] relu(v[c, n])
//     dq[n] = s[n] (ds[n] - sum_m s[m] ds[m]),  ds[n] = sum_c dcontext[c] k[c, n]
//
// Floor: q, k and v are read once and y is written once, (1 + 3d) P N elements; there is no other traffic to memory.
#pragma once

#include "cpu/core/types.h"

namespace mvit {

// A 4-D tensor, strides in elements. Either (B, C, P, N), or a map (B, C, H, W) that is cut into phases by patch_h x patch_w.
struct Tensor4 {
    void* data;
    int64_t stride[4];
};

struct SeparableAttentionProblem {
    DType dtype;
    int64_t batch, dim;
    int64_t size[2];           // P, N, or H, W of a map
    int64_t patch_h, patch_w;  // 0, 0: (B, C, P, N)
    Tensor4 qkv;               // 1 + 2 dim channels
    Tensor4 y;                 // dim channels: the output, or its gradient in the backward
    Tensor4 dqkv;              // backward only: the gradient of qkv
};

// Layouts: channels first (stride of the last axis is 1; maps with patch_w 1, 2, 4 or 8) or channels last (stride of the channel axis is
// 1), the same one for all tensors of a call. Anything else is Status::bad_layout.
Status separable_attention(const SeparableAttentionProblem& problem, int threads);
Status separable_attention_backward(const SeparableAttentionProblem& problem, int threads);

// --- what isa/separable_attention.cpp implements, one sequence (one softmax, or `phases` interleaved ones) at a time ---

struct Strides {
    int64_t channel, row, column;
};

struct SeparableAttentionSequence {
    const void* qkv;
    void* y;  // const in the backward
    void* dqkv;
    int64_t dim, rows, columns;  // positions: rows x columns
    int phases;                  // channels first: columns of a row cycle through this many phases
    Strides qkv_strides, y_strides, dqkv_strides;
    int64_t channel_begin, channel_end;  // forward: which of the dim channels to compute
    float* scratch;
};

struct SeparableAttentionKernels {
    // Indexed by DType.
    void (*forward_channels_first[3])(const SeparableAttentionSequence&);
    void (*forward_channels_last[3])(const SeparableAttentionSequence&);
    void (*backward_channels_first[3])(const SeparableAttentionSequence&);
    void (*backward_channels_last[3])(const SeparableAttentionSequence&);
};

// Floats of scratch that a sequence needs on any ISA: scores, one padded row after another (16 lanes at most), twice (the backward keeps
// ds beside s), and a vector of d.
inline int64_t separable_attention_scratch(int64_t dim, int64_t rows, int64_t columns) {
    const int64_t padded = (columns + 15) / 16 * 16;
    return 2 * rows * padded + (dim + 15) / 16 * 16;
}

}  // namespace mvit
