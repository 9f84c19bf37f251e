// Multi-head softmax attention of any queries, keys and values, with what EfficientFormer (arXiv 2206.01191), EfficientFormerV2 (arXiv
// 2212.08059, section 3.2) and Mobile-Former (arXiv 2108.05895) make of it. In head h of H
//
//     s[h, n, m] = scale q[h, n].k[h, m]                         q, k: depth channels a head
//     l[h, n, m] = sum_g mix_scores[h, g] s[g, n, m] + bias[h, n, m]
//     p[h, n, m] = softmax over m of l[h, n, m]
//     w[h, n, m] = sum_g mix_weights[h, g] p[g, n, m] + mix_bias[h]
//     y[h, n]    = sum_m w[h, n, m] v[h, m]                      v: value_depth channels a head
//
// The two mixtures ("talking heads", arXiv 2003.02436) are left out where their matrices are null: a task is then some queries of one head,
// as ops/patch_attention.h describes it, in blocks of keys. With them, a task is a panel of queries of all heads, whose scores for all keys
// lie in scratch: H N 32 floats. bias is what is added behind the mixture; a term of the scores that is the same for all keys needs none,
// as softmax does not see it.
//
// Floor: 2 H N M (depth + value_depth) operations at the pace of the multiply-adds, 4 H^2 N M of the mixtures, and H N M exponentials (8
// cycles for 16).
#pragma once

#include "cpu/core/attention_scratch.h"
#include "cpu/core/types.h"

namespace mvit {

// Channels of a query, a key, a value or a result lie side by side, head after head; strides in elements from image to image and from one
// to the next.
struct AttentionProblem {
    DType dtype;
    int64_t batch, heads, queries, keys;
    int64_t depth, value_depth;  // of a head
    float scale;
    const void *q, *k, *v;
    int64_t q_stride[2], k_stride[2], v_stride[2];
    // (heads, keys, bias_stride): log2(e) bias, its queries side by side; or null. bias_stride is `queries` to whole panels.
    const float* bias;
    int64_t bias_stride;
    const float *mix_scores, *mix_weights;  // (heads, heads), or null
    const float* mix_bias;                  // (heads,), beside mix_weights, or null
    void* y;
    int64_t y_stride[2];
};

Status attention(const AttentionProblem& problem, int threads);

// --- what isa/attention.cpp implements ---

inline constexpr int64_t most_mixed_heads = 32;

// Where what a panel of queries of all heads needs lies in its scratch, in floats.
struct MixedScratch {
    int64_t channels, value_channels, key_stride, value_stride;  // as of AttentionScratch
    int64_t query;                                               // a Q^T of a head
    int64_t scores;                                              // of all heads: s, then l, then e, then w
    int64_t keys, values;                                        // K and V^T of a head
    int64_t result;                                              // y^T of a head
    int64_t shares;                                              // 1 / sum of e of every head and query
    int64_t ones, zeros, size;
};

struct AttentionTask {
    const AttentionProblem* problem;
    int64_t image, head;  // which the queries are of; mixed: of all heads
    int64_t begin, end;   // queries; mixed: a panel
    float scale;          // log2(e) times that of the problem
    float* scratch;
    const AttentionScratch* layout;  // of one head
    const MixedScratch* mixed;       // or of all
};

struct AttentionKernels {
    // Indexed by DType.
    void (*alone[3])(const AttentionTask&);
    void (*mixed[3])(const AttentionTask&);
};

}  // namespace mvit
