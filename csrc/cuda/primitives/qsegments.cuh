// SiLU, GELU and hard-swish as `activate_segments` of cpu/core/qepilogue.h has them, with the same bits, of a table in shared memory.
//
// Segments are 1/4 wide up to 4, 1/2 up to 8 and 1 up to 16. That is where numbers of three bits behind the first one lie, of which the
// least normal one is 2: |x| 2^-127, rounded toward zero, has the segment as its bits from the 20th on, since up to 2 it is subnormal, with
// the same steps as up to 4. From 4 on, where the bits have a 1 in place 24, the definition rounds 2 |x| + 8 and |x| + 16 to one bit less:
// the number in front of a segment belongs to it already. Coefficients lie in three arrays of 32 banks each: lanes of different segments
// do not meet.
#pragma once

#include "cuda/primitives/floats.cuh"
#include "cuda/primitives/shared.cuh"

namespace mvit::cuda {

class SharedSegments {
  public:
    static constexpr int count = 32, bytes = 3 * count * 4;

    // Of all threads, before a barrier; shared: `bytes`, aligned to 4.
    MVIT_DEVICE static void load(const float* segments, uint8_t* shared, int threads) {
        MVIT_ROLLED
        for (int i = thread_index(); i < 3 * count; i += threads) reinterpret_cast<float*>(shared)[i] = segments[i];
    }

    MVIT_DEVICE explicit SharedSegments(const uint8_t* shared) : at_(shared, 0) {}

    // max(x, 0) + e(|x|), where 0 that is added beyond 16 adds nothing. NaN stays NaN.
    MVIT_DEVICE float operator()(float x) const {
        constexpr uint32_t last = 0x01FFFFFF;  // also of 16, and of what is beyond
        const float size = fabsf(x), positive = fmaxf(x, 0.0f);
        const uint32_t bits = float_bits(multiply_toward_zero(size, 0x1p-127f)), next = bits + (bits >> 24);
        const uint32_t segment = (next < last ? next : last) >> 18 & 0x7C;
        const float constant = float_of_bits(at_.load_u32(segment));
        const float linear = float_of_bits(at_.load_u32<4 * count>(segment)), square = float_of_bits(at_.load_u32<8 * count>(segment));
        const float e = (square * size + linear) * size + constant;
        return size > 16.0f ? positive : positive + e;
    }

  private:
    SharedAddress at_;
};

}  // namespace mvit::cuda
