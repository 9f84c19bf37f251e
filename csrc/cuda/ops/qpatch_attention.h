// Softmax attention inside pixel phases on bytes, on a GPU (sm_80 and up): cpu/ops/qpatch_attention.h says what it computes.
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
