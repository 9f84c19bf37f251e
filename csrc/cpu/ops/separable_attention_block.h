// The attention half of a MobileViTv2 layer (arXiv 2206.02680, section 3), on channels-last maps:
//
//     y = x + W_o attention(W_qkv GroupNorm1(x))
//
// With xc = (x - mean) / sigma, two numbers an image, and gamma, beta folded into W' and b' (reference/separable_attention_block.py has the
// derivation):
//
//     s = softmax over each phase of w_q' xc         the query bias and mean are the same for every position and cancel
//     context = W_k' (sum_n s_n xc_n) + b_k'         the scores sum to 1: one vector a phase instead of a key for every position
//     y = x + W_o (relu(W_v' xc + b_v') * context) + b_o
//
// Three steps: (1) blocks of patches to partial sums of e^score xc a phase, by the rule of online softmax; (2) each context from the
// partial sums of its image, in their order; (3) blocks of rows through both products. No K tensor, no normalised copy, no unfolded copy.
//
// Floor: 4 M d^2 operations (of 8 M d^2 in the definition); x read three times, from cache where it fits, y written once.
#pragma once

#include "cpu/core/products.h"
#include "cpu/core/row_source.h"
#include "cpu/core/types.h"

namespace mvit {

struct SeparableAttentionBlockProblem {
    DType dtype;  // of x and y: dense (B, H, W, d)
    int64_t batch, dim, height, width;
    int64_t patch_h, patch_w;            // phase of (y, x): (y mod patch_h) patch_w + (x mod patch_w). (B, P, N, d): H = P, patch (P, 1)
    const float* query;                  // w_q': dim values
    const float *key_weight, *key_bias;  // the rest packed (core/tile.h): dim columns, depth dim; the key's for float32 whatever x is
    const void* value_weight;
    const float* value_bias;
    const void* out_weight;
    const float* out_bias;
    const Moments* moments;  // of x, one an image, or null: computed then
    float eps;
    const void* x;
    void* y;
    Moments* collected;  // of y, one an image, or null
};

Status separable_attention_block(const SeparableAttentionBlockProblem& problem, int threads);

// --- what isa/separable_attention_block.cpp implements ---

// The sums over some positions of one phase: of e^(score - top), and of e^(score - top) (x - mean.high) in the `dim` values behind.
struct Partial {
    float top, sum;
};

struct ScoreBlock {
    RowSource source;      // of the whole image
    int64_t first, count;  // patches of the map, each of which has one position of every phase
    int64_t width, patch_h, patch_w;
    const float* query;
    Partial* partials;  // a phase
    float* sums;        // a phase, scratch_stride(dim) apart
    float* scratch;     // score_scratch floats
};
// On maps of more than one block, the partial sums are at most a sixteenth of x.
inline int64_t patches_a_block(int64_t phases) { return phases < 4 ? 64 / phases : 16; }
inline int64_t most_patches(int64_t phases) { return round_up(patches_a_block(phases), 16); }  // to whole vectors
inline int64_t score_scratch(int64_t phases) { return 3 * most_patches(phases); }

struct ContextBlock {
    int64_t dim, phases, blocks, panel_begin, panel_end;
    float low, scale;         // of the mean, 1 / sigma
    const Partial* partials;  // [blocks][phases]
    const float* sums;        // [blocks][phases][scratch_stride(dim)]
    const float *weight, *bias;
    float* context;  // [phases][round_up(dim, panel)]
    float* scratch;  // phases * scratch_stride(dim) floats
};

struct ValueBlock {
    RowSource source;
    int64_t first, rows;  // positions of the map
    int64_t width, patch_h, patch_w;
    const void* value_weight;
    const float* value_bias;
    const void* out_weight;
    const float* out_bias;
    const float* context;
    void* y;
    float* scratch;  // value_scratch floats
};
inline int64_t value_scratch(int64_t rows, int64_t dim) { return rows * (2 * scratch_stride(dim) + product_floats(dim) + 1); }

struct SeparableAttentionBlockKernels {
    // By DType.
    void (*scores[3])(const ScoreBlock&);
    void (*values[3])(const ValueBlock&);
    void (*context)(const ContextBlock&);
};

}  // namespace mvit
