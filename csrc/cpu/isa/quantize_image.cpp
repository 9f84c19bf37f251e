// The loops of quantize_image; formula in ops/quantize_image.h. Compiled once an ISA.
#include "cpu/ops/quantize_image.h"

#include "cpu/core/isa.h"
#include "cpu/core/qepilogue.h"
#include "cpu/core/qvector.h"

namespace mvit {
namespace {

constexpr int W = F32::width;

struct ToByte {
    F32 inverse, low, high;
    I32 zero_point;

    explicit ToByte(const QByte& q)
        : inverse(F32::all(q.inverse)), low(F32::all(q.low)), high(F32::all(q.high)), zero_point(I32::all(q.zero_point)) {}
    I32 operator()(F32 x) const { return to_byte(x * inverse, low, high, zero_point); }
};

// Three bytes a lane: those of a pixel.
inline I32 joined(I32 a, I32 b, I32 c) {
#if defined(MVIT_ISA_AVX512VNNI)
    return {_mm512_or_si512(a.v, _mm512_or_si512(_mm512_slli_epi32(b.v, 8), _mm512_slli_epi32(c.v, 16)))};
#elif defined(MVIT_ISA_AVX2)
    return {_mm256_or_si256(a.v, _mm256_or_si256(_mm256_slli_epi32(b.v, 8), _mm256_slli_epi32(c.v, 16)))};
#else
    return each_int_lane([&](int i) { return a.lane[i] | b.lane[i] << 8 | c.lane[i] << 16; });
#endif
}

// Stores the three bytes of each lane of four vectors, without the fourth. The first shuffle closes up the bytes of each 128 bits, the
// second one these twelve bytes of all.
inline void store_pixels(const I32 (&x)[4], uint8_t* y) {
#if defined(MVIT_ISA_AVX512VNNI)
    const __m512i close = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));
    __m512i p[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) p[j] = _mm512_shuffle_epi8(x[j].v, close);
    // Vectors of 12 used elements of 4 bytes become three of 16: all of one and what is left to fill of the next, 16 and more being its.
    const __m512i first = _mm512_setr_epi32(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 16, 17, 18, 20);
    const __m512i second = _mm512_setr_epi32(5, 6, 8, 9, 10, 12, 13, 14, 16, 17, 18, 20, 21, 22, 24, 25);
    const __m512i third = _mm512_setr_epi32(10, 12, 13, 14, 16, 17, 18, 20, 21, 22, 24, 25, 26, 28, 29, 30);
    _mm512_storeu_si512(y, _mm512_permutex2var_epi32(p[0], first, p[1]));
    _mm512_storeu_si512(y + 64, _mm512_permutex2var_epi32(p[1], second, p[2]));
    _mm512_storeu_si512(y + 128, _mm512_permutex2var_epi32(p[2], third, p[3]));
#elif defined(MVIT_ISA_AVX2)
    const __m256i close = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));
    const __m256i order = _mm256_setr_epi32(0, 1, 2, 4, 5, 6, 3, 7);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j, y += 24) {
        const __m256i p = _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(x[j].v, close), order);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(y), _mm256_castsi256_si128(p));
        _mm_storel_epi64(reinterpret_cast<__m128i*>(y + 16), _mm256_extracti128_si256(p, 1));
    }
#else
    for (int j = 0; j < 4; ++j)
        for (int i = 0; i < W; ++i, y += 3)
            for (int c = 0; c < 3; ++c) y[c] = static_cast<uint8_t>(x[j].lane[i] >> 8 * c);
#endif
}

// Pixels of any number of channels, a vector of them at a time; `lanes` of the last one.
inline void few_pixels(const float* x, int64_t stride, int64_t channels, int lanes, const ToByte& to, uint8_t* y) {
    for (int64_t c = 0; c < channels; ++c) {
        int32_t bytes[W];
        to(load(x + c * stride, lanes, 0.0f)).store(bytes);
        for (int i = 0; i < lanes; ++i) y[i * channels + c] = static_cast<uint8_t>(bytes[i]);
    }
}

void run(const float* x, int64_t stride, int64_t channels, int64_t count, const QByte& q, uint8_t* y) {
    const ToByte to(q);
    if (channels == 1) return write_bytes(y, count, [&](int64_t i, int n) { return to(load(x + i, n, 0.0f)); });
    int64_t i = 0;
    if (channels == 3)
        for (; i + 4 * W <= count; i += 4 * W) {
            I32 pixels[4];
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                const float* at = x + i + j * W;
                pixels[j] = joined(to(F32::load(at)), to(F32::load(at + stride)), to(F32::load(at + 2 * stride)));
            }
            store_pixels(pixels, y + 3 * i);
        }
    for (; i < count; i += W) few_pixels(x + i, stride, channels, lanes_left(count, i), to, y + i * channels);
}

}  // namespace

extern const QuantizeImageKernels MVIT_ISA_SYMBOL(quantize_image);
const QuantizeImageKernels MVIT_ISA_SYMBOL(quantize_image) = {run};

}  // namespace mvit
