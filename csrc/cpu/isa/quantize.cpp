// The loops of quantize and dequantize; formulas in ops/quantize.h. Compiled once an ISA.
#include "cpu/ops/quantize.h"

#include "cpu/core/isa.h"
#include "cpu/core/qepilogue.h"
#include "cpu/core/qvector.h"

namespace mvit {
namespace {

constexpr int W = F32::width;

template <int n>
struct Count {
    static constexpr int value = n;
};

template <class T>
void quantize_run(const void* x, uint8_t* q, int64_t count, const QByte& to) {
    const F32 inverse = F32::all(to.inverse), low = F32::all(to.low), high = F32::all(to.high);
    const I32 zero_point = I32::all(to.zero_point);
    write_bytes(q, count,
                [&](int64_t i, int n) { return to_byte(load(static_cast<const T*>(x) + i, n, 0.0f) * inverse, low, high, zero_point); });
}

// Runs body(first row, constant of how many rows) on [0, rows), four at a time.
template <class Body>
inline void each_four(int64_t rows, const Body& body) {
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) body(r, Count<4>{});
    for (; r < rows; ++r) body(r, Count<1>{});
}

// What channels need is loaded once for four rows.
template <class T>
void quantize_channels(const void* x, uint8_t* q, int64_t rows, int64_t channels, const QByteChannels& to) {
    each_four(rows, [&](int64_t r, auto count) {
        const T* from = static_cast<const T*>(x) + r * channels;
        each_vector(channels, [&](int64_t c, int n) {
            const F32 inverse = load(to.inverse + c, n, 0.0f), low = load(to.low + c, n, 0.0f), high = load(to.high + c, n, 0.0f);
            const I32 zero_point = load_ints(to.zero_point + c, n);
#pragma GCC unroll 4
            for (int j = 0; j < count.value; ++j) {
                const F32 t = load(from + j * channels + c, n, 0.0f) * inverse;
                store(to_byte(t, low, high, zero_point), q + (r + j) * channels + c, n);
            }
        });
    });
}

template <class T, class Real>
inline void dequantize_by(const Real& real, const uint8_t* q, void* x, int64_t count) {
    each_vector(count, [&](int64_t i, int n) { store(real(load_ints(q + i, n)), static_cast<T*>(x) + i, n); });
}

template <class T>
void dequantize_run(const uint8_t* q, void* x, int64_t count, const QReal& of) {
    if (of.low == 0) return dequantize_by<T>(QNearRealVector(of), q, x, count);
    dequantize_by<T>(QRealVector(of), q, x, count);
}

template <class T>
void dequantize_channels(const uint8_t* q, void* x, int64_t rows, int64_t channels, const QRealChannels& of) {
    each_four(rows, [&](int64_t r, auto count) {
        T* to = static_cast<T*>(x) + r * channels;
        each_vector(channels, [&](int64_t c, int n) {
            const QRealVector real{load(of.scale + c, n, 0.0f), load(of.high + c, n, 0.0f), load_ints(of.low + c, n)};
#pragma GCC unroll 4
            for (int j = 0; j < count.value; ++j) store(real(load_ints(q + (r + j) * channels + c, n)), to + j * channels + c, n);
        });
    });
}

// A vector of the smallest values of a row and 0, one of the largest. min and max return their second argument where one is NaN: NaN counts
// as nothing.
template <class T>
inline void range_of(const T* x, int64_t depth, F32* smallest, F32* largest) {
    F32 least[4], most[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) least[j] = most[j] = F32::all(0.0f);
    int64_t k = 0;
    for (; k + 4 * W <= depth; k += 4 * W)
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            const F32 v = F32::load(x + k + j * W);
            least[j] = min(v, least[j]);
            most[j] = max(v, most[j]);
        }
    for (; k < depth; k += W) {
        const F32 v = load(x + k, lanes_left(depth, k), 0.0f);
        least[0] = min(v, least[0]);
        most[0] = max(v, most[0]);
    }
    *smallest = min(min(least[0], least[1]), min(least[2], least[3]));
    *largest = max(max(most[0], most[1]), max(most[2], most[3]));
}

// As many rows at once as a vector has lanes: from their ranges on, lanes are rows.
template <class T>
void quantize_rows(const QuantizeRowsProblem& p, int64_t first, int64_t last) {
    const F32 zero = F32::all(0.0f), most = F32::all(static_cast<float>((1 << p.bits) - 1)), step = F32::all(1.0f) / most;
    for (int64_t begin = first; begin < last; begin += W) {
        const int rows = lanes_left(last, begin);
        const T* x = static_cast<const T*>(p.x) + begin * p.x_stride;
        F32 least[W], largest[W];
        for (int r = 0; r < rows; ++r) range_of(x + r * p.x_stride, p.depth, least + r, largest + r);
        for (int r = rows; r < W; ++r) least[r] = largest[r] = zero;
        transpose(least);
        transpose(largest);
        F32 low = least[0], high = largest[0];
        for (int j = 1; j < W; ++j) {
            low = min(low, least[j]);
            high = max(high, largest[j]);
        }
        const F32 scale = max(high * step - low * step, F32::all(0x1p-100f));
        const F32 z = min(max((zero - low) / scale, zero), most);  // NaN, of an infinite range, becomes 0
        const I32 zero_point = to_int(z);
        // 1 / scale in float32 is what float64 would be rounded to: it has more than twice the bits.
        float inverse[W];
        int32_t zero_points[W];
        (F32::all(1.0f) / scale).store(inverse);
        zero_point.store(zero_points);
        store(scale, p.scale + begin, rows);
        store(zero_point, p.zero_point + begin, rows);
        for (int r = 0; r < rows; ++r)
            quantize_run<T>(x + r * p.x_stride, p.q + (begin + r) * p.depth, p.depth, qbyte_of_inverse(inverse[r], zero_points[r], p.bits));
    }
}

}  // namespace

extern const QuantizeKernels MVIT_ISA_SYMBOL(quantize);
const QuantizeKernels MVIT_ISA_SYMBOL(quantize) = {
    {quantize_run<float>, quantize_run<bf16>, quantize_run<f16>},
    {quantize_channels<float>, quantize_channels<bf16>, quantize_channels<f16>},
    {dequantize_run<float>, dequantize_run<bf16>, dequantize_run<f16>},
    {dequantize_channels<float>, dequantize_channels<bf16>, dequantize_channels<f16>},
    {quantize_rows<float>, quantize_rows<bf16>, quantize_rows<f16>},
};

}  // namespace mvit
