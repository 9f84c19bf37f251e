// Between bytes and real numbers, one scale and zero-point at a time.
//
// A byte as a real number is scale * float(q - zero_point), for any int32 zero-point.
//
// q - zero_point may take 33 bits. -zero_point = low + high with 0 <= low < 2^16: q + low, below 2^17, and high, 16 bits times 2^16, are
// exact in float32, so that float(q + low) + high is q - zero_point rounded once. A zero-point up to 2^23 is exact itself: low = 0.
//
// A real number as a byte is rint(min(max(x * inverse, -zero_point), most - zero_point)) + zero_point, inverse = float32(1 / scale),
// most = 2^bits - 1; NaN becomes 0 (to_byte of qepilogue.h). The bounds are integers, so the clamp may stand before the rounding.
#pragma once

#include <cstdint>

namespace mvit {

struct QReal {
    float scale, high;
    int32_t low;
};

inline constexpr QReal qreal(float scale, int32_t zero_point) {
    const int64_t minus = -int64_t{zero_point}, low = minus >= -(1 << 23) && minus <= 1 << 23 ? 0 : minus & 0xFFFF;
    return {scale, static_cast<float>(minus - low), static_cast<int32_t>(low)};
}

inline constexpr int32_t farthest_zero_point = 1 << 20;  // of what is written: the bounds and what lies between them are exact

inline constexpr bool writable(int32_t zero_point) { return zero_point >= -farthest_zero_point && zero_point <= farthest_zero_point; }

struct QByte {
    float inverse, low, high;
    int32_t zero_point;
};

inline constexpr QByte qbyte_of_inverse(float inverse, int32_t zero_point, int bits) {
    const int64_t z = zero_point;
    return {inverse, static_cast<float>(-z), static_cast<float>((1 << bits) - 1 - z), zero_point};
}
inline constexpr QByte qbyte(float scale, int32_t zero_point, int bits) {
    return qbyte_of_inverse(static_cast<float>(1.0 / static_cast<double>(scale)), zero_point, bits);
}

}  // namespace mvit
