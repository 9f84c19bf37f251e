// The attention half of a MobileViTv2 layer on a GPU, y = x + W_o attention(W_qkv GroupNorm(1)(x)), in three launches, of 16-bit floats.
// cpu/ops/separable_attention_block.h has the formula and why it takes no keys, no normalised copy and no query bias:
//
//     1  scores     t[n] = sum_c gamma[c] w_q[c] x[n, c]     (mean, beta and the query's bias move all scores of a softmax by the same)
//                   mean and M2 of the tile
//     2  context    mean and 1 / sigma of the image; of one phase of it: s = softmax_n(t / sigma),  m = sum_n s[n] x[n],
//                   context = W_k (gamma (m - mean) / sigma + beta) + b_k
//     3  values     y = x + W_o (relu(W_v xn + b_v) context) + b_o,   xn = gamma (x - mean) / sigma + beta
//
// Each needs all of the one before it: scores the map's variance, values the context. The third is two products, one after the other, of 32
// pixels: what the first gives is the second's operand, and never leaves shared memory. Weights lie in the order of tensor cores
// (qfragments.h, in bytes) and come through a ring of stages, those of W_o behind those of W_v. Products are sums in float32; xn and the
// values are rounded to 16 bits between, as everything is in plain torch.
//
// Means: of a tile from its own sums, the second time around its mean; of an image by Chan's formula in float64, in a fixed order.
//
// Floor: 4 B T d^2 operations; x read three times (twice from the caches), y written once.
#pragma once

#include "cpu/core/types.h"
#include "cuda/primitives/launched.h"

namespace mvit::cuda {

inline constexpr int attention_tile = 32;  // pixels of the first and third launch
inline constexpr int attention_most_channels = 512;

struct SeparableAttentionBlockProblem {
    DType dtype;  // f16 or bf16: of x, y and the tiles
    int64_t batch;
    int height, width, channels;
    int patch_height, patch_width;
    float eps;
    const void* x;                           // (B, H, W, d), dense, aligned to 16 bytes
    void* y;                                 // likewise
    const float *query, *gamma, *beta;       // (d,); query: gamma w_q
    const float *key, *key_bias;             // (d, d), (d,)
    const uint8_t *value_tiles, *out_tiles;  // (d, d) in the order of tensor cores
    const float *value_bias, *out_bias;      // (d,)
    const double* moments;                   // (B, 2), mean and variance; or null
    // Scratch.
    float* scores;    // (B, H W)
    double* partial;  // (B, ceil(H W / 32), 2)
    float* context;   // (B, phases, d)
    float* normal;    // (B, 2): mean, 1 / sigma
};

// stream: a cudaStream_t of `device`.
Launched separable_attention_block(const SeparableAttentionBlockProblem& problem, int device, void* stream);

}  // namespace mvit::cuda
