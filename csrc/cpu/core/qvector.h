// What the loops over bytes share: a run a vector at a time, and bytes as real numbers. Internal linkage.
#pragma once

#include "cpu/core/qreal.h"
#include "cpu/core/simd.h"

namespace mvit {
namespace {

// Runs body(i, lanes) over [0, count).
template <class Body>
inline void each_vector(int64_t count, const Body& body) {
    int64_t i = 0;
    for (; i + F32::width <= count; i += F32::width) body(i, F32::width);
    if (i < count) body(i, lanes_left(count, i));
}

struct QRealVector {
    F32 scale, high;
    I32 low;

    explicit QRealVector(const QReal& all) : scale(F32::all(all.scale)), high(F32::all(all.high)), low(I32::all(all.low)) {}
    QRealVector(F32 scale, F32 high, I32 low) : scale(scale), high(high), low(low) {}
    F32 operator()(I32 q) const { return (to_float(q + low) + high) * scale; }
};

}  // namespace
}  // namespace mvit
