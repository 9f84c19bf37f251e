// SiLU and GELU on int16 numbers, as cpu/core/qcurve.h derives and defines them: looked up, or computed where that cannot be looked up.
//
// Of x, y is a byte that goes up and down in steps of one. With 2^f steps of x to one of y and slopes of at most 1.1, 2^k neighbouring x
// hold one step at most, where k < f: an entry of 16 bits says the byte that they begin with, and where the step is. Below one number y
// falls or stays, from there on it rises or stays; by their distance from that number, steps of both sides go up. Where rounding lets y go
// to and fro there is no such number, nor tables where f is so small that they would be too large: in trained networks, whose scales are
// from 0.007 on, none; of random weights, whose maps are small, an eighth. mvit_kernels/ops/qcurve.py looks for them, with every x.
//
//     bucket B: x from B 2^k to (B + 1) 2^k - 1      turn, from which on y rises, is the first one of a bucket
//     entry:    256 y + 256 - t - w  modulo 2^16     y, w = |x - turn|: of the x of the bucket that is nearest to turn; t: how many x there
//                                                    are before the step, on the way from there, or 256
//     y = (|x - turn| + entry) / 256  modulo 2^8     carries from the t-th x on, and no second time, as 2^k < 256
//
// x comes as a float, is held between the ends, beyond which y stays what it is, and rounded to the nearest integer, ties to even, by a sum
// whose last place is 1: low bits of it are x. The bucket is what a shift leaves; the distance and its sum with the entry are one
// instruction. A value takes 8.
#pragma once

#include "cuda/primitives/dot4.cuh"
#include "cuda/primitives/floats.cuh"
#include "cuda/primitives/shared.cuh"

namespace mvit::cuda {

// Behind the numbers of a curve in memory, which is aligned to 16 bytes, from int16 `curve_head` on; then entries, and zeros up to 16
// bytes.
struct CurveHead {
    float low, high;   // what x is held between
    uint32_t turn;     // with the bits of 0x1.8p23
    uint32_t address;  // added to twice the bits of x + 0x1.8p23, shifted by k: where the entry is, behind the first one
    int32_t entries;   // or 0: no steps
    int32_t shift;     // k
    int32_t unused[2];
};
inline constexpr int curve_head = 200, curve_entries = curve_head + static_cast<int>(sizeof(CurveHead)) / 2, most_curve_entries = 4096;

// A curve that has steps, in shared memory.
class CurveSteps {
  public:
    CurveSteps() = default;
    // shared: of `SharedCurve::load`.
    MVIT_DEVICE explicit CurveSteps(const uint8_t* shared) {
        const auto* head = reinterpret_cast<const Sixteen*>(shared);  // whose parts are read at once
        const Sixteen first = head[0], second = head[1];
        low_ = float_of_bits(first.words[0]), high_ = float_of_bits(first.words[1]), turn_ = first.words[2];
        entries_ = SharedAddress(shared + sizeof(CurveHead), first.words[3]);
        shift_ = second.words[1];
    }

    // Bytes of `count` floats, two or four, from the lowest byte on; of two, both halves of the word hold them.
    template <int count>
    MVIT_DEVICE uint32_t operator()(const float (&x)[count]) const {
        static_assert(count == 2 || count == 4);
        uint32_t sums[count];
        MVIT_UNROLL
        for (int i = 0; i < count; ++i) {
            const uint32_t place = float_bits(fminf(fmaxf(x[i], low_), high_) + 0x1.8p23f);
            sums[i] = add_distance(place, turn_, entries_.load_u16(2 * (place >> shift_)));
        }
        const uint32_t bytes = permute(sums[0], sums[1], 0x5151);
        if constexpr (count == 2) return bytes;
        return permute(bytes, permute(sums[count - 2], sums[count - 1], 0x5151), 0x5410);
    }

  private:
    float low_, high_;
    SharedAddress entries_;
    uint32_t turn_, shift_;
};

// A curve in shared memory: its steps, or the polynomials.
//
// With m the low nine bits of |x|, r = 64 m in cpu/core/qcurve.h, and (r c + 2^14) / 2^15 = floor((m c + 2^8) / 2^9) there; of the last
// product, with 1024, floor((e + 2^4) / 2^5): factors of two that cancel. What is added after the last goes into it 32 times. |x| is
// rounded by a sum whose last place is 1.
class SharedCurve {
  public:
    static constexpr int segments = 64, bytes = static_cast<int>(sizeof(CurveHead)) + 2 * most_curve_entries;

    // Of all threads, before a barrier; shared: `bytes`, aligned to 16.
    MVIT_DEVICE static void load(const int16_t* curve, uint8_t* shared, int threads) {
        const auto* from = reinterpret_cast<const Sixteen*>(curve + curve_head);
        const int entries = reinterpret_cast<const CurveHead*>(from)->entries;
        if (entries > 0) {
            const int chunks = static_cast<int>(sizeof(CurveHead)) / 16 + (entries + 7) / 8;
            MVIT_ROLLED
            for (int i = thread_index(); i < chunks; i += threads) reinterpret_cast<Sixteen*>(shared)[i] = from[i];
            return;
        }
        if (thread_index() < 2) reinterpret_cast<Sixteen*>(shared)[thread_index()] = from[thread_index()];
        uint8_t* const to = shared + sizeof(CurveHead);
        MVIT_ROLLED
        for (int i = thread_index(); i < segments; i += threads) {
            const auto low = static_cast<uint16_t>(curve[i]), high = static_cast<uint16_t>(curve[64 + i]);
            reinterpret_cast<Segment*>(to)[i] = {static_cast<int32_t>(low | uint32_t{high} << 16), curve[128 + i]};
        }
        if (thread_index() == 0) *reinterpret_cast<Rest*>(to + segments * 8) = {curve[192], 16 + 32 * curve[193], curve[194]};
    }

    MVIT_DEVICE static bool has_steps(const uint8_t* shared) { return reinterpret_cast<const CurveHead*>(shared)->entries > 0; }

    // Of a curve without steps.
    MVIT_DEVICE explicit SharedCurve(const uint8_t* shared)
        : segments_(shared + sizeof(CurveHead)), rest_(*reinterpret_cast<const Rest*>(segments_ + segments * 8)) {}

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
