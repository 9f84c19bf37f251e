// Where what softmax attention needs lies in its scratch, in floats (core/attention.h).
#pragma once

#include <cstdint>

#include "cpu/core/tile.h"

namespace mvit {

inline constexpr int64_t attention_keys = 128;     // of a block: its scores for a panel of queries take half of the first cache
inline constexpr int64_t attention_queries = 256;  // of a task at most: keys are packed once for all of them

// Places of consecutive arrays.
struct Places {
    int64_t size = 0;
    int64_t operator()(int64_t floats) {
        const int64_t start = size;
        size += floats;
        return start;
    }
};

inline constexpr int64_t at_most(int64_t n, int64_t most) { return n < most ? n : most; }

// Of packed keys, which are read whole rows; see scratch_stride.
inline constexpr int64_t key_row_stride(int64_t channels) { return channels % 512 == 0 ? channels + 16 : channels; }

// Of bfloat16 where it is multiplied as such (core/attention_bf16.h).
inline constexpr int64_t attention_bf16_keys = 256;        // of a block
inline constexpr int64_t attention_fewest_bf16_keys = 32;  // for fewer, lines are too empty

struct AttentionBf16Scratch {
    int64_t value_columns;                 // of a head, to whole vectors
    int64_t block;                         // keys, to whole lines of 64 bytes
    int64_t query, keys, values;           // a band of Q, K^T and V of a block: bfloat16
    int64_t scores, score_stride;          // of two bands for a block: q.k, or a q.k + bias where there is one
    int64_t e, e_stride;                   // of a band for a block: bfloat16
    int64_t results, tops, sums, factors;  // y before the division, t and the sum of e of every query; a number for each row of a band
    int64_t size;
};

struct AttentionScratch {
    int64_t channels, value_channels;  // of a head, to whole vectors of any ISA
    int64_t key_stride, value_stride;  // of rows of K, of V^T
    int64_t queries;                   // a Q^T, a panel after another
    int64_t results;                   // y^T before the division, a panel after another
    int64_t part;                      // y^T of a block of keys for a panel
    int64_t scores;                    // e of a block of keys for a panel
    int64_t keys, values;              // K and V^T of a block
    int64_t tops, sums, factor;        // t and the sum of e of every query, 2^(t before - t) of a panel
    int64_t zeros, size;
    AttentionBf16Scratch bf16;  // in the same memory
};

// For `queries` queries of a head of `depth` channels, whose values have `value_depth`.
AttentionScratch attention_scratch(int64_t depth, int64_t value_depth, int64_t keys, int64_t queries);

// Of a task: whole panels, about equally many, where there are so many sequences (heads of images) of `queries` each. A query has the same
// bits in any cut.
int64_t queries_a_task(int64_t sequences, int64_t queries);

}  // namespace mvit
