// Division by a number that the host knows: a product and a shift.
//
// With 2^(s - 1) < d <= 2^s and m = ceil(2^(31 + s) / d), which is below 2^32, m d = 2^(31 + s) + e, e < d <= 2^s. Then n m / 2^(31 + s) =
// n / d + n e / (d 2^(31 + s)), and the second part is less than 1 / d for n < 2^31: rounded down, both are n / d.
#pragma once

#include "cuda/primitives/device.cuh"

namespace mvit::cuda {

class Divisor {
  public:
    MVIT_BOTH explicit Divisor(uint32_t d) {
        while (shift_ < 62 && uint64_t{1} << (shift_ - 31) < d) ++shift_;
        multiplier_ = static_cast<uint32_t>(((uint64_t{1} << shift_) + d - 1) / d);
    }
    // n < 2^31.
    MVIT_BOTH uint32_t operator()(uint32_t n) const { return static_cast<uint32_t>(uint64_t{n} * multiplier_ >> shift_); }

  private:
    int shift_ = 31;
    uint32_t multiplier_;
};

// The lowest of digits that count to `count`.
class Digit {
  public:
    MVIT_BOTH explicit Digit(uint32_t count) : count_(count), by_(count) {}
    // Off n < 2^31, which has the higher ones left.
    MVIT_BOTH uint32_t take(uint32_t& n) const {
        const uint32_t all = n;
        n = by_(all);
        return all - n * count_;
    }
    MVIT_BOTH int64_t count() const { return count_; }

  private:
    uint32_t count_;
    Divisor by_;
};

}  // namespace mvit::cuda
