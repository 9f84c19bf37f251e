// The loops of GroupNorm with one group; formulas in ops/group_norm.h. Compiled once an ISA.
#include "cpu/ops/group_norm.h"

#include "cpu/core/isa.h"
#include "cpu/core/simd.h"

namespace mvit {
namespace {

constexpr int W = F32::width;

inline float total(F32 x) { return first_lane(sum_phases(x, 1)); }
inline F32 centred(F32 x, F32 high, F32 low) { return (x - high) - low; }

// Runs body(j, i, lanes) over [0, count) a vector at a time, four full vectors a turn so that four sums hide the latency of an addition.
template <class Body>
inline void each_vector(int64_t count, const Body& body) {
    int64_t i = 0;
    for (; i + 4 * W <= count; i += 4 * W) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) body(j, i + j * W, W);
    }
    for (; i + W <= count; i += W) body(0, i, W);
    if (i < count) body(1, i, lanes_left(count, i));
}

inline F32 sum4(const F32* sum) { return (sum[0] + sum[1]) + (sum[2] + sum[3]); }

// Two passes over a tile that the first cache holds. The second also sums x - mean, which corrects the rounding of the first mean.
template <class T>
Statistics statistics(const void* data, int64_t count) {
    const T* x = static_cast<const T*>(data);
    const F32 zero = F32::all(0.0f);
    F32 sum[4] = {zero, zero, zero, zero};
    each_vector(count, [&](int j, int64_t i, int n) { sum[j] = sum[j] + load(x + i, n, 0.0f); });
    const float mean = total(sum4(sum)) / static_cast<float>(count);
    const F32 centre = F32::all(mean);
    F32 rest[4] = {zero, zero, zero, zero}, square[4] = {zero, zero, zero, zero};
    each_vector(count, [&](int j, int64_t i, int n) {
        const F32 d = load(x + i, n, mean) - centre;
        rest[j] = rest[j] + d;
        square[j] = fma(d, d, square[j]);
    });
    const double n = static_cast<double>(count), correction = static_cast<double>(total(sum4(rest))) / n;
    return {n, static_cast<double>(mean) + correction, static_cast<double>(total(sum4(square))) - n * correction * correction};
}

// y = (x - high) scale + shift, where the shift has taken in what the mean lost in float32.
template <class T>
void normalize_planes(const void* from, void* to, int64_t planes, int64_t positions, Centre mean, float inverse_sigma, const float* weight,
                      const float* bias) {
    const T* x = static_cast<const T*>(from);
    T* y = static_cast<T*>(to);
    const F32 high = F32::all(mean.high);
    for (int64_t plane = 0; plane < planes; ++plane, x += positions, y += positions) {
        const F32 scale = F32::all(inverse_sigma * weight[plane]), shift = fma(F32::all(-mean.low), scale, F32::all(bias[plane]));
        each_vector(positions, [&](int, int64_t i, int n) { store(fma(load(x + i, n, 0.0f) - high, scale, shift), y + i, n); });
    }
}

// `vectors` columns of channels down all pixels, their scales and shifts in registers.
template <class T, int vectors>
inline void normalize_columns(const T* x, T* y, int64_t pixels, int64_t channels, int n, Centre mean, float inverse_sigma,
                              const float* weight, const float* bias) {
    const F32 high = F32::all(mean.high);
    F32 scale[vectors], shift[vectors];
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) {
        scale[j] = F32::all(inverse_sigma) * load(weight + j * W, n, 0.0f);
        shift[j] = fma(F32::all(-mean.low), scale[j], load(bias + j * W, n, 0.0f));
    }
    for (int64_t pixel = 0; pixel < pixels; ++pixel, x += channels, y += channels) {
#pragma GCC unroll 4
        for (int j = 0; j < vectors; ++j) store(fma(load(x + j * W, n, 0.0f) - high, scale[j], shift[j]), y + j * W, n);
    }
}

template <class T>
void normalize_pixels(const void* from, void* to, int64_t pixels, int64_t channels, Centre mean, float inverse_sigma, const float* weight,
                      const float* bias) {
    const T* x = static_cast<const T*>(from);
    T* y = static_cast<T*>(to);
    // 32 pixels at a time: the lines beside a column, which the processor fetches ahead, are still there when their turn comes.
    for (int64_t first = 0; first < pixels; first += 32) {
        const int64_t some = pixels - first < 32 ? pixels - first : 32;
        int64_t c = 0;
        for (; c + 4 * W <= channels; c += 4 * W)
            normalize_columns<T, 4>(x + c, y + c, some, channels, W, mean, inverse_sigma, weight + c, bias + c);
        for (; c + W <= channels; c += W)
            normalize_columns<T, 1>(x + c, y + c, some, channels, W, mean, inverse_sigma, weight + c, bias + c);
        if (c < channels)
            normalize_columns<T, 1>(x + c, y + c, some, channels, lanes_left(channels, c), mean, inverse_sigma, weight + c, bias + c);
        x += some * channels;
        y += some * channels;
    }
}

