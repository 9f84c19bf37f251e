// Mean and variance: what a norm needs to know of its input, gathered tile by tile and handed from op to op.
#pragma once

#include <cstdint>

namespace mvit {

// Of one tile: how many values, their mean, and the sum of their squared deviations from it.
struct Statistics {
    double count, mean, m2;
};

// Of a whole; variance divides by the count.
struct Moments {
    double mean, variance;
};

// x - mean in float32 without losing the digits of the mean: (x - high) - low.
struct Centre {
    float high, low;
};

// The moments of the whole from its tiles, in their order: the mean of the means, then what the tiles' own deviations and those of their
// means add up to (Chan, Golub, LeVeque 1983). In float64, nothing cancels.
inline Moments combine(const Statistics* tiles, int64_t count) {
    double n = 0.0, sum = 0.0, m2 = 0.0;
    for (int64_t i = 0; i < count; ++i) {
        n += tiles[i].count;
        sum += tiles[i].count * tiles[i].mean;
    }
    const double mean = sum / n;
    for (int64_t i = 0; i < count; ++i) {
        const double delta = tiles[i].mean - mean;
        m2 += tiles[i].m2 + tiles[i].count * delta * delta;
    }
    return {mean, m2 / n};
}

inline Centre centre_of(double mean) {
    const float high = static_cast<float>(mean);
    return {high, static_cast<float>(mean - static_cast<double>(high))};
}

}  // namespace mvit
