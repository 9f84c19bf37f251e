// Softmax attention inside pixel phases on bytes, on a GPU (sm_80 and up): cpu/ops/qpatch_attention.h says what it computes.
//
// A warp has 32 queries of a head, and its block all keys and values of the phase in shared memory. It goes over the keys twice: for the
// largest score of each query, and, with the same products once more, for the weights. What lies between the products stays in registers.
//
// Scores are products of bytes by bytes, and z_q is in what they begin with: 1.5 2^23 - z_q sum_c k[m, c], as the bits of a float. As |S|
// is at most 64 255 255 < 2^22, with up to 64 channels and 0 <= z_q <= 255, the bits of a finished score are those of the float 1.5 2^23 +
// S. Nothing is converted, and differences of such floats are exact.
//
// The table. x = d (f / 256) is held in [0, 1] by the multiplication itself, and 1.5 2^15 is added, whose last place is 1 / 256: the low
// bits are rint(256 x), ties to even. f / 256 is exact, and nothing is denormal (2^-64 <= f <= 2^64), so that 256 x is d f rounded once.
// What is above 255 may come to 256, where the table has its last entry once more. Every lane has a column of words, that 32 lookups fall
// into 32 banks, with the entry in the highest byte: read as a byte, as a half and as a word, it is where the first, second and fourth of
// four weights lie in their word; the third is shifted.
//
// The second product takes weights as they are. Of a query's scores with 32 keys, thread t of four has columns 2 t and 2 t + 1 of four
// products of 8 keys, and as rows of the next product bytes 4 t .. 4 t + 3 of each 16 (mma_s8.cuh). So byte 4 t + i of 16 in a row of
// values is of key 8 (i / 2) + 2 t + i % 2. Values are turned when they are loaded, rows of a channel each, and of 16 rows, row 8 (i / 2) +
// 2 t + i % 2 is channel 4 t + i: a thread gets four neighbouring channels. The last row is 1 for every key, and adds up the weights.
//
// Floor of a head: 6 N^2 c operations of tensor cores; and per score 10 instructions of a lane, with 36 channels on sm_90a: of 32 queries
// by 32 keys, 32 scores a thread, 70 for the largest and 247 for weights and sums. Of a score's 5.5 between the products, one is the
// lookup. Shared memory has its part of it, too: 92 cycles for such 1024 scores, 32 of lookups and 32 of keys, where four schedulers issue
// in 79. Before and after, a warp has some 1400 instructions. qkv is read once, by phases of more than 256 pixels once for each 256, and y
// written once.
#pragma once

#include "cpu/core/qreal.h"
#include "cuda/primitives/launched.h"

namespace mvit::cuda {

struct QPatchAttentionProblem {
    int64_t batch, dim, heads;  // heads divides dim; heads of at most 64 channels
    int64_t height, width, patch_h, patch_w;
    const uint8_t* qkv;  // 3 dim channels side by side: q, k, v
    int64_t image_stride, row_stride, pixel_stride;
    int32_t q_zero_point;  // 0 .. 255
    int32_t v_zero_point;
    float score_steps, ratio;  // f, g
    const uint8_t* table;      // 256 bytes, the first not 0
    QByte byte;
    uint8_t* y;  // (B, H, W, dim), dense
};

// Bytes of shared memory that a block needs, for phases of `pixels` pixels and heads of `depth` channels.
int qpatch_attention_shared(int heads, int pixels, int depth);

// stream: a cudaStream_t of `device`.
Launched qpatch_attention(const QPatchAttentionProblem& problem, int device, void* stream);

}  // namespace mvit::cuda