template <class T>
void sum_plane(const void* from, const void* gradient, int64_t count, Centre mean, float* sums) {
    const T* x = static_cast<const T*>(from);
    const T* dy = static_cast<const T*>(gradient);
    const F32 high = F32::all(mean.high), low = F32::all(mean.low), zero = F32::all(0.0f);
    F32 plain[4] = {zero, zero, zero, zero}, weighted[4] = {zero, zero, zero, zero};
    each_vector(count, [&](int j, int64_t i, int n) {
        const F32 g = load(dy + i, n, 0.0f);
        plain[j] = plain[j] + g;
        weighted[j] = fma(g, centred(load(x + i, n, 0.0f), high, low), weighted[j]);
    });
    sums[0] = total(sum4(plain));
    sums[1] = total(sum4(weighted));
}

template <class T>
void sum_pixels(const void* from, const void* gradient, int64_t rows, int64_t channels, Centre mean, float* sums) {
    const F32 high = F32::all(mean.high), low = F32::all(mean.low);
    for (int64_t c = 0; c < channels; c += W) {
        const int n = lanes_left(channels, c);
        const T* x = static_cast<const T*>(from) + c;
        const T* dy = static_cast<const T*>(gradient) + c;
        F32 plain = F32::all(0.0f), weighted = plain;
        for (int64_t row = 0; row < rows; ++row, x += channels, dy += channels) {
            const F32 g = load(dy, n, 0.0f);
            plain = plain + g;
            weighted = fma(g, centred(load(x, n, 0.0f), high, low), weighted);
        }
        store(plain, sums + c, n);
        store(weighted, sums + channels + c, n);
    }
}

template <class T>
void gradient_plane(const void* from, const void* gradient, void* to, int64_t count, Centre mean, float scale, float shift, float slope) {
    const T* x = static_cast<const T*>(from);
    const T* dy = static_cast<const T*>(gradient);
    T* dx = static_cast<T*>(to);
    const F32 high = F32::all(mean.high), low = F32::all(mean.low), a = F32::all(scale), b = F32::all(shift), k = F32::all(slope);
    each_vector(count, [&](int, int64_t i, int n) {
        store(fma(load(dy + i, n, 0.0f), a, fma(centred(load(x + i, n, 0.0f), high, low), k, b)), dx + i, n);
    });
}

template <class T>
void gradient_pixels(const void* from, const void* gradient, void* to, int64_t rows, int64_t channels, Centre mean, const float* scale,
                     float shift, float slope) {
    const T* x = static_cast<const T*>(from);
    const T* dy = static_cast<const T*>(gradient);
    T* dx = static_cast<T*>(to);
    const F32 high = F32::all(mean.high), low = F32::all(mean.low), b = F32::all(shift), k = F32::all(slope);
    for (int64_t row = 0; row < rows; ++row, x += channels, dy += channels, dx += channels)
        each_vector(channels, [&](int, int64_t c, int n) {
            const F32 rest = fma(centred(load(x + c, n, 0.0f), high, low), k, b);
            store(fma(load(dy + c, n, 0.0f), load(scale + c, n, 0.0f), rest), dx + c, n);
        });
}

}  // namespace

extern const GroupNormKernels MVIT_ISA_SYMBOL(group_norm);
const GroupNormKernels MVIT_ISA_SYMBOL(group_norm) = {
    {statistics<float>, statistics<bf16>, statistics<f16>},
    {normalize_planes<float>, normalize_planes<bf16>, normalize_planes<f16>},
    {normalize_pixels<float>, normalize_pixels<bf16>, normalize_pixels<f16>},
    {sum_plane<float>, sum_plane<bf16>, sum_plane<f16>},
    {sum_pixels<float>, sum_pixels<bf16>, sum_pixels<f16>},
    {gradient_plane<float>, gradient_plane<bf16>, gradient_plane<f16>},
    {gradient_pixels<float>, gradient_pixels<bf16>, gradient_pixels<f16>},
};

}  // namespace mvit
