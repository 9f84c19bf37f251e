// SiLU and GELU on int16 numbers, as cpu/core/qcurve.h derives and does it.
#pragma once

#include "cuda/primitives/floats.cuh"

namespace mvit::cuda {

// A curve in shared memory, of floats that are rounded to the nearest int16, ties to even, in few instructions.
//
// With m the low nine bits of |x|, r = 64 m in cpu/core/qcurve.h, and (r c + 2^14) / 2^15 = floor((m c + 2^8) / 2^9) there; of the last
// product, with 1024, floor((e + 2^4) / 2^5): factors of two that cancel. What is added after the last goes into it 32 times. |x| is
// rounded by a sum whose last place is 1.
class SharedCurve {
  public:
    static constexpr int segments = 64, bytes = segments * 8 + 16;

    // Of all threads, before a barrier; shared: `bytes`, aligned to 8.
    MVIT_DEVICE static void load(const int16_t* curve, uint8_t* shared, int threads) {
        MVIT_ROLLED
        for (int i = thread_index(); i < segments; i += threads) {
            const auto low = static_cast<uint16_t>(curve[i]), high = static_cast<uint16_t>(curve[64 + i]);
            reinterpret_cast<Segment*>(shared)[i] = {static_cast<int32_t>(low | uint32_t{high} << 16), curve[128 + i]};
        }
        if (thread_index() == 0) *reinterpret_cast<Rest*>(shared + segments * 8) = {curve[192], 16 + 32 * curve[193], curve[194]};
    }

    MVIT_DEVICE explicit SharedCurve(const uint8_t* shared)
        : segments_(shared), rest_(*reinterpret_cast<const Rest*>(shared + segments * 8)) {}

    MVIT_DEVICE uint32_t operator()(float x) const {
        const uint32_t bits = float_bits(fminf(fabsf(x), 32767.0f) + 0x1.8p23f);
        const auto segment = *reinterpret_cast<const Segment*>(segments_ + (bits >> 6 & 0x1F8));
        const auto m = static_cast<int32_t>(bits & 511);
        const int32_t slope = (segment.low >> 16) + ((m * segment.square + 256) >> 9);
        const int32_t e = static_cast<int16_t>(segment.low) + ((m * slope + 256) >> 9);
        const int32_t sum = (x > 0.0f ? static_cast<int32_t>(bits & 0x7FFF) : 0) + ((e + rest_.added) >> 5);
        const int32_t y = (sum < 32767 ? sum : 32767) >> rest_.shift;
        return static_cast<uint32_t>(y < 0 ? 0 : y < rest_.most ? y : rest_.most);
    }

  private:
    struct alignas(8) Segment {
        int32_t low, square;  // the coefficients of 1 (low half) and m, and of m squared
    };

    struct Rest {
        int32_t shift, added, most;
    };

    const uint8_t* segments_;
    Rest rest_;
};

}  // namespace mvit::cuda
