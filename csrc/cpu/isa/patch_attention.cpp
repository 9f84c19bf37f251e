// Attention of some queries of one phase and head; formulas and the plan in ops/patch_attention.h. Compiled once an ISA.
#include "cpu/ops/patch_attention.h"

#include "cpu/core/activation.h"
#include "cpu/core/isa.h"
#include "cpu/core/simd.h"
#include "cpu/core/tile.h"

namespace mvit {

extern const TileKernels MVIT_ISA_SYMBOL(tile);

namespace {

constexpr int W = F32::width;
using Task = PatchAttentionTask;

// Where W pixels of a phase from `first` on start, as far as there are any before `end`; how many there are.
inline int locate(int64_t first, int64_t end, int64_t columns, int64_t row, int64_t column, int64_t (&offset)[W]) {
    const int count = lanes_left(end, first);
    int64_t y = first / columns, x = first % columns;
    for (int i = 0; i < count; ++i) {
        offset[i] = y * row + x * column;
        if (++x == columns) {
            x = 0;
            ++y;
        }
    }
    return count;
}

// to[channel, pixel - begin] = factor * from[pixel, channel], pixels side by side, both to whole vectors.
template <class T>
void pack_transposed(const Task& s, const T* from, int64_t begin, int64_t end, float factor, float* to, int64_t stride) {
    const F32 times = F32::all(factor), zero = F32::all(0.0f);
    int64_t offset[W];
    for (int64_t first = begin; first < end; first += W) {
        const int count = locate(first, end, s.columns, s.qkv_row, s.qkv_column, offset);
        for (int64_t channel = 0; channel < s.depth; channel += W) {
            const int lanes = lanes_left(s.depth, channel);
            F32 x[W];
            if (count == W && lanes == W) {
#pragma GCC unroll 16
                for (int i = 0; i < W; ++i) x[i] = F32::load(from + offset[i] + channel);
            } else {
                for (int i = 0; i < W; ++i) x[i] = i < count ? F32::load_n(from + offset[i] + channel, lanes, 0.0f) : zero;
            }
            transpose(x);
#pragma GCC unroll 16
            for (int i = 0; i < W; ++i) (x[i] * times).store(to + (channel + i) * stride + first - begin);
        }
    }
}

template <class T>
void pack_keys(const Task& s, int64_t begin, int64_t end, float* to, int64_t stride) {
    int64_t offset[W];
    for (int64_t first = begin; first < end; first += W) {
        const int count = locate(first, end, s.columns, s.qkv_row, s.qkv_column, offset);
        for (int i = 0; i < count; ++i, to += stride) {
            const T* from = static_cast<const T*>(s.k) + offset[i];
            for (int64_t channel = 0; channel < s.depth; channel += W)
                load(from + channel, lanes_left(s.depth, channel), 0.0f).store(to + channel);
        }
    }
}

// y = y^T / sum of e, turned back.
template <class T>
void write(const Task& s, int64_t begin, int64_t end, const float* result, const float* top, const float* sum) {
    int64_t offset[W];
    for (int64_t first = begin; first < end; first += W) {
        const int count = locate(first, end, s.columns, s.y_row, s.y_column, offset);
        // A query all of whose scores are -infinity has no softmax: NaN, as top - top is then.
        const F32 highest = F32::load(top + first - begin);
        const F32 inverse = F32::all(1.0f) / F32::load(sum + first - begin) + (highest - highest);
        for (int64_t channel = 0; channel < s.depth; channel += W) {
            const int lanes = lanes_left(s.depth, channel);
            F32 x[W];
#pragma GCC unroll 16
            for (int i = 0; i < W; ++i) x[i] = F32::load(result + (channel + i) * panel + first - begin) * inverse;
            transpose(x);
            T* to = static_cast<T*>(s.y) + channel;
            if (count == W && lanes == W) {
#pragma GCC unroll 16
                for (int i = 0; i < W; ++i) x[i].store(to + offset[i]);
            } else {
                for (int i = 0; i < count; ++i) x[i].store_n(to + offset[i], lanes);
            }
        }
    }
}

// 2^-126 stands for what is smaller: beside the largest term, 1, it is nothing, and it is no denormal number. It also keeps -infinity from
// the exponential. NaN stays NaN.
inline F32 weight(F32 below_top) { return exp2_quick(max(F32::all(-126.0f), below_top)); }

// Scores of `keys` more keys for a panel of queries become e. top: t, sum: of e; both are carried on, and factor is 2^(t before - t).
void softmax(float* scores, int64_t keys, int columns, float* top, float* sum, float* factor) {
    constexpr int chains = 4;  // to hide the latency of max and of the sum
    const F32 lowest = F32::all(-__builtin_inff()), finite = F32::all(-__FLT_MAX__), zero = F32::all(0.0f);
    for (int j = 0; j < columns; j += W) {
        float* const column = scores + j;
        const float* const end = column + keys / chains * chains * panel;
        const float* const last = column + keys * panel;
        F32 tops[chains] = {lowest, lowest, lowest, lowest}, sums[chains] = {zero, zero, zero, zero};
        const float* from = column;
        for (; from != end; from += chains * panel)
#pragma GCC unroll 4
            for (int i = 0; i < chains; ++i) tops[i] = max(tops[i], F32::load(from + i * panel));
        for (; from != last; from += panel) tops[0] = max(tops[0], F32::load(from));

        const F32 before = F32::load(top + j);
        const F32 now = max(max(before, max(tops[0], tops[1])), max(tops[2], tops[3]));
        const F32 shift = max(finite, now);
        float* at = column;
        for (; at != end; at += chains * panel)
#pragma GCC unroll 4
            for (int i = 0; i < chains; ++i) {
                const F32 e = weight(F32::load(at + i * panel) - shift);
                e.store(at + i * panel);
                sums[i] = sums[i] + e;
            }
        for (; at != last; at += panel) {
            const F32 e = weight(F32::load(at) - shift);
            e.store(at);
            sums[0] = sums[0] + e;
        }
        const F32 shrunk = weight(before - shift);
        fma(F32::load(sum + j), shrunk, (sums[0] + sums[1]) + (sums[2] + sums[3])).store(sum + j);
        now.store(top + j);
        shrunk.store(factor + j);
    }
}

template <class T>
void forward(const Task& s) {
    const TileKernels& tiles = MVIT_ISA_SYMBOL(tile);
    const PatchAttentionScratch& at = *s.layout;
    float* const queries = s.scratch + at.queries;
    float* const results = s.scratch + at.results;
    float* const part = s.scratch + at.part;
    float* const scores = s.scratch + at.scores;
    float* const keys = s.scratch + at.keys;
    float* const values = s.scratch + at.values;
    float* const state = s.scratch + at.state;
    float* const zeros = s.scratch + at.zeros;
    const int64_t count = panels(s.end - s.begin), size = at.channels * panel;
    float* const factor = state + 2 * count * panel;

    for (int64_t i = 0; i < panel; i += W) F32::all(0.0f).store(zeros + i);
    const auto each_panel = [&](const auto& body) {
        for (int64_t i = 0; i < count; ++i) {
            const int64_t first = s.begin + i * panel, left = s.end - first;
            const int width = left < panel ? static_cast<int>(left) : panel;
            body(first, width, queries + i * size, results + i * size, state + 2 * i * panel, state + (2 * i + 1) * panel);
        }
    };
    each_panel([&](int64_t first, int width, float* query, float*, float* top, float* sum) {
        pack_transposed(s, static_cast<const T*>(s.q), first, first + width, s.scale, query, panel);
        for (int64_t i = 0; i < panel; i += W) {
            F32::all(-__builtin_inff()).store(top + i);
            F32::all(0.0f).store(sum + i);
        }
    });
    for (int64_t key = 0; key < s.pixels; key += patch_attention_keys) {
        const int64_t block = s.pixels - key < patch_attention_keys ? s.pixels - key : patch_attention_keys;
        pack_keys<T>(s, key, key + block, keys, at.key_stride);
        pack_transposed(s, static_cast<const T*>(s.v), key, key + block, 1.0f, values, at.value_stride);
        each_panel([&](int64_t, int width, float* query, float* result, float* top, float* sum) {
            const int columns = static_cast<int>(round_up(width, W));
            tiles.multiply(keys, at.key_stride, block, query, s.depth, width, zeros, 0, scores, panel);
            softmax(scores, block, columns, top, sum, factor);
            tiles.multiply(values, at.value_stride, s.depth, scores, block, width, zeros, 0, key == 0 ? result : part, panel);
            if (key == 0) return;
            for (int64_t i = 0; i < s.depth * panel; i += panel)
                for (int j = 0; j < columns; j += W)
                    fma(F32::load(result + i + j), F32::load(factor + j), F32::load(part + i + j)).store(result + i + j);
        });
    }
    each_panel([&](int64_t first, int width, float*, float* result, float* top, float* sum) {
        write<T>(s, first, first + width, result, top, sum);
    });
}

}  // namespace

extern const PatchAttentionKernels MVIT_ISA_SYMBOL(patch_attention);
const PatchAttentionKernels MVIT_ISA_SYMBOL(patch_attention) = {{forward<float>, forward<bf16>, forward<f16>}};

}  // namespace mvit
