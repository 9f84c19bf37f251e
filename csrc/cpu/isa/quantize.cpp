// The loops of quantize and dequantize; formulas in ops/quantize.h. Compiled once an ISA.
#include "cpu/ops/quantize.h"

#include "cpu/core/isa.h"
#include "cpu/core/qepilogue.h"
#include "cpu/core/qvector.h"

namespace mvit {
namespace {

constexpr int W = F32::width;

template <class T>
void quantize_run(const void* x, uint8_t* q, int64_t count, const QByte& to) {
    const F32 inverse = F32::all(to.inverse), low = F32::all(to.low), high = F32::all(to.high);
    const I32 zero_point = I32::all(to.zero_point);
    each_vector(count, [&](int64_t i, int n) {
        store(to_byte(load(static_cast<const T*>(x) + i, n, 0.0f) * inverse, low, high, zero_point), q + i, n);
    });
}

template <class T>
void quantize_channels(const void* x, uint8_t* q, int64_t rows, int64_t channels, const QByteChannels& to) {
    for (int64_t r = 0; r < rows; ++r) {
        const T* from = static_cast<const T*>(x) + r * channels;
        each_vector(channels, [&](int64_t c, int n) {
            const F32 t = load(from + c, n, 0.0f) * load(to.inverse + c, n, 0.0f);
            const I32 zero_point = load_ints(to.zero_point + c, n);
            store(to_byte(t, load(to.low + c, n, 0.0f), load(to.high + c, n, 0.0f), zero_point), q + r * channels + c, n);
        });
    }
}

template <class T>
void dequantize_run(const uint8_t* q, void* x, int64_t count, const QReal& of) {
    const QRealVector real(of);
    each_vector(count, [&](int64_t i, int n) { store(real(load_ints(q + i, n)), static_cast<T*>(x) + i, n); });
}

template <class T>
void dequantize_channels(const uint8_t* q, void* x, int64_t rows, int64_t channels, const QRealChannels& of) {
    for (int64_t r = 0; r < rows; ++r) {
        T* to = static_cast<T*>(x) + r * channels;
        each_vector(channels, [&](int64_t c, int n) {
            const QRealVector real{load(of.scale + c, n, 0.0f), load(of.high + c, n, 0.0f), load_ints(of.low + c, n)};
            store(real(load_ints(q + r * channels + c, n)), to + c, n);
        });
    }
}

inline float smallest(F32 x) {
    return first_lane(reduce_phases(x, 1, [](F32 a, F32 b) { return min(a, b); }));
}
inline float largest(F32 x) { return first_lane(max_phases(x, 1)); }

// A row's low and high. min and max return their second argument where one is NaN: NaN counts as nothing.
template <class T>
inline void range_of(const T* x, int64_t depth, float* low, float* high) {
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
    *low = smallest(min(min(least[0], least[1]), min(least[2], least[3])));
    *high = largest(max(max(most[0], most[1]), max(most[2], most[3])));
}

template <class T>
void quantize_rows(const QuantizeRowsProblem& p, int64_t first, int64_t last) {
    const int most = (1 << p.bits) - 1;
    const float step = 1.0f / static_cast<float>(most);
    for (int64_t r = first; r < last; ++r) {
        const T* x = static_cast<const T*>(p.x) + r * p.x_stride;
        float low, high;
        range_of(x, p.depth, &low, &high);
        const float range = high * step - low * step, scale = range > 0x1p-100f ? range : 0x1p-100f;
        const float z = -low / scale;  // NaN where the range is infinite
        const int32_t zero_point = z < static_cast<float>(most) ? static_cast<int32_t>(__builtin_rintf(z)) : z != z ? 0 : most;
        p.scale[r] = scale;
        p.zero_point[r] = zero_point;
        quantize_run<T>(x, p.q + r * p.depth, p.depth, qbyte(scale, zero_point, p.bits));
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
