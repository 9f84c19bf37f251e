// What the tests of two products on an int16 stream share (cuda/ops/qpair.cuh): their weights, and the norm in plain loops.
#pragma once

#include <cmath>

#include "cuda/ops/qpair.h"
#include "tests/check.h"

namespace mvit::tests {

// Weights and numbers as cuda/ops/qpair.cuh wants them, value by value.
class PairSlices {
  public:
    PairSlices(int channels, int hidden)
        : depth_(round_up(channels, 32) / 32), slice_(384 + 2048 * depth_), data_(round_up(hidden, 32) / 32 * slice_) {
        std::memset(data_.data(), 0, static_cast<size_t>(data_.size()));
    }
    // Hidden channel 16 p + 4 t + 2 u + b is column 8 (2 p + u) + 2 t + b; channel 8 t + 4 v + b is value 16 v + 4 t + b of the depth.
    void put_first(int64_t h, int64_t c, int value) {
        const int64_t column = h % 32 / 16 * 16 + h % 4 / 2 * 8 + h % 16 / 4 * 2 + h % 2, k = c % 8 / 4 * 16 + c % 32 / 8 * 4 + c % 4;
        put(h / 32 * slice_ + 384 + (column / 16 * depth_ + c / 32) * 512, column, k, value);
    }
    // Column 8 t + 2 i + b lies at 8 i + 2 t + b.
    void put_second(int64_t n, int64_t h, int value) {
        const int64_t place = n % 8 / 2 * 8 + n % 32 / 8 * 2 + n % 2;
        put(h / 32 * slice_ + 384 + 1024 * depth_ + (n / 32 * 2 + place / 16) * 512, place, h % 32, value);
    }
    void put_numbers(int64_t h, int32_t init, float scale) {
        uint8_t* numbers = data_.data() + h / 32 * slice_;
        for (int64_t twice : {0, 2}) std::memcpy(numbers + (h % 32 / 2 * 4 + h % 2 + twice) * 4, &init, 4);
        std::memcpy(numbers + (64 + h % 32) * 4, &scale, 4);
    }
    const uint8_t* data() { return data_.data(); }

  private:
    void put(int64_t tile, int64_t n, int64_t k, int value) {
        const int64_t lane = n % 8 * 4 + k % 16 / 4, word = n % 16 / 8 * 2 + k / 16;
        data_[tile + lane * 16 + word * 4 + k % 4] = static_cast<uint8_t>(value);
    }

    int64_t depth_, slice_;
    Guarded<uint8_t> data_;
};

inline int byte_of_stream(const cuda::QPairNorm& n, int16_t x, double sum, double squares, double count) {
    const double mean = sum / count, variance = std::fmax(squares / count - mean * mean, 0.0);
    const auto factor = static_cast<float>(n.ratio / std::sqrt(variance * n.square + n.eps));
    const float t = (static_cast<float>(x) - static_cast<float>(mean)) * factor;
    const float inside = t >= n.low ? std::fmin(t, n.high) : n.low;  // NaN too
    return static_cast<int>(std::nearbyint(inside)) + n.zero_point;
}

}  // namespace mvit::tests
