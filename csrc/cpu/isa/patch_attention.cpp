// Attention of some queries of one phase and head, and its gradient; formulas and the plan in ops/patch_attention.h. Compiled once an ISA.
#include "cpu/ops/patch_attention.h"

#include "cpu/core/attention.h"

namespace mvit {
namespace {

using Task = PatchAttentionTask;

template <class T>
void forward(const Task& s) {
    const Pixels from{s.columns, s.qkv_row, s.qkv_column}, to{s.columns, s.y_row, s.y_column};
    attend<T>(
        {s.q, s.k, s.v, s.y, from, from, from, to, s.pixels, s.depth, s.depth, s.begin, s.end, s.scale, nullptr, 0, s.scratch, s.layout});
}

// t, the sum of e and the sum of e dp of a panel of queries, carried on over `keys` more keys.
void statistics(const float* scores, const float* dp, int64_t keys, int columns, float* top, float* sum, float* mean) {
    const F32 finite = F32::all(-__FLT_MAX__);
    for (int j = 0; j < columns; j += W) {
        const F32 before = F32::load(top + j), now = largest(scores + j, keys, before), shift = max(finite, now);
        F32 weights = F32::all(0.0f), products = weights;
        for (int64_t i = j; i < keys * panel; i += panel) {
            const F32 e = weight(F32::load(scores + i) - shift);
            weights = weights + e;
            products = fma(e, F32::load(dp + i), products);
        }
        const F32 shrunk = weight(before - shift);
        fma(F32::load(sum + j), shrunk, weights).store(sum + j);
        fma(F32::load(mean + j), shrunk, products).store(mean + j);
        now.store(top + j);
    }
}

// Scores become p, and dp becomes ds.
void score_gradients(float* scores, float* dp, int64_t keys, int columns, const float* top, const float* sum, const float* mean) {
    const F32 finite = F32::all(-__FLT_MAX__);
    for (int j = 0; j < columns; j += W) {
        const F32 highest = F32::load(top + j), shift = max(finite, highest);
        const F32 share = inverse(F32::load(sum + j), highest), centre = F32::load(mean + j) * share;
        for (int64_t i = j; i < keys * panel; i += panel) {
            const F32 p = weight(F32::load(scores + i) - shift) * share;
            p.store(scores + i);
            (p * (F32::load(dp + i) - centre)).store(dp + i);
        }
    }
}

template <class T>
void backward(const Task& s) {
    const TileKernels& tiles = MVIT_ISA_SYMBOL(tile);
    const PatchAttentionBackwardScratch& at = *s.backward_layout;
    const Pixels from{s.columns, s.qkv_row, s.qkv_column}, gradient{s.columns, s.y_row, s.y_column};
    const Pixels to{s.columns, s.dqkv_row, s.dqkv_column};
    float* const queries = s.scratch + at.queries;
    float* const dys = s.scratch + at.dys;
    float* const query_rows = s.scratch + at.query_rows;
    float* const dy_rows = s.scratch + at.dy_rows;
    float* const dqueries = s.scratch + at.dqueries;
    float* const scores = s.scratch + at.scores;
    float* const dp = s.scratch + at.dp;
    float* const keys = s.scratch + at.keys;
    float* const values = s.scratch + at.values;
    float* const keys_across = s.scratch + at.keys_across;
    float* const dkeys = s.scratch + at.dkeys;
    float* const dvalues = s.scratch + at.dvalues;
    float* const tops = s.scratch + at.tops;
    float* const sums = s.scratch + at.sums;
    float* const means = s.scratch + at.means;
    float* const times = s.scratch + at.times;
    float* const zeros = s.scratch + at.zeros;
    const int64_t count = panels(s.pixels), size = at.channels * panel, rows_size = panels(s.depth) * panel * panel;

    fill(zeros, panel, 0.0f);
    fill(times, panel, s.dscale);
    fill(tops, count * panel, -__builtin_inff());
    fill(sums, count * panel, 0.0f);
    fill(means, count * panel, 0.0f);
    fill(dqueries, count * size, 0.0f);
    const auto each_panel = [&](const auto& body) { each_query_panel(0, s.pixels, body); };
    each_panel([&](int64_t i, int64_t first, int width) {
        const int64_t end = first + width;
        pack_transposed<T>(from, first, end, s.depth, s.q, s.scale, queries + i * size, panel);
        pack_transposed<T>(gradient, first, end, s.depth, s.y, 1.0f, dys + i * size, panel);
        pack_rows<T>(from, first, end, s.depth, s.q, s.dscale, query_rows + i * rows_size, panel, panel * panel);
        pack_rows<T>(gradient, first, end, s.depth, s.y, 1.0f, dy_rows + i * rows_size, panel, panel * panel);
    });
    const auto each_block = [&](const auto& body) {
        for (int64_t key = 0; key < s.pixels; key += patch_attention_backward_keys) {
            const int64_t block = s.pixels - key < patch_attention_backward_keys ? s.pixels - key : patch_attention_backward_keys;
            pack_rows<T>(from, key, key + block, s.depth, s.k, 1.0f, keys, at.key_stride, panel);
            pack_rows<T>(from, key, key + block, s.depth, s.v, 1.0f, values, at.key_stride, panel);
            body(key, block);
        }
    };
    const auto products = [&](int64_t i, int64_t block, int width) {
        tiles.multiply(keys, at.key_stride, block, queries + i * size, s.depth, width, zeros, 0, scores, panel);
        tiles.multiply(values, at.key_stride, block, dys + i * size, s.depth, width, zeros, 0, dp, panel);
    };
    const auto summarize = [&](int64_t i, int64_t block, int width) {
        statistics(scores, dp, block, static_cast<int>(round_up(width, W)), tops + i * panel, sums + i * panel, means + i * panel);
    };
    const bool once = s.pixels <= patch_attention_backward_keys;  // then what is summarized is still there to be used
    if (!once)
        each_block([&](int64_t, int64_t block) {
            each_panel([&](int64_t i, int64_t, int width) {
                products(i, block, width);
                summarize(i, block, width);
            });
        });
    each_block([&](int64_t key, int64_t block) {
        pack_transposed<T>(from, key, key + block, s.depth, s.k, 1.0f, keys_across, at.value_stride);
        fill(dkeys, block * at.row_stride, 0.0f);
        fill(dvalues, block * at.row_stride, 0.0f);
        each_panel([&](int64_t i, int64_t, int width) {
            products(i, block, width);
            if (once) summarize(i, block, width);
            score_gradients(scores, dp, block, static_cast<int>(round_up(width, W)), tops + i * panel, sums + i * panel, means + i * panel);
            float* const dq = dqueries + i * size;
            tiles.multiply(keys_across, at.value_stride, s.depth, dp, block, width, dq, panel, dq, panel);
            for (int64_t c = 0; c < s.depth; c += panel) {
                const int channels = s.depth - c < panel ? static_cast<int>(s.depth - c) : panel;
                const int64_t rows = i * rows_size + c * panel;
                tiles.multiply(dp, panel, block, query_rows + rows, width, channels, dkeys + c, at.row_stride, dkeys + c, at.row_stride);
                tiles.multiply(scores, panel, block, dy_rows + rows, width, channels, dvalues + c, at.row_stride, dvalues + c,
                               at.row_stride);
            }
        });
        unpack_rows<T>(to, key, key + block, s.depth, dkeys, at.row_stride, s.dk);
        unpack_rows<T>(to, key, key + block, s.depth, dvalues, at.row_stride, s.dv);
    });
    each_panel([&](int64_t i, int64_t first, int width) {
        unpack_transposed<T>(to, first, first + width, s.depth, dqueries + i * size, times, s.dq);
    });
}

}  // namespace

extern const PatchAttentionKernels MVIT_ISA_SYMBOL(patch_attention);
const PatchAttentionKernels MVIT_ISA_SYMBOL(patch_attention) = {
    {forward<float>, forward<bf16>, forward<f16>},
    {backward<float>, backward<bf16>, backward<f16>},
};

}  // namespace mvit
