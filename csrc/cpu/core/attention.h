// Softmax attention of some queries over a sequence of keys, the whole of it as ops/patch_attention.h describes. Internal linkage, like
// simd.h.
#pragma once

#include "cpu/core/attention_bf16.h"
#include "cpu/core/attention_parts.h"
#include "cpu/core/isa.h"

namespace mvit {

extern const TileKernels MVIT_ISA_SYMBOL(tile);

namespace {

// Scores of `keys` more keys for a panel of queries become e. top: t, sum: of e; both are carried on, and factor is 2^(t before - t).
inline void softmax(float* scores, int64_t keys, int columns, float* top, float* sum, float* factor) {
    const F32 finite = F32::all(-__FLT_MAX__);
    for (int j = 0; j < columns; j += W) {
        const F32 before = F32::load(top + j), now = largest(scores + j, keys, before), shift = max(finite, now);
        F32 even = F32::all(0.0f), odd = even;
        float* at = scores + j;
        float* const end = at + keys / 2 * 2 * panel;
        for (; at != end; at += 2 * panel) {
            const F32 e0 = weight(F32::load(at) - shift), e1 = weight(F32::load(at + panel) - shift);
            e0.store(at);
            e1.store(at + panel);
            even = even + e0;
            odd = odd + e1;
        }
        if (keys % 2 != 0) {
            const F32 e = weight(F32::load(at) - shift);
            e.store(at);
            even = even + e;
        }
        const F32 shrunk = weight(before - shift);
        fma(F32::load(sum + j), shrunk, even + odd).store(sum + j);
        now.store(top + j);
        shrunk.store(factor + j);
    }
}

template <class T>
void attend(const Attending& s) {
#if defined(MVIT_ISA_AVX512BF16)
    if constexpr (is_bf16<T>)
        if (s.keys >= attention_fewest_bf16_keys && s.scale > 0.0f) return attend_bf16(s);
#endif
    const TileKernels& tiles = MVIT_ISA_SYMBOL(tile);
    const AttentionScratch& at = *s.layout;
    float* const queries = s.scratch + at.queries;
    float* const results = s.scratch + at.results;
    float* const part = s.scratch + at.part;
    float* const scores = s.scratch + at.scores;
    float* const keys = s.scratch + at.keys;
    float* const values = s.scratch + at.values;
    float* const tops = s.scratch + at.tops;
    float* const sums = s.scratch + at.sums;
    float* const factor = s.scratch + at.factor;
    float* const zeros = s.scratch + at.zeros;
    const int64_t count = panels(s.end - s.begin), size = at.channels * panel, result_size = at.value_channels * panel;

    fill(zeros, panel, 0.0f);
    fill(tops, count * panel, -__builtin_inff());
    fill(sums, count * panel, 0.0f);
    each_query_panel(s.begin, s.end, [&](int64_t i, int64_t first, int width) {
        pack_transposed<T>(s.q_at, first, first + width, s.depth, s.q, s.scale, queries + i * size, panel);
    });
    for (int64_t key = 0; key < s.keys; key += attention_keys) {
        const int64_t block = s.keys - key < attention_keys ? s.keys - key : attention_keys;
        pack_rows<T>(s.k_at, key, key + block, s.depth, s.k, 1.0f, keys, at.key_stride, panel);
        pack_transposed<T>(s.v_at, key, key + block, s.value_depth, s.v, 1.0f, values, at.value_stride);
        each_query_panel(s.begin, s.end, [&](int64_t i, int64_t first, int width) {
            const int columns = static_cast<int>(round_up(width, W));
            float* const result = results + i * result_size;
            const float* const init = s.bias ? s.bias + key * s.bias_stride + first : zeros;
            tiles.multiply(keys, at.key_stride, block, queries + i * size, s.depth, width, init, s.bias ? s.bias_stride : 0, scores, panel);
            softmax(scores, block, columns, tops + i * panel, sums + i * panel, factor);
            tiles.multiply(values, at.value_stride, s.value_depth, scores, block, width, zeros, 0, key == 0 ? result : part, panel);
            if (key == 0) return;
            for (int64_t c = 0; c < s.value_depth * panel; c += panel)
                for (int j = 0; j < columns; j += W)
                    fma(F32::load(result + c + j), F32::load(factor + j), F32::load(part + c + j)).store(result + c + j);
        });
    }
    for (int64_t i = 0; i < count * panel; i += W) inverse(F32::load(sums + i), F32::load(tops + i)).store(sums + i);
    each_query_panel(s.begin, s.end, [&](int64_t i, int64_t first, int width) {
        unpack_transposed<T>(s.y_at, first, first + width, s.value_depth, results + i * result_size, sums + i * panel, s.y);
    });
}

}  // namespace
}  // namespace mvit
