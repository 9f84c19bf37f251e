// The attention half of a MobileViTv2 layer on an int16 residual stream and bytes, on a GPU: cpu/core/qnorm.h, cpu/ops/qgemm.h and
// cpu/ops/qseparable_attention.h have what its parts compute, bit for bit.
//
//     1  context    n = qnorm(x),  q = the byte of w_q n,  the context of n by q of every phase of pixels, in bytes
//     2  key        its projection k, a product of its own (ops/qgemm.h), to floats
//     3  values     y = x + W_o gate(v, k),  v = the bytes of W_v n
//
// Each needs all of the one before it of an image. Normalised bytes are made of the stream twice, by 1 and by 3, and never leave the
// multiprocessor, nor do scores, values and what the gate gives.
#pragma once

#include "cpu/core/qepilogue_types.h"
#include "cpu/core/qreal.h"
#include "cuda/ops/qpair.h"
#include "cuda/primitives/launched.h"

namespace mvit::cuda {

struct QAttentionMap {
    int64_t batch;
    int height, width, channels, patch_height, patch_width;
    const int16_t* x;  // (B, H, W, d), dense
    QPairNorm norm;    // with sums
};

// A block is a phase of an image, with all of its bytes in shared memory. Scores are a product of 16 pixels with one column on tensor
// cores, and the sums over pixels one of 16 channels: exponentials have 17 bits, and are three columns of seven bits each.
//
// Floor, of a phase of N pixels: 2 N d bytes read; per value 8 instructions for its byte, 3 for where it lies, and 1 for the score and 1
// for the sum; and 100 for each channel of 16 lanes, which is a division of float64. That is some 13 a value where N is 256, where memory
// binds as well, and 30 where it is 16.
struct QAttentionContextProblem {
    QAttentionMap map;     // d a multiple of 8, x aligned to 16 bytes
    const uint8_t* query;  // w_q: d values of int8, zeros up to a multiple of 32; aligned to 16 bytes
    QChannels query_channels;
    const int32_t* table;  // 256 values in [0, 2^16], the first not 0
    double scale;          // s_n / s_context
    QByte byte;            // of the context
    uint8_t* context;      // (B, phases, d)
};

// A block is the pixels of its warps, each of which has some of one phase: qpair.cuh has the two products. Weights, `slices`
// (mvit_kernels/ops/qpair.py makes them), are those of qpair.cuh, whose rows of numbers are init and scale of the values.
//
// Between the products, with r = s_v / s_gate: v - z_v, where it is positive, is rint(min(max(sum scale, max(-z_v, 0)), max(most - z_v,
// 0))) since the bounds are integers; times m = k r, as a byte.
//
// Floor, of P pixels: 4 P d bytes of the stream, read and written, and 2 P d again as the residual; 4 P d^2 operations of the tensor cores;
// per value some 20 instructions of the stream's and, with the products, 15 to 19 between.
struct QAttentionValuesProblem {
    QAttentionMap map;
    const float* key;       // (B, phases, d)
    float ratio;            // s_v / s_gate
    float v_low, v_high;    // of v without its zero-point, and where it is positive
    QByte byte;             // of the gate
    const uint8_t* slices;  // aligned to 16 bytes
    QEpilogue out;          // y and residual dense, int16: (B, H, W, d)
    int64_t* parts;         // (B, qattention_pieces, 2): sum and sum of squares of pieces of y; or null
};

// Bytes of shared memory that a block of the context needs.
int64_t qattention_context_shared(int channels, int64_t points);

// How many pieces an image of that many phases and points of each has; 0 where there is no kernel for so many channels.
int64_t qattention_pieces(int channels, int64_t phases, int64_t points);

// stream: a cudaStream_t of `device`.
Launched qattention_context(const QAttentionContextProblem& problem, int device, void* stream);
Launched qattention_values(const QAttentionValuesProblem& problem, int device, void* stream);

}  // namespace mvit::cuda
