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

// The moments of the whole from its tiles, in the order given (Chan, Golub, LeVeque 1983, equation 2.1). In float64, nothing cancels.
inline Moments combine(const Statistics* tiles, int64_t count) {
    Statistics whole = tiles[0];
    for (int64_t i = 1; i < count; ++i) {
        const double delta = tiles[i].mean - whole.mean, both = whole.count + tiles[i].count;
        whole.mean += delta * tiles[i].count / both;
        whole.m2 += tiles[i].m2 + delta * delta * whole.count * tiles[i].count / both;
        whole.count = both;
    }
    return {whole.mean, whole.m2 / whole.count};
}

inline Centre centre_of(double mean) {
    const float high = static_cast<float>(mean);
    return {high, static_cast<float>(mean - static_cast<double>(high))};
}

}  // namespace mvit
