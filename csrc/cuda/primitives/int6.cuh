// Four words of four 6-bit values in three: 12 bytes for 16 values.
//
//     bits of each byte    7 .. 2   1 0
//     word 0             | value 0 | bits 5 4 of value 3 |
//     word 1             | value 1 | bits 3 2 of value 3 |
//     word 2             | value 2 | bits 1 0 of value 3 |
//
// A value in the top six bits of a byte is that byte, as an int8, divided by 4, its sign in place: nothing is sign-extended, and words of
// four times the values are multiplied. Sums are then four times too large; a shift makes them right, exactly, while four times the sum
// fits in int32.
#pragma once

#include "cuda/primitives/device.cuh"

namespace mvit::cuda {

inline constexpr int int6_shift = 2;

MVIT_BOTH void unpack_int6(const uint32_t (&planes)[3], uint32_t (&words)[4]) {
    constexpr uint32_t high = 0xFCFCFCFCu, low = 0x03030303u;
    for (int i = 0; i < 3; ++i) words[i] = planes[i] & high;
    words[3] = (planes[0] & low) << 6 | (planes[1] & low) << 4 | (planes[2] & low) << 2;
}

}  // namespace mvit::cuda
