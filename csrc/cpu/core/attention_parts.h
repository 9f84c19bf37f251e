// What softmax attention is made of (attention.h): pixels of a sequence, wherever they lie, and their way to packed panels and back; what
// a softmax divides by. Internal linkage, like simd.h.
#pragma once

#include "cpu/core/activation.h"
#include "cpu/core/attention_scratch.h"
#include "cpu/core/simd.h"
#include "cpu/core/tile.h"

namespace mvit {
namespace {

constexpr int W = F32::width;

// Where the pixels of a sequence lie in one tensor: in rows of a map, or one after another (`columns` of them).
struct Pixels {
    int64_t columns, row, column;  // of a row, strides
};

// Where W pixels from `first` on start, as far as there are any before `end`; how many there are.
inline int locate(const Pixels& pixels, int64_t first, int64_t end, int64_t (&offset)[W]) {
    const int count = lanes_left(end, first);
    int64_t y = first / pixels.columns, x = first % pixels.columns;
    for (int i = 0; i < count; ++i) {
        offset[i] = y * pixels.row + x * pixels.column;
        if (++x == pixels.columns) {
            x = 0;
            ++y;
        }
    }
    return count;
}

// to[channel, pixel - begin] = read(offset of the pixel + channel, lanes), to whole vectors.
template <class Read>
inline void transpose_in(const Pixels& pixels, int64_t begin, int64_t end, int64_t depth, float* to, int64_t stride, const Read& read) {
    const F32 zero = F32::all(0.0f);
    int64_t offset[W];
    for (int64_t first = begin; first < end; first += W) {
        const int count = locate(pixels, first, end, offset);
        for (int64_t channel = 0; channel < depth; channel += W) {
            const int lanes = lanes_left(depth, channel);
            F32 x[W];
            if (count == W && lanes == W) {
#pragma GCC unroll 16
                for (int i = 0; i < W; ++i) x[i] = read(offset[i] + channel, W);
            } else {
                for (int i = 0; i < W; ++i) x[i] = i < count ? read(offset[i] + channel, lanes) : zero;
            }
            transpose(x);
#pragma GCC unroll 16
            for (int i = 0; i < W; ++i) x[i].store(to + (channel + i) * stride + first - begin);
        }
    }
}

// The way back: write(x, offset of the pixel + channel, lanes) of from[channel, pixel - begin] * times[pixel - begin].
template <class Write>
inline void transpose_out(const Pixels& pixels, int64_t begin, int64_t end, int64_t depth, const float* from, const float* times,
                          const Write& write) {
    int64_t offset[W];
    for (int64_t first = begin; first < end; first += W) {
        const int count = locate(pixels, first, end, offset);
        const F32 factor = F32::load(times + first - begin);
        for (int64_t channel = 0; channel < depth; channel += W) {
            const int lanes = lanes_left(depth, channel);
            F32 x[W];
#pragma GCC unroll 16
            for (int i = 0; i < W; ++i) x[i] = F32::load(from + (channel + i) * panel + first - begin) * factor;
            transpose(x);
            if (count == W && lanes == W) {
#pragma GCC unroll 16
                for (int i = 0; i < W; ++i) write(x[i], offset[i] + channel, W);
            } else {
                for (int i = 0; i < count; ++i) write(x[i], offset[i] + channel, lanes);
            }
        }
    }
}

// to[channel, pixel - begin] = factor * from[pixel, channel], both to whole vectors.
template <class T>
void pack_transposed(const Pixels& pixels, int64_t begin, int64_t end, int64_t depth, const void* source, float factor, float* to,
                     int64_t stride) {
    const T* from = static_cast<const T*>(source);
    const F32 times = F32::all(factor);
    transpose_in(pixels, begin, end, depth, to, stride, [&](int64_t at, int lanes) { return load(from + at, lanes, 0.0f) * times; });
}

// The way back: to[pixel, channel] = from[channel, pixel - begin] * times[pixel - begin].
template <class T>
void unpack_transposed(const Pixels& pixels, int64_t begin, int64_t end, int64_t depth, const float* from, const float* times,
                       void* target) {
    T* to = static_cast<T*>(target);
    transpose_out(pixels, begin, end, depth, from, times, [&](F32 x, int64_t at, int lanes) { store(x, to + at, lanes); });
}

// body(row, offset) for every pixel; row counts from 0.
template <class Body>
inline void each_pixel(const Pixels& pixels, int64_t begin, int64_t end, const Body& body) {
    int64_t offset[W];
    for (int64_t first = begin; first < end; first += W) {
        const int count = locate(pixels, first, end, offset);
        for (int i = 0; i < count; ++i) body(first - begin + i, offset[i]);
    }
}

// Pixel after pixel, to whole vectors; a panel of channels is panel_stride behind the one before.
template <class T>
void pack_rows(const Pixels& pixels, int64_t begin, int64_t end, int64_t depth, const void* source, float factor, float* to, int64_t stride,
               int64_t panel_stride) {
    const F32 times = F32::all(factor);
    each_pixel(pixels, begin, end, [&](int64_t row, int64_t offset) {
        const T* from = static_cast<const T*>(source) + offset;
        float* at = to + row * stride;
        for (int64_t channel = 0; channel < depth; channel += W)
            (load(from + channel, lanes_left(depth, channel), 0.0f) * times).store(at + channel / panel * panel_stride + channel % panel);
    });
}

template <class T>
void unpack_rows(const Pixels& pixels, int64_t begin, int64_t end, int64_t depth, const float* from, int64_t stride, void* target) {
    each_pixel(pixels, begin, end, [&](int64_t row, int64_t offset) {
        T* to = static_cast<T*>(target) + offset;
        for (int64_t channel = 0; channel < depth; channel += W)
            store(F32::load(from + row * stride + channel), to + channel, lanes_left(depth, channel));
    });
}

// 1 / sum of e. A query all of whose scores are -infinity has no softmax: NaN, as top - top is then.
inline F32 inverse(F32 sum, F32 top) { return F32::all(1.0f) / sum + (top - top); }

// 2^-100 stands for what is smaller, and for keys that are masked or none: beside the largest term, 1, it is nothing, and neither it nor
// its product with a value is a denormal number, any of which takes longer than all else of its key. It also keeps -infinity from the
// exponential.
constexpr float least_exponent = -100.0f;

// NaN stays NaN.
inline F32 weight(F32 below_top) { return exp2_quick(max(F32::all(least_exponent), below_top)); }

constexpr int chains = 4;  // of max: to hide its latency

// The largest of `keys` scores in each lane, or `top` where that is larger.
inline F32 largest(const float* scores, int64_t keys, F32 top) {
    F32 tops[chains] = {top, top, top, top};
    const float* const end = scores + keys / chains * chains * panel;
    const float* const last = scores + keys * panel;
    for (; scores != end; scores += chains * panel)
#pragma GCC unroll 4
        for (int i = 0; i < chains; ++i) tops[i] = max(tops[i], F32::load(scores + i * panel));
    for (; scores != last; scores += panel) tops[0] = max(tops[0], F32::load(scores));
    return max(max(tops[0], tops[1]), max(tops[2], tops[3]));
}

inline void fill(float* to, int64_t count, float value) {
    for (int64_t i = 0; i < count; i += W) F32::all(value).store(to + i);
}

// body(i, first, width) for every panel of queries [begin, end).
template <class Body>
inline void each_query_panel(int64_t begin, int64_t end, const Body& body) {
    for (int64_t first = begin, i = 0; first < end; first += panel, ++i)
        body(i, first, end - first < panel ? static_cast<int>(end - first) : panel);
}

// Of one head.
struct Attending {
    const void *q, *k, *v;
    void* y;
    Pixels q_at, k_at, v_at, y_at;
    int64_t keys, depth, value_depth;
    int64_t begin, end;   // queries
    float scale;          // a
    const float* bias;    // log2(e) times what is added to the score of key m and query n, at m bias_stride + n; or null
    int64_t bias_stride;  // a multiple of panel, as begin is then
    float* scratch;
    const AttentionScratch* layout;
};

}  // namespace
}  // namespace mvit
