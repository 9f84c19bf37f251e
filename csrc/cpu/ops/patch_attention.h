// Multi-head softmax attention inside each pixel phase of a map (MobileViT, arXiv 2110.02178, section 3.1), on the map itself. q, k and v
// have d channels each, H heads of c = d / H; pixel (y, x) belongs to phase (y mod patch_h) patch_w + x mod patch_w, of N pixels. In each
// phase and head
//
//     y[n] = sum_m e[n, m] v[m] / sum_m e[n, m],   e[n, m] = 2^(a q[n].k[m] - t[n]),   t[n] = max_m a q[n].k[m],   a = scale log2(e)
//
// Queries stand in the lanes. For a panel of queries, a Q^T (c x panel) is a packed panel of core/tile.h, so the scores K (a Q^T) come out
// as a panel of N rows, the softmax of a query goes down its lane, and y^T = V^T e multiplies by that panel in turn. No sum crosses
// lanes, and neither N nor c is padded. The price is the transposition of q, v and y, in registers.
//
// Where bfloat16 is multiplied as such, queries stand in rows (core/attention_bf16.h).
//
// Keys are taken in blocks: where a later block has a larger t, what came before is multiplied by 2^(t before - t) (Milakov and Gimelshein,
// arXiv 1805.02867). So scratch does not grow with N, and no chain of additions is longer than a block or the number of blocks.
//
// Gradient: for g = dL/dy, with p = e / sum e, dp[n, m] = g[n].v[m] and ds = p (dp - sum_m p dp),
//
//     dq[n] = scale sum_m ds[n, m] k[m]     dk[m] = scale sum_n ds[n, m] q[n]     dv[m] = sum_n p[n, m] g[n]
//
// p is computed again. Up to patch_attention_backward_keys pixels that takes 5 products of N^2 c, beyond 7: the sums over m come first.
// Scratch holds what the head has of q, g and dq in the phase, about 5 N c floats.
//
// Floor: 4 N^2 c H P B operations, P = patch_h patch_w, at the pace of the multiply-adds (117 GFLOP/s a core with AVX-512 of Zen 4), and
// N^2 H P B exponentials (8 cycles for 16); 2.5 times as many operations for the gradient. q, k and v are read once and y is written once,
// which counts for little beside it.
#pragma once

#include "cpu/core/attention_scratch.h"
#include "cpu/core/tile.h"
#include "cpu/core/types.h"

namespace mvit {

// Maps whose channels lie side by side; strides in elements from image to image, row to row, and pixel to pixel.
struct PatchAttentionProblem {
    DType dtype;
    int64_t batch, dim, heads;  // heads divides dim
    int64_t height, width, patch_h, patch_w;
    float scale;
    const void* qkv;  // 3 dim channels: q, k, v
    int64_t qkv_stride[3];
    void* y;  // dim channels: the output, or its gradient in the backward
    int64_t y_stride[3];
    void* dqkv;  // backward only: the gradient of qkv
    int64_t dqkv_stride[3];
};

Status patch_attention(const PatchAttentionProblem& problem, int threads);
Status patch_attention_backward(const PatchAttentionProblem& problem, int threads);

// --- what isa/patch_attention.cpp implements: some queries of one phase and head, or the gradient of all of them ---

inline constexpr int64_t patch_attention_backward_keys = 256;

struct PatchAttentionBackwardScratch {
    int64_t channels, key_stride, value_stride, row_stride;
    int64_t queries, dys, query_rows, dy_rows, dqueries;  // of all pixels, a panel after another: a Q^T, G^T, scale Q, G, dQ^T
    int64_t scores, dp;                                   // of a block of keys for a panel
    int64_t keys, values, keys_across, dkeys, dvalues;    // of a block: K, V, K^T, dK, dV
    int64_t tops, sums, means;                            // of every query: t, sum of e, sum of e dp
    int64_t times, zeros, size;
};

struct PatchAttentionTask {
    const void *q, *k, *v;  // of pixel 0 of the phase
    void* y;                // const in the backward
    void *dq, *dk, *dv;
    int64_t qkv_row, qkv_column, y_row, y_column, dqkv_row, dqkv_column;  // strides from pixel to pixel of the phase
    int64_t columns, pixels;                                              // of the phase: in a row, in all
    int64_t depth;                                                        // c
    int64_t begin, end;                                                   // queries; all of them in the backward
    float scale, dscale;                                                  // a, scale
    float* scratch;
    const AttentionScratch* layout;  // or backward_layout
    const PatchAttentionBackwardScratch* backward_layout;
};

struct PatchAttentionKernels {
    // Indexed by DType.
    void (*forward[3])(const PatchAttentionTask&);
    void (*backward[3])(const PatchAttentionTask&);
};

}  // namespace mvit
