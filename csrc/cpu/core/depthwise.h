// One output row of a 3x3 depthwise convolution on channels-last memory, lanes along channels. Internal linkage.
//
//     y[x, c] = act(bias[c] + sum_{ky, kx} in[ky][stride x + kx - 1, c] w[3 ky + kx, c])
//
// Floor: 9 multiply-adds a value. A block of 4 pixels loads an input column once for all the pixels that it belongs to: 6 x 3 loads (9 x 3
// with stride 2) and 9 of weights for 36 multiply-adds, in 4 independent chains, which is what hides their latency.
#pragma once

#include "cpu/core/activation.h"

namespace mvit {
namespace {

// Strides are in elements, from pixel to pixel; In and Out may be any float types.
template <class In, class Out>
struct DepthwiseRow {
    const In* rows[3];  // above, at and below the output row; null where outside the map, which is zeros
    int64_t width;      // of the input; the output has (width - 1) / stride + 1 pixels
    int64_t in_stride, channels;
    const float* weight;  // [9][weight_stride], tap by tap; whole vectors can be read: weight_stride is channels rounded up to 16 or more
    int64_t weight_stride;
    const float* bias;  // weight_stride values
    Out* to;
    int64_t out_stride;
    const float* slopes;  // [a of all channels | b of all], which make the activation dynamic; or null
};

// The rows that exist, and their taps.
template <class In>
struct DepthwiseTaps {
    const In* from[3];
    const float* weight[3];
    int count;
};

// One vector of channels of `pixels` output pixels; from: offset of the first input column that exists. With `edge`, the outermost ones may
// lie outside the map (left, right); no other can.
template <int stride, Activation activation, int pixels, bool edge, bool whole, class In, class Out>
inline void depthwise_vector(const DepthwiseTaps<In>& taps, int64_t from, int64_t in_stride, int64_t weight_stride, const float* bias,
                             const float* slopes, int64_t channels, Out* to, int64_t out_stride, int64_t c, int some, bool left,
                             bool right) {
    constexpr int columns = stride * (pixels - 1) + 3;
    const int lanes = whole ? F32::width : some;
    F32 sum[pixels];
#pragma GCC unroll 4
    for (int i = 0; i < pixels; ++i) sum[i] = F32::load(bias + c);
    for (int row = 0; row < taps.count; ++row) {
        const float* w = taps.weight[row] + c;
        const F32 tap[3] = {F32::load(w), F32::load(w + weight_stride), F32::load(w + 2 * weight_stride)};
        const In* in = taps.from[row] + from + c;
#pragma GCC unroll 9
        for (int column = 0; column < columns; ++column) {
            if (edge && ((column == 0 && left) || (column == columns - 1 && right))) continue;
            const F32 value = load(in, lanes, 0.0f);
            in += in_stride;
#pragma GCC unroll 4
            for (int i = 0; i < pixels; ++i)
                if (const int kx = column - stride * i; kx >= 0 && kx < 3) sum[i] = fma(value, tap[kx], sum[i]);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < pixels; ++i) {
        if constexpr (activation == Activation::dynamic) {
            store_normal(Slopes(slopes, channels, c, lanes)(sum[i]), to + i * out_stride + c, lanes);
        } else {
            store_normal(activate<activation, Out>(sum[i]), to + i * out_stride + c, lanes);
        }
    }
}

// All channels of the output pixels [x, x + pixels). Everything that the loop needs is copied out of memory that its stores might change.
template <int stride, Activation activation, int pixels, bool edge, class In, class Out>
[[gnu::noinline]] void depthwise_block(const DepthwiseRow<In, Out>& p, const DepthwiseTaps<In>& every, int64_t x) {
    const DepthwiseTaps<In> taps = every;
    const bool left = x == 0, right = stride * (x + pixels - 1) + 1 == p.width;
    const int64_t from = (stride * x - (left ? 0 : 1)) * p.in_stride, channels = p.channels;
    const int64_t in_stride = p.in_stride, weight_stride = p.weight_stride, out_stride = p.out_stride;
    const float *bias = p.bias, *slopes = p.slopes;
    Out* to = p.to + x * p.out_stride;
    int64_t c = 0;
    for (; c + F32::width <= channels; c += F32::width)
        depthwise_vector<stride, activation, pixels, edge, true>(taps, from, in_stride, weight_stride, bias, slopes, channels, to,
                                                                 out_stride, c, 0, left, right);
    if (c < channels)
        depthwise_vector<stride, activation, pixels, edge, false>(taps, from, in_stride, weight_stride, bias, slopes, channels, to,
                                                                  out_stride, c, lanes_left(channels, c), left, right);
}

template <int stride, class In, class Out>
inline void depthwise_row(const DepthwiseRow<In, Out>& p, Activation activation) {
    const int64_t width = (p.width - 1) / stride + 1;
    DepthwiseTaps<In> taps{};
    for (int ky = 0; ky < 3; ++ky)
        if (p.rows[ky]) {
            taps.from[taps.count] = p.rows[ky];
            taps.weight[taps.count++] = p.weight + 3 * ky * p.weight_stride;
        }
    const auto run = [&]<Activation act>() {
        int64_t x = 0;
        for (; x + 4 <= width; x += 4) {
            if (x > 0 && stride * (x + 3) + 1 < p.width) {
                depthwise_block<stride, act, 4, false>(p, taps, x);
            } else {
                depthwise_block<stride, act, 4, true>(p, taps, x);
            }
        }
        for (; x < width; ++x) depthwise_block<stride, act, 1, true>(p, taps, x);
    };
    if (p.slopes) return run.template operator()<Activation::dynamic>();
    with_activation(activation, run);
}

}  // namespace
}  // namespace mvit
