// What the tests of the float ops share: values of any float type as doubles, packed weights, activations and moments in double precision.
#pragma once

#include <cmath>

#include "cpu/core/moments.h"
#include "cpu/core/scratch.h"
#include "cpu/core/simd.h"
#include "cpu/core/tile.h"
#include "tests/check.h"

namespace mvit::tests {

inline constexpr Activation activations[] = {Activation::none, Activation::relu,  Activation::silu,
                                             Activation::gelu, Activation::relu6, Activation::hard_swish};

template <class T>
inline constexpr DType dtype_of = DType::f32;
template <>
inline constexpr DType dtype_of<bf16> = DType::bf16;
template <>
inline constexpr DType dtype_of<f16> = DType::f16;

// Half a unit in the last place, relative to the value.
template <class T>
inline constexpr double rounding = 0x1p-24;
template <>
inline constexpr double rounding<bf16> = 0x1p-8;
template <>
inline constexpr double rounding<f16> = 0x1p-11;

// Of a result that is 0 or nearly so, where float16 is subnormal.
template <class T>
inline constexpr double least_rounding = 0.0;
template <>
inline constexpr double least_rounding<f16> = 0x1p-25;

template <class T>
double value(T x) {
    return double{to_float(x)};
}

template <class T>
void fill(Guarded<T>& buffer, float mean = 0.0f, float scale = 1.0f) {
    for (int64_t i = 0; i < buffer.size(); ++i) from_float(mean + scale * random_float(), &buffer[i]);
}

template <class T>
void fill_with(Guarded<T>& buffer, float x) {
    for (int64_t i = 0; i < buffer.size(); ++i) from_float(x, &buffer[i]);
}

template <class T>
bool same_bits(Guarded<T>& a, Guarded<T>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), static_cast<size_t>(a.size()) * sizeof(T)) == 0;
}

// NaN in the scratch memory of this thread, of any float type: what an earlier call has left there may not reach a result.
inline void spoil_scratch() {
    constexpr int64_t count = 1 << 16;
    if (float* scratch = thread_scratch().floats(count)) std::memset(scratch, 0xFF, count * sizeof(float));
}

// How far what is multiplied may be from what it was before it became an operand, relative to it.
template <class T>
inline constexpr double operand_rounding = is_bf16<T> ? rounding<bf16> : 0.0;

// Where entry (n, k) of a matrix of so much depth is in its packed form (core/tile.h), for operands O.
template <class O>
int64_t packed_index(int64_t n, int64_t k, int64_t depth) {
    if (!is_bf16<O>) return (n / panel * depth + k) * panel + n % panel;
    return n / half_panel * half_panel * packed_depth<O>(depth) + (k / 2 * half_panel + n % half_panel) * 2 + k % 2;
}

// A random matrix (columns, depth) of standard deviation 1 / sqrt(depth) with a random bias, packed for operands O; zeros beyond.
template <class O = float>
class Weight {
  public:
    Weight(int64_t columns, int64_t depth)
        : depth_(depth), packed_(panels(columns) * panel * packed_depth<O>(depth)), bias_(panels(columns) * panel) {
        fill_with(packed_, 0.0f);
        fill_with(bias_, 0.0f);
        const float scale = 1.0f / std::sqrt(static_cast<float>(depth > 0 ? depth : 1));
        for (int64_t n = 0; n < columns; ++n) {
            for (int64_t k = 0; k < depth; ++k) from_float(scale * random_float(), &packed_[packed_index<O>(n, k, depth)]);
            bias_[n] = random_float();
        }
    }
    const O* data() { return packed_.data(); }
    const float* bias_data() { return bias_.data(); }
    double at(int64_t n, int64_t k) { return value(packed_[packed_index<O>(n, k, depth_)]); }
    double bias(int64_t n) { return double{bias_[n]}; }

  private:
    int64_t depth_;
    Guarded<O> packed_;
    Guarded<float> bias_;
};

inline double activate_exactly(Activation activation, double x) {
    switch (activation) {
        case Activation::relu:
            return std::fmax(x, 0.0);
        case Activation::silu:
            return x / (1.0 + std::exp(-x));
        case Activation::gelu:
            return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
        case Activation::relu6:
            return std::fmin(std::fmax(x, 0.0), 6.0);
        case Activation::hard_swish:
            return x * std::fmin(std::fmax(x + 3.0, 0.0), 6.0) / 6.0;
        default:
            return x;
    }
}

// How far results of T may be from it before they are rounded: to bfloat16 they come, with AVX-512, from short approximations
// (core/activation.h).
template <class T>
double activation_error(Activation activation, double exact) {
    if (!is_bf16<T> || isa_active() < Isa::avx512vnni) return 0.0;
    if (activation == Activation::gelu) return 0x1p-11 * std::fabs(exact) + 1.2e-6;
    return activation == Activation::silu ? 0x1p-12 * std::fabs(exact) : 0.0;
}

// Of `count` values at(0), at(1), ...
template <class At>
Moments exact_moments(int64_t count, const At& at) {
    Moments m{0.0, 0.0};
    for (int64_t i = 0; i < count; ++i) m.mean += at(i) / static_cast<double>(count);
    for (int64_t i = 0; i < count; ++i) m.variance += (at(i) - m.mean) * (at(i) - m.mean) / static_cast<double>(count);
    return m;
}

inline bool near(const Moments& actual, const Moments& expected) {
    return std::fabs(actual.mean - expected.mean) < 1e-5 * (1 + std::fabs(expected.mean)) &&
           std::fabs(actual.variance - expected.variance) < 1e-5 * (1 + expected.variance);
}

// Both moments of every group of `count` values of y.
template <class T>
bool moments_are_of(Guarded<Moments>& moments, Guarded<T>& y, int64_t count) {
    for (int64_t group = 0; group < moments.size(); ++group)
        if (!near(moments[group], exact_moments(count, [&](int64_t i) { return value(y[group * count + i]); }))) return false;
    return moments.canary_intact();
}

}  // namespace mvit::tests
