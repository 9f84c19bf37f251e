// A byte as a real number: scale * float(q - zero_point), for any int32 zero-point.
//
// q - zero_point may take 33 bits. -zero_point = low + high with 0 <= low < 2^16: q + low, below 2^17, and high, 16 bits times 2^16, are
// exact in float32, so that float(q + low) + high is q - zero_point rounded once.
#pragma once

#include <cstdint>

namespace mvit {

struct QReal {
    float scale, high;
    int32_t low;
};

inline constexpr QReal qreal(float scale, int32_t zero_point) {
    const int64_t minus = -int64_t{zero_point}, low = minus & 0xFFFF;
    return {scale, static_cast<float>(minus - low), static_cast<int32_t>(low)};
}

}  // namespace mvit
