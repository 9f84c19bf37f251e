// Separable attention on one sequence; formulas and layouts in ops/separable_attention.h. Compiled once an ISA.
//
// Channels first: the lanes hold positions of a row. A row of a map holds `phases` interleaved sequences; lane i belongs to phase
// i mod phases in every vector (16 and 8 are multiples of it), so nothing is ever de-interleaved: only the reductions over positions keep
// the phases apart (reduce_phases).
// Channels last: the lanes hold channels, and positions are walked one by one.
#include "cpu/ops/separable_attention.h"

#include "cpu/core/isa.h"
#include "cpu/core/simd.h"

namespace mvit {
namespace {

constexpr int W = F32::width;
using Sequence = SeparableAttentionSequence;

constexpr int64_t chunk = 16;  // terms of a LongSum between two looks at its length

inline int64_t padded(int64_t n) { return (n + W - 1) / W * W; }

// The softmax of `count` scores in place, a phase a lane; `count` is padded with scores of -infinity, which become 0.
inline void softmax(float* scores, int64_t count, int phases) {
    F32 top = F32::all(-__builtin_inff());
    for (int64_t i = 0; i < count; i += W) top = max(top, F32::load(scores + i));
    top = max_phases(top, phases);
    LongSum<1> sum;
    for (int64_t begin = 0; begin < count; begin += chunk * W) {
        for (int64_t i = begin; i < count && i < begin + chunk * W; i += W) {
            const F32 e = exp(F32::load(scores + i) - top);
            e.store(scores + i);
            sum.run[0] = sum.run[0] + e;
        }
        sum.added(chunk);
    }
    float lanes[W];
    sum_phases(sum.value(0), phases).store(lanes);
    for (float& x : lanes) x = 1.0f / x;
    const F32 inverse = F32::load(lanes);
    for (int64_t i = 0; i < count; i += W) (F32::load(scores + i) * inverse).store(scores + i);
}

// sum_n s[n] ds[n], a phase a lane, of `count` padded values. From the rounded ds themselves: what they share cancels exactly in ds - mean.
inline F32 mean_of(const float* s, const float* ds, int64_t count, int phases) {
    LongSum<1> sum;
    for (int64_t begin = 0; begin < count; begin += chunk * W) {
        for (int64_t i = begin; i < count && i < begin + chunk * W; i += W)
            sum.run[0] = fma(F32::load(s + i), F32::load(ds + i), sum.run[0]);
        sum.added(chunk);
    }
    return sum_phases(sum.value(0), phases);
}

// The scores s of all rows, each padded to whole vectors.
template <class T>
void softmax_channels_first(const Sequence& s) {
    const T* q = static_cast<const T*>(s.qkv);
    const int64_t pitch = padded(s.columns);
    for (int64_t row = 0; row < s.rows; ++row)
        for (int64_t i = 0; i < s.columns; i += W)
            load(q + row * s.qkv_strides.row + i, lanes_left(s.columns, i), -__builtin_inff()).store(s.scratch + row * pitch + i);
    softmax(s.scratch, s.rows * pitch, s.phases);
}

// context[0 .. n) of n <= 4 channels at once: the scores are loaded once for all, and four sums hide the latency of the FMA.
template <class T, int n>
inline void contexts(const Sequence& s, const T* k, F32* context) {
    const int64_t pitch = padded(s.columns), channel = s.qkv_strides.channel;
    LongSum<n> sum;
    for (int64_t row = 0; row < s.rows; ++row) {
        const float* scores = s.scratch + row * pitch;
        const T* p = k + row * s.qkv_strides.row;
        for (int64_t begin = 0; begin < s.columns; begin += chunk * W) {
            const int64_t end = s.columns - begin < chunk * W ? s.columns : begin + chunk * W;
            int64_t i = begin;
            for (; i + W <= end; i += W) {
                const F32 weight = F32::load(scores + i);
#pragma GCC unroll 4
                for (int j = 0; j < n; ++j) sum.run[j] = fma(weight, F32::load(p + j * channel + i), sum.run[j]);
            }
            if (i < end) {
                const int left = lanes_left(end, i);
                const F32 weight = F32::load(scores + i);
#pragma GCC unroll 4
                for (int j = 0; j < n; ++j) sum.run[j] = fma(weight, F32::load_n(p + j * channel + i, left, 0.0f), sum.run[j]);
            }
            sum.added((end - begin + W - 1) / W);
        }
    }
    for (int j = 0; j < n; ++j) context[j] = sum_phases(sum.value(j), s.phases);
}

template <class T>
inline void apply(const Sequence& s, const T* v, F32 context, T* y) {
    const F32 zero = F32::all(0.0f);
    for (int64_t row = 0; row < s.rows; ++row) {
        const T* from = v + row * s.qkv_strides.row;
        T* to = y + row * s.y_strides.row;
        int64_t i = 0;
        for (; i + W <= s.columns; i += W) (max(zero, F32::load(from + i)) * context).store(to + i);
        if (i < s.columns) {
            const int left = lanes_left(s.columns, i);
            (max(zero, F32::load_n(from + i, left, 0.0f)) * context).store_n(to + i, left);
        }
    }
}

template <class T>
void forward_channels_first(const Sequence& s) {
    softmax_channels_first<T>(s);
    const int64_t channel = s.qkv_strides.channel;
    const T* k = static_cast<const T*>(s.qkv) + channel;
    const T* v = k + s.dim * channel;
    T* y = static_cast<T*>(s.y);
    F32 context[4];
    int64_t c = s.channel_begin;
    for (; c + 4 <= s.channel_end; c += 4) {
        contexts<T, 4>(s, k + c * channel, context);
        for (int j = 0; j < 4; ++j) apply(s, v + (c + j) * channel, context[j], y + (c + j) * s.y_strides.channel);
    }
    for (; c < s.channel_end; ++c) {
        contexts<T, 1>(s, k + c * channel, context);
        apply(s, v + c * channel, context[0], y + c * s.y_strides.channel);
    }
}

template <class T>
void backward_channels_first(const Sequence& s) {
    softmax_channels_first<T>(s);
    const F32 zero = F32::all(0.0f);
    const int64_t pitch = padded(s.columns), channel = s.qkv_strides.channel, dchannel = s.dqkv_strides.channel;
    float* ds = s.scratch + s.rows * pitch;
    for (int64_t i = 0; i < s.rows * pitch; i += W) zero.store(ds + i);
    const T* k = static_cast<const T*>(s.qkv) + channel;
    const T* v = k + s.dim * channel;
    const T* g = static_cast<const T*>(s.y);
    T* dq = static_cast<T*>(s.dqkv);
    T* dk = dq + dchannel;
    T* dv = dk + s.dim * dchannel;
    for (int64_t c = 0; c < s.dim; ++c, k += channel, v += channel, g += s.y_strides.channel, dk += dchannel, dv += dchannel) {
        F32 context;
        contexts<T, 1>(s, k, &context);
        LongSum<1> sum;
        for (int64_t row = 0; row < s.rows; ++row) {
            const T* vr = v + row * s.qkv_strides.row;
            const T* gr = g + row * s.y_strides.row;
            T* dvr = dv + row * s.dqkv_strides.row;
            for (int64_t begin = 0; begin < s.columns; begin += chunk * W) {
                for (int64_t i = begin; i < s.columns && i < begin + chunk * W; i += W) {
                    const int n = lanes_left(s.columns, i);
                    const F32 value = load(vr + i, n, 0.0f), gradient = load(gr + i, n, 0.0f);
                    sum.run[0] = fma(gradient, max(zero, value), sum.run[0]);
                    store(where_positive(value, gradient * context), dvr + i, n);
                }
                sum.added((s.columns - begin < chunk * W ? s.columns - begin : chunk * W) / W + 1);
            }
        }
        const F32 dcontext = sum_phases(sum.value(0), s.phases);
        for (int64_t row = 0; row < s.rows; ++row) {
            const T* kr = k + row * s.qkv_strides.row;
            T* dkr = dk + row * s.dqkv_strides.row;
            for (int64_t i = 0; i < s.columns; i += W) {
                const int n = lanes_left(s.columns, i);
                float* d = ds + row * pitch + i;
                fma(dcontext, load(kr + i, n, 0.0f), F32::load(d)).store(d);
                store(F32::load(s.scratch + row * pitch + i) * dcontext, dkr + i, n);
            }
        }
    }
    const F32 mean = mean_of(s.scratch, ds, s.rows * pitch, s.phases);
    for (int64_t row = 0; row < s.rows; ++row)
        for (int64_t i = 0; i < s.columns; i += W) {
            const int64_t at = row * pitch + i;
            store(F32::load(s.scratch + at) * (F32::load(ds + at) - mean), dq + row * s.dqkv_strides.row + i, lanes_left(s.columns, i));
        }
}

// Channels last: q of a phase is gathered position by position, one row of scores after another with no padding between.
template <class T>
void softmax_channels_last(const Sequence& s) {
    const T* q = static_cast<const T*>(s.qkv);
    const int64_t count = s.rows * s.columns;
    float* scores = s.scratch;
    for (int64_t row = 0; row < s.rows; ++row)
        for (int64_t i = 0; i < s.columns; ++i)
            scores[row * s.columns + i] = first_lane(F32::load_n(q + row * s.qkv_strides.row + i * s.qkv_strides.column, 1, 0.0f));
    for (int64_t i = count; i < padded(count); ++i) scores[i] = -__builtin_inff();
    softmax(scores, padded(count), 1);
}

// Four vectors of channels at a time while they are full: four sums hide the latency of the FMA.
template <class Body>
inline void channel_blocks(int64_t begin, int64_t end, const Body& body) {
    int64_t c = begin;
    for (; c + 4 * W <= end; c += 4 * W) body.template operator()<4>(c, W);
    for (; c < end; c += W) body.template operator()<1>(c, lanes_left(end, c));
}

// Calls each(index, row, column) position by position, and added(count) for each chunk of them.
template <class Each, class Added>
inline void walk(const Sequence& s, const Each& each, const Added& added) {
    for (int64_t row = 0; row < s.rows; ++row)
        for (int64_t begin = 0; begin < s.columns; begin += chunk) {
            const int64_t end = s.columns - begin < chunk ? s.columns : begin + chunk;
            for (int64_t i = begin; i < end; ++i) each(row * s.columns + i, row, i);
            added(end - begin);
        }
}

inline int64_t offset(const Strides& strides, int64_t row, int64_t column) { return row * strides.row + column * strides.column; }

// context[0 .. vectors) of the channels at k.
template <class T, int vectors>
inline void contexts_channels_last(const Sequence& s, const T* k, int n, F32* context) {
    LongSum<vectors> sum;
    walk(
        s,
        [&](int64_t index, int64_t row, int64_t i) {
            const F32 weight = F32::all(s.scratch[index]);
            const T* p = k + offset(s.qkv_strides, row, i);
#pragma GCC unroll 4
            for (int j = 0; j < vectors; ++j) sum.run[j] = fma(weight, load(p + j * W, n, 0.0f), sum.run[j]);
        },
        [&](int64_t count) { sum.added(count); });
    for (int j = 0; j < vectors; ++j) context[j] = sum.value(j);
}

template <class T>
void forward_channels_last(const Sequence& s) {
    softmax_channels_last<T>(s);
    const F32 zero = F32::all(0.0f);
    const T* k = static_cast<const T*>(s.qkv) + 1;
    const T* v = k + s.dim;
    T* y = static_cast<T*>(s.y);
    channel_blocks(s.channel_begin, s.channel_end, [&]<int vectors>(int64_t c, int n) {
        F32 context[vectors];
        contexts_channels_last<T, vectors>(s, k + c, n, context);
        for (int64_t row = 0; row < s.rows; ++row)
            for (int64_t i = 0; i < s.columns; ++i) {
                const T* from = v + offset(s.qkv_strides, row, i) + c;
                T* to = y + offset(s.y_strides, row, i) + c;
#pragma GCC unroll 4
                for (int j = 0; j < vectors; ++j) store(max(zero, load(from + j * W, n, 0.0f)) * context[j], to + j * W, n);
            }
    });
}

template <class T>
void backward_channels_last(const Sequence& s) {
    softmax_channels_last<T>(s);
    const F32 zero = F32::all(0.0f);
    const int64_t count = s.rows * s.columns, pitch = padded(count);
    float* ds = s.scratch + pitch;
    float* dcontexts = ds + pitch;
    const T* k = static_cast<const T*>(s.qkv) + 1;
    const T* v = k + s.dim;
    const T* g = static_cast<const T*>(s.y);
    T* dq = static_cast<T*>(s.dqkv);
    T* dk = dq + 1;
    T* dv = dk + s.dim;
    for (int64_t c = 0; c < s.dim; c += W) {
        const int n = lanes_left(s.dim, c);
        F32 context;
        LongSum<1> sum;
        contexts_channels_last<T, 1>(s, k + c, n, &context);
        walk(
            s,
            [&](int64_t, int64_t row, int64_t i) {
                const F32 value = load(v + offset(s.qkv_strides, row, i) + c, n, 0.0f);
                const F32 gradient = load(g + offset(s.y_strides, row, i) + c, n, 0.0f);
                sum.run[0] = fma(gradient, max(zero, value), sum.run[0]);
                store(where_positive(value, gradient * context), dv + offset(s.dqkv_strides, row, i) + c, n);
            },
            [&](int64_t count) { sum.added(count); });
        sum.value(0).store(dcontexts + c);
    }
    // Position by position, so that each ds needs one reduction across lanes.
    for (int64_t row = 0; row < s.rows; ++row)
        for (int64_t i = 0; i < s.columns; ++i) {
            const int64_t index = row * s.columns + i;
            const T* kp = k + offset(s.qkv_strides, row, i);
            T* dkp = dk + offset(s.dqkv_strides, row, i);
            const F32 weight = F32::all(s.scratch[index]);
            F32 sum = zero;
            for (int64_t c = 0; c < s.dim; c += W) {
                const int n = lanes_left(s.dim, c);
                const F32 dcontext = F32::load(dcontexts + c);
                sum = fma(dcontext, load(kp + c, n, 0.0f), sum);
                store(weight * dcontext, dkp + c, n);
            }
            sum_phases(sum, 1).store_n(ds + index, 1);
        }
    for (int64_t i = count; i < pitch; ++i) ds[i] = 0.0f;
    const F32 mean = mean_of(s.scratch, ds, pitch, 1);
    for (int64_t row = 0; row < s.rows; ++row)
        for (int64_t i = 0; i < s.columns; ++i) {
            const int64_t index = row * s.columns + i;
            const F32 gradient = F32::all(s.scratch[index]) * (F32::all(ds[index]) - mean);
            gradient.store_n(dq + offset(s.dqkv_strides, row, i), 1);
        }
}

}  // namespace

extern const SeparableAttentionKernels MVIT_ISA_SYMBOL(separable_attention);
const SeparableAttentionKernels MVIT_ISA_SYMBOL(separable_attention) = {
    {forward_channels_first<float>, forward_channels_first<bf16>, forward_channels_first<f16>},
    {forward_channels_last<float>, forward_channels_last<bf16>, forward_channels_last<f16>},
    {backward_channels_first<float>, backward_channels_first<bf16>, backward_channels_first<f16>},
    {backward_channels_last<float>, backward_channels_last<bf16>, backward_channels_last<f16>},
};

}  // namespace mvit
