// The loops of LayerNorm; formulas in ops/layer_norm.h. Compiled once an ISA.
//
// Rows go four at a time: from the loads of a row to its 1 / sigma is a chain of two reductions, a square root and a division, as long as
// the work on the row itself, and four such chains run side by side. A row's bits do not depend on its neighbours.
#include "cpu/ops/layer_norm.h"

#include <cmath>

#include "cpu/core/isa.h"
#include "cpu/core/simd.h"

namespace mvit {
namespace {

constexpr int W = F32::width;

inline double total(F32 x) { return static_cast<double>(first_lane(sum_phases(x, 1))); }

// Runs body(c, lanes) over [0, channels) a vector at a time.
template <class Body>
inline void each_vector(int64_t channels, const Body& body) {
    int64_t c = 0;
    for (; c + W <= channels; c += W) body(c, W);
    if (c < channels) body(c, lanes_left(channels, c));
}

// A row's xhat = (x - mean) scale + offset: `mean` is the mean in float32, `offset` what that lost of it, times -scale.
struct Row {
    float mean, scale, offset;
    F32 normal(F32 x) const { return fma(x - F32::all(mean), F32::all(scale), F32::all(offset)); }
};

// The means in float32, which the second pass over a row corrects by its sum of x - mean.
template <class T, int count>
inline void first_means(const T* x, int64_t channels, Row* row) {
    LongSum<count> sum;
    each_vector(channels, [&](int64_t c, int n) {
#pragma GCC unroll 4
        for (int r = 0; r < count; ++r) sum.run[r] = sum.run[r] + load(x + r * channels + c, n, 0.0f);
        sum.added(1);
    });
    const double each = 1.0 / static_cast<double>(channels);
#pragma GCC unroll 4
    for (int r = 0; r < count; ++r) row[r].mean = static_cast<float>(total(sum.value(r)) * each);
}

// A term of the second pass, x - mean, added to its sum and to that of the squares.
template <class T>
inline F32 add_centred(const T* x, int n, float mean, F32* rest, F32* square) {
    const F32 d = load(x, n, mean) - F32::all(mean);
    *rest = *rest + d;
    *square = fma(d, d, *square);
    return d;
}

// Completes a row from the sums of its second pass; returns what its mean lost in float32.
inline double complete(F32 rest, F32 square, double each, float eps, Row* row) {
    const double low = total(rest) * each, variance = total(square) * each - low * low;
    const double inverse = 1.0 / std::sqrt(variance + static_cast<double>(eps));
    row->scale = static_cast<float>(inverse);
    row->offset = static_cast<float>(-low * inverse);
    return low;
}

template <class T, int count>
inline void normalize_rows(const T* x, T* y, int64_t channels, float eps, const float* weight, const float* bias) {
    Row row[count];
    first_means<T, count>(x, channels, row);
    LongSum<count> rest, square;
    each_vector(channels, [&](int64_t c, int n) {
#pragma GCC unroll 4
        for (int r = 0; r < count; ++r) add_centred(x + r * channels + c, n, row[r].mean, &rest.run[r], &square.run[r]);
        rest.added(1), square.added(1);
    });
    const double each = 1.0 / static_cast<double>(channels);
#pragma GCC unroll 4
    for (int r = 0; r < count; ++r) complete(rest.value(r), square.value(r), each, eps, row + r);
    each_vector(channels, [&](int64_t c, int n) {
        const F32 w = load(weight + c, n, 0.0f), b = load(bias + c, n, 0.0f);
#pragma GCC unroll 4
        for (int r = 0; r < count; ++r) store(fma(row[r].normal(load(x + r * channels + c, n, 0.0f)), w, b), y + r * channels + c, n);
    });
}

template <class T, int count>
inline void gradient_rows(const T* x, const T* dy, T* dx, int64_t channels, float eps, const float* weight, float* sums) {
    Row row[count];
    first_means<T, count>(x, channels, row);
    // The means of g = dy weight and of g xhat: dx = (g - plain - xhat weighted) scale. The second pass sums g (x - mean) for a mean that
    // it is about to correct.
    LongSum<count> rest, square, plain, weighted;
    each_vector(channels, [&](int64_t c, int n) {
        const F32 w = load(weight + c, n, 0.0f);
#pragma GCC unroll 4
        for (int r = 0; r < count; ++r) {
            const F32 d = add_centred(x + r * channels + c, n, row[r].mean, &rest.run[r], &square.run[r]);
            const F32 g = load(dy + r * channels + c, n, 0.0f) * w;
            plain.run[r] = plain.run[r] + g;
            weighted.run[r] = fma(g, d, weighted.run[r]);
        }
        rest.added(1), square.added(1), plain.added(1), weighted.added(1);
    });
    const double each = 1.0 / static_cast<double>(channels);
    float mean_plain[count], mean_weighted[count];
#pragma GCC unroll 4
    for (int r = 0; r < count; ++r) {
        const double low = complete(rest.value(r), square.value(r), each, eps, row + r), g = total(plain.value(r)) * each;
        mean_plain[r] = static_cast<float>(g);
        mean_weighted[r] = static_cast<float>((total(weighted.value(r)) * each - low * g) * static_cast<double>(row[r].scale));
    }
    each_vector(channels, [&](int64_t c, int n) {
        const F32 w = load(weight + c, n, 0.0f);
        F32 dbias = F32::all(0.0f), dweight = dbias;
#pragma GCC unroll 4
        for (int r = 0; r < count; ++r) {
            const F32 g = load(dy + r * channels + c, n, 0.0f), xhat = row[r].normal(load(x + r * channels + c, n, 0.0f));
            dbias = dbias + g;
            dweight = fma(g, xhat, dweight);
            const F32 left = fma(xhat, F32::all(-mean_weighted[r]), g * w - F32::all(mean_plain[r]));
            store(left * F32::all(row[r].scale), dx + r * channels + c, n);
        }
        store(load(sums + c, n, 0.0f) + dbias, sums + c, n);
        store(load(sums + channels + c, n, 0.0f) + dweight, sums + channels + c, n);
    });
}

template <class T>
void normalize(const void* from, void* to, int64_t rows, int64_t channels, float eps, const float* weight, const float* bias) {
    const T* x = static_cast<const T*>(from);
    T* y = static_cast<T*>(to);
    int64_t i = 0;
    for (; i + 4 <= rows; i += 4) normalize_rows<T, 4>(x + i * channels, y + i * channels, channels, eps, weight, bias);
    for (; i < rows; ++i) normalize_rows<T, 1>(x + i * channels, y + i * channels, channels, eps, weight, bias);
}

template <class T>
void gradient(const void* from, const void* upstream, void* to, int64_t rows, int64_t channels, float eps, const float* weight,
              float* sums) {
    const T* x = static_cast<const T*>(from);
    const T* dy = static_cast<const T*>(upstream);
    T* dx = static_cast<T*>(to);
    int64_t i = 0;
    for (; i + 4 <= rows; i += 4) gradient_rows<T, 4>(x + i * channels, dy + i * channels, dx + i * channels, channels, eps, weight, sums);
    for (; i < rows; ++i) gradient_rows<T, 1>(x + i * channels, dy + i * channels, dx + i * channels, channels, eps, weight, sums);
}

}  // namespace

extern const LayerNormKernels MVIT_ISA_SYMBOL(layer_norm);
const LayerNormKernels MVIT_ISA_SYMBOL(layer_norm) = {
    {normalize<float>, normalize<bf16>, normalize<f16>},
    {gradient<float>, gradient<bf16>, gradient<f16>},
};

}  // namespace mvit
