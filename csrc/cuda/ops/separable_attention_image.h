// The attention half of a MobileViTv2 layer, y = x + W_o attention(W_qkv GroupNorm(1)(x)), in one launch, of 16-bit maps that shared memory
// holds: cpu/ops/separable_attention_block.h has the formula. A block has one image, or several small ones; or, on sm_90, a cluster of up
// to eight blocks an image. They read x once, and meet twice, for the mean, variance and largest scores, and for the sums of the pixels:
//
//     scores    t[n] = sum_c w_q[c] x[n, c], and mean and variance of the image, in one pass over shared memory. Squares are of distances
//               from the mean of the first pixel, which is at most sqrt(pixels) standard deviations away: so float32 is enough
//     context   of each phase s = softmax_n(t / sigma), m = (sum_n s[n] x[n] - mean) / sigma, and W_k m + b_k, by tensor cores
//     values    v = relu((W_v x - mean sum(W_v)) / sigma + b_v) context       tensor cores; raw pixels are what they multiply
//     y         x + W_o v + b_o                                               tensor cores
//
// Means are subtracted from sums, so that an image's standard deviation has to be more than some 2^-17 of its mean: in 16 bits smaller ones
// are those of constant images, of which values have an error of 2^-20 mean / sigma.
//
// gamma and beta are inside of the weights. Values are rounded and packed in the registers in which the second product takes them as its
// rows: a warp has 32 pixels, from the first product to y. Weights come through a ring of stages, each 32 columns of one matrix; all of
// them lie behind each other in memory.
//
// Tensor cores give a lane columns 2 t and 2 t + 1 of two products of eight (mma_s8.cuh); these are columns 4 t .. 4 t + 3 of 16 (at place
// 8 p + 2 t + i of a tile is column 4 t + 2 p + i), so that a lane reads and writes four neighbours. What the values are to the second
// product, depth, has the same order.
//
// Floor: x read and y written once, 4 B T d^2 operations; beside them each value is converted and multiplied five times. Shared memory: of
// 16 pixels, columns and values of depth, a product of tensor cores takes 1 to 1.5 cycles of its 128 bytes.
#pragma once

#include "cpu/core/types.h"
#include "cuda/primitives/launched.h"

namespace mvit::cuda {

// Rows of `vectors`, each of d floats, with zeros up to a multiple of 64.
enum AttentionVector {
    attention_query,
    attention_key_bias,
    attention_value_bias,
    attention_value_sums,
    attention_out_bias,
    attention_vectors
};

struct SeparableAttentionImageProblem {
    DType dtype;  // f16 or bf16: of x, y and the tiles
    int64_t batch;
    int height, width, channels;  // channels: a multiple of 8
    int patch_height, patch_width;
    float eps;
    const void* x;         // (B, H, W, d), dense, aligned to 16 bytes
    void* y;               // likewise
    const uint8_t* tiles;  // W_k, W_v and W_o, (d, d) each, d rounded up to a multiple of 64: tiles of 16 columns and 16 of depth
                           // in the order of tensor cores (qfragments.h, in bytes); aligned to 16 bytes
    const float* vectors;  // AttentionVector; value_sums: of the rows of W_v as it is rounded; aligned to 16 bytes
    double* moments;       // (B, 2), mean and variance of y; or null
    uint8_t* exchange;     // scratch: bytes of `separable_attention_image_exchange` for each block of all clusters, aligned to 16
};

// How many blocks an image takes on a device; 0 where there is no kernel: for more than 256 channels, more than 16 phases, or maps that
// eight blocks do not hold.
int separable_attention_image_blocks(int channels, int height, int width, int patch_height, int patch_width, int device);
// Bytes that a block tells the others of an image, if it takes more than one.
int separable_attention_image_exchange(int channels);

// stream: a cudaStream_t of `device`.
Launched separable_attention_image(const SeparableAttentionImageProblem& problem, int device, void* stream);

}  // namespace mvit::cuda
