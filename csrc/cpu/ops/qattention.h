// attention (ops/attention.h) from bytes to bytes (mvit_kernels/reference/qattention.py). In head h of H
//
//     S[h, n, m] = sum_c (q[h, n, c] - z_q) (k[h, m, c] - z_k)                                exact
//     l[h, n, m] = bias[h, n, m] + sum_g mix[h, g] float(S[g, n, m])                          or + steps float(S[h, n, m])
//     i[h, n, m] = rint(min(max_j l[h, n, j] - l[h, n, m], 255)),   e = table[i]              bytes, 255 for the largest
//
// without mixed weights
//
//     A[h, n, c] = sum_m e[h, n, m] (v[h, m, c] - z_v),   t = A (ratio / float(sum_m e))      sums exact
//
// and with them
//
//     w[h, n, m] = shift[h] + sum_g mix_weights[h, g] (float(e[g, n, m]) (1 / float(sum_m e[g, n, m])))
//     a[h, n]    = max(max_m |w[h, n, m]|, 2^-100),   u = rint(w (255 / a))                   -255 .. 255
//     A[h, n, c] = sum_m u[h, n, m] (v[h, m, c] - z_v),   t = A (a (ratio / 255))             sums exact
//
//     y[h, n, c] = rint(min(max(t, low), high)) + z_y
//
// Sums over g begin with what stands before them, g = 0 first; every operation is rounded once. mix, steps and bias are in steps of the
// table, 40 to a factor of e; ratio = float32(s_v / s_y).
//
// Whole numbers below 2^24 are exact in float32, and so are their sums, in any order: products of differences of bytes are multiplied by
// the tiles of floats. That needs c max|q - z_q| max|k - z_k| < 2^24: up to 258 channels with zero-points that are bytes. Sums over keys
// are carried on in int32 after so many, 255 M max|v - z_v| < 2^31, and those of e stay below 2^24: up to 33025 keys.
//
// Floor: that of attention.
#pragma once

#include "cpu/core/qreal.h"
#include "cpu/core/tile.h"
#include "cpu/core/types.h"

namespace mvit {

// Channels of a query, a key, a value or a result lie side by side, head after head; strides from image to image and from one to the next.
struct QAttentionProblem {
    int64_t batch, heads, queries, keys;
    int64_t depth, value_depth;  // of a head
    const uint8_t *q, *k, *v;
    int64_t q_stride[2], k_stride[2], v_stride[2];
    int32_t q_zero_point, k_zero_point, v_zero_point;
    const float* bias;    // (heads, keys, bias_stride), queries side by side; or null
    int64_t bias_stride;  // `queries` to whole panels
    float steps;
    const float *mix, *mix_weights;  // (heads, heads), or null
    const float* shift;              // (heads,), or null
    float ratio;
    const uint8_t* table;  // (256,)
    QByte out;             // without its inverse
    uint8_t* y;
    int64_t y_stride[2];
};

inline constexpr int64_t qattention_most_heads = 32;

// How many keys at once: all, or as many as stay exact for any zero-point that is a byte.
inline constexpr int64_t qattention_block(int64_t keys) { return keys <= 258 ? keys : 256; }

Status qattention(const QAttentionProblem& problem, int threads);

// --- what isa/qattention.cpp implements ---

// Where what a panel of queries needs lies in its scratch, in floats.
struct QAttentionScratch {
    int64_t key_stride, value_stride;  // of rows of K, of V^T
    int64_t query;                     // Q^T of a head
    int64_t scores;                    // of the heads of a task: S, then l, then e, then u
    int64_t keys, values;              // K and V^T of a head
    int64_t result;                    // A^T of a head
    int64_t sums;                      // likewise, int32, where there are several blocks of keys
    int64_t factors;                   // of every head and query: 1 / sum of e, what A is multiplied by
    int64_t table;                     // as floats
    int64_t zeros, size;
};

struct QAttentionTask {
    const QAttentionProblem* problem;
    int64_t image, first_head, last_head;  // all heads where they are mixed
    int64_t begin, end;                    // a panel of queries
    float* scratch;
    const QAttentionScratch* layout;
};

struct QAttentionKernels {
    void (*run)(const QAttentionTask&);
};

}  // namespace mvit
