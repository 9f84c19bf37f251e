// The attention half of a MobileViTv2 layer on an int16 residual stream and bytes, on a GPU: cpu/core/qnorm.h, cpu/ops/qgemm.h and
// cpu/ops/qseparable_attention.h have what its parts compute, bit for bit.
//
//     1  context    n = qnorm(x),  q = the byte of w_q n,  the context of n by q of every phase of pixels, in bytes
//     2  key        the context's projection, a product of its own (ops/qgemm.h), to floats
//     3  values     y = x + W_o gate(W_v n, key)
//
// Each needs all of the one before it of an image. Normalised bytes never leave shared memory: 1 and 3 make them of the stream.
#pragma once

#include "cpu/core/qepilogue_types.h"
#include "cpu/core/qreal.h"
#include "cuda/primitives/launched.h"

namespace mvit::cuda {

// Floor of the context, of V = B H W d values: 2 V bytes read; a value costs 8 instructions to normalise (csrc/cuda/ops/..).
struct QAttentionContextProblem {
    int64_t batch;
    int height, width, channels;
    int patch_height, patch_width;
    const int16_t* x;       // (B, H, W, d), dense, aligned to 16 bytes; d a multiple of 8
    const int64_t* sums;    // (B, 2)
    double ratio, power, eps;  // of the norm: s / s_n, s s
    QByte norm;
    const uint8_t* query;   // w_q: d values of int8, zeros up to a multiple of 32; aligned to 4 bytes
    QChannels query_channels;
    const int32_t* table;   // 256 values in [0, 2^16], the first not 0
    double scale;           // s_n / s_context
    QByte byte;             // of the context
    uint8_t* context;       // (B, phases, d)
};

// Bytes of shared memory that a block of the context needs.
int qattention_context_shared(int channels, int points);

// stream: a cudaStream_t of `device`.
Launched qattention_context(const QAttentionContextProblem& problem, int device, void* stream);

}  // namespace mvit::cuda
