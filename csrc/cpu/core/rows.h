// Operands of the tile multiplication: rows of any float type as what they are multiplied as, on their way through a norm. Internal
// linkage.
#pragma once

#include "cpu/core/row_source.h"
#include "cpu/core/simd.h"
#include "cpu/core/tile.h"

namespace mvit {
namespace {

// body(i, lanes) for a row of n elements.
template <class Body>
inline void each_vector_of(int64_t n, const Body& body) {
    for (int64_t i = 0; i < n; i += F32::width) body(i, lanes_left(n, i));
}

template <class T>
inline void load_row(const T* from, int64_t n, float* to) {
    each_vector_of(n, [&](int64_t i, int lanes) { store(load(from + i, lanes, 0.0f), to + i, lanes); });
}

inline void load_row(const bf16* from, int64_t n, bf16* to) { __builtin_memcpy(to, from, static_cast<size_t>(n) * sizeof(bf16)); }

template <class T>
inline void load_row_centred(const T* from, int64_t n, float* to, Centre mean, float scale) {
    const F32 high = F32::all(mean.high), low = F32::all(mean.low), a = F32::all(scale);
    each_vector_of(n, [&](int64_t i, int lanes) { store(((load(from + i, lanes, 0.0f) - high) - low) * a, to + i, lanes); });
}

// A row to mean 0 and variance 1, in place in the first cache: the mean, then what the centred values still sum to corrects it.
inline void normalize_row(float* x, int64_t n, float eps) {
    const float count = static_cast<float>(n);
    F32 sum = F32::all(0.0f);
    each_vector_of(n, [&](int64_t i, int lanes) { sum = sum + load(x + i, lanes, 0.0f); });
    const float mean = first_lane(sum_phases(sum, 1)) / count;
    const F32 centre = F32::all(mean);
    F32 rest = F32::all(0.0f), square = rest;
    each_vector_of(n, [&](int64_t i, int lanes) {
        const F32 d = load(x + i, lanes, mean) - centre;
        rest = rest + d;
        square = fma(d, d, square);
        store(d, x + i, lanes);
    });
    const float correction = first_lane(sum_phases(rest, 1)) / count;
    const float variance = first_lane(sum_phases(square, 1)) / count - correction * correction;
    const F32 shift = F32::all(correction), scale = F32::all(1.0f / __builtin_sqrtf(variance + eps));
    each_vector_of(n, [&](int64_t i, int lanes) { store((load(x + i, lanes, 0.0f) - shift) * scale, x + i, lanes); });
}

template <class O>
struct Rows {
    const O* data;
    int64_t stride;
};

// Rows that are multiples of 4 KB apart all share one set of the first cache, more of them than it has ways. At 2 KB they take two sets,
// which hold a tile's: not worth a copy, but nothing that scratch memory should do (scratch_stride).
template <class T>
inline bool shares_sets(int64_t stride) {
    return stride * int64_t{sizeof(T)} % 4096 == 0;
}

// float32 to bfloat16, with zeros up to an even count. `to` may be the same memory.
inline void narrow_row(const float* from, int64_t n, bf16* to) {
    each_vector_of(n, [&](int64_t i, int lanes) { store_normal(load(from + i, lanes, 0.0f), to + i, lanes); });
    if (n % 2 != 0) to[n].bits = 0;
}

// The rows of a source as what they are multiplied as: its own memory where that holds what is wanted, else `scratch`, of rows x
// scratch_stride(depth) floats.
template <class T>
inline Rows<Operand<T>> load_rows(const RowSource& s, int64_t rows, float* scratch) {
    using O = Operand<T>;
    const T* a = static_cast<const T*>(s.a);
    const int64_t depth = s.depth + s.second_depth;
    if constexpr (sizeof(T) == sizeof(O)) {
        const bool as_it_is = !s.centred && !s.layer_norm && s.second_depth == 0 && packed_depth<O>(depth) == depth;
        if (as_it_is && !(shares_sets<T>(s.stride) && rows > 4)) return {a, s.stride};
    }
    // Rows of bfloat16 are half as long: each is made of one of float32 that begins where it does or further on.
    const int64_t stride = scratch_stride(depth), made_stride = scratch_stride<O>(depth);
    const T* second = static_cast<const T*>(s.second);
    for (int64_t r = 0; r < rows; ++r) {
        float* to = scratch + r * stride;
        if (s.centred) {
            load_row_centred(a + r * s.stride, s.depth, to, s.mean, s.scale);
        } else {
            load_row(a + r * s.stride, s.depth, to);
        }
        if (s.second_depth > 0) load_row(second + r * s.second_stride, s.second_depth, to + s.depth);
        if (s.layer_norm) normalize_row(to, s.depth, s.eps);
        if constexpr (is_bf16<O>) narrow_row(to, depth, reinterpret_cast<bf16*>(scratch) + r * made_stride);
    }
    return {reinterpret_cast<const O*>(scratch), made_stride};
}

}  // namespace
}  // namespace mvit
