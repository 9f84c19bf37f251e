// Activation functions on F32. Internal linkage, like simd.h.
#pragma once

#include "cpu/core/simd.h"
#include "cpu/core/types.h"

namespace mvit {
namespace {

// Coefficients of (2^s - 1) / s for |s| <= 1/2, the highest power first: the minimax fit of degree 4, relative error 9e-8.
constexpr float exp2_fit[5] = {0.00132647273f, 0.00967151299f, 0.0555073358f, 0.240222424f, 0.693147004f};
// The same of (e^r - 1) / r for |r| <= ln2 / 2: r = s ln2.
constexpr float exp_fit[5] = {0.00829031478f, 0.0418979308f, 0.166676357f, 0.499991502f, 0.999999745f};

// 1 + r fit(r)
inline F32 exp_of_rest(F32 r, const float (&fit)[5]) {
    F32 p = F32::all(fit[0]);
    p = fma(p, r, F32::all(fit[1]));
    p = fma(p, r, F32::all(fit[2]));
    p = fma(p, r, F32::all(fit[3]));
    p = fma(p, r, F32::all(fit[4]));
    return fma(p, r, F32::all(1.0f));
}

// e^x within 2 ulp where the result is a normal number, tiny below, infinite or huge above; NaN stays NaN.
// Reduced as in `exp` (simd.h): exact whether or not fma rounds once. Far below, r would be so large that its powers overflow.
inline F32 exp_quick(F32 x) {
    x = max(F32::all(-104.0f), x);  // the second argument where x is NaN
    F32 n = round(x * F32::all(1.44269504088896341f));
#if !defined(MVIT_ISA_AVX512VNNI)
    n = min(F32::all(127.0f), n);  // of an infinite one, r would be NaN
#endif
    F32 r = fma(n, F32::all(-0.693359375f), x);
    r = fma(n, F32::all(2.12194440e-4f), r);
#if defined(MVIT_ISA_AVX512VNNI)
    return times_pow2(exp_of_rest(r, exp_fit), n);  // infinite where n is, though r is NaN there
#else
    return exp_of_rest(r, exp_fit) * pow2(max(F32::all(-126.0f), n));
#endif
}

// 2^x within 2 ulp for -126 <= x <= 127; NaN stays NaN. x = n + r is exact.
inline F32 exp2_quick(F32 x) {
    const F32 n = round(x);
    return times_pow2(exp_of_rest(x - n, exp2_fit), n);
}

// x / (1 + e^-x). Division is no bottleneck here: it has a unit of its own beside the multiply-adds of the exponential.
inline F32 silu(F32 x) { return x / (F32::all(1.0f) + exp_quick(F32::all(0.0f) - x)); }

// For results of bfloat16, within 2^-12.
#if defined(MVIT_ISA_AVX512VNNI)
// 2^x within 2^-13.7, relative: of the fraction of x by the minimax fit of degree 3. Here times_pow2 takes the floor of x.
inline F32 exp2_short(F32 x) {
    const F32 f = fraction(x);
    F32 p = fma(F32::all(0.0780245226f), f, F32::all(0.226067155f));
    p = fma(p, f, F32::all(0.69583354f));
    p = fma(p, f, F32::all(0.999925219f));
    return times_pow2(p, x);
}
// x / (1 + 2^n)
inline F32 gated(F32 x, F32 n) { return x * reciprocal_estimate(F32::all(1.0f) + exp2_short(n)); }
inline F32 silu_short(F32 x) { return gated(x, x * F32::all(-1.44269504f)); }
#else
inline F32 silu_short(F32 x) { return silu(x); }
#endif

// x Phi(x) = max(x, 0) - |x| (1/2 - |x| P(x^2) / Q(x^2)): the quotient is the minimax fit of (Phi(s) - 1/2) / s up to s = 5.6, absolute
// error of Phi 1e-8. Beyond, the second term is below 1e-7, and 0. As in torch, whose Phi is 1 + erf, the error is absolute in the tail.
constexpr float gelu_over[6] = {2.21453327e-8f, 6.35653669e-6f, 1.73850829e-4f, 4.70725959e-3f, 3.43761109e-2f, 0.398942232f};
constexpr float gelu_under[6] = {1.18021296e-6f, 7.51019834e-5f, 1.91297859e-3f, 2.89400909e-2f, 0.252833843f, 1.0f};

inline F32 gelu(F32 x) {
    const F32 zero = F32::all(0.0f), size = max(x, zero - x), u = x * x;
    F32 p = F32::all(gelu_over[0]), q = F32::all(gelu_under[0]);
    for (int i = 1; i < 6; ++i) {
        p = fma(p, u, F32::all(gelu_over[i]));
        q = fma(q, u, F32::all(gelu_under[i]));
    }
    const F32 tail = size * (F32::all(0.5f) - size * p / q);
    return max(zero, x) - where_positive(F32::all(5.6f) - size, tail);
}

// For results of bfloat16, within 2^-13 down to x = -3 and 1e-6 below: max(x, 0) + t 2^P(t), t = -|x|, P the minimax fit of log2 Phi(t).
// Beyond 11 the second term is below 1e-30, and no denormal number. Unlike the above it does not divide.
#if defined(MVIT_ISA_AVX512VNNI)
inline F32 gelu_short(F32 x) {
    const F32 t = minus_size(x, F32::all(11.0f));
    F32 p = fma(F32::all(0.00040166307f), t, F32::all(0.0065568583f));
    p = fma(p, t, F32::all(0.050506886f));
    p = fma(p, t, F32::all(-0.4612789f));
    p = fma(p, t, F32::all(1.1504003f));
    p = fma(p, t, F32::all(-1.0000379f));
    return fma(t, exp2_short(p), max(F32::all(0.0f), x));
}
#else
inline F32 gelu_short(F32 x) { return gelu(x); }
#endif

// min(max(x + 3, 0), 6) / 6 (MobileNetV3, arXiv 1905.02244, section 5.2), each operation rounded once; NaN stays NaN.
inline F32 hard_sigmoid(F32 x) { return min(F32::all(6.0f), max(F32::all(0.0f), x + F32::all(3.0f))) / F32::all(6.0f); }

// The slope b beside a: NaN where a is, too, since of two products the larger of NaN and another would be the other.
inline F32 beside(F32 a, F32 b) { return b * (F32::all(1.0f) + (a - a)); }

// max(a x, b x). NaN of x stays NaN, and so does that of slopes.
struct Slopes {
    F32 a, b;

    // Of `lanes` channels from c on, of a row [a of all | b of all].
    Slopes(const float* slopes, int64_t channels, int64_t c, int lanes)
        : a(load(slopes + c, lanes, 0.0f)), b(load(slopes + channels + c, lanes, 0.0f)) {}
    F32 operator()(F32 x) const { return max(a * x, b * x); }
};

// T: of the result.
template <Activation activation, class T>
inline F32 activate(F32 x) {
    if constexpr (activation == Activation::relu) return max(F32::all(0.0f), x);  // the second argument where x is NaN
    if constexpr (activation == Activation::silu) return is_bf16<T> ? silu_short(x) : silu(x);
    if constexpr (activation == Activation::gelu) return is_bf16<T> ? gelu_short(x) : gelu(x);
    if constexpr (activation == Activation::relu6) return min(F32::all(6.0f), max(F32::all(0.0f), x));
    if constexpr (activation == Activation::hard_swish) return x * hard_sigmoid(x);
    return x;
}

// body<activation>(), the activation known while compiling.
template <class Body>
inline void with_activation(Activation activation, const Body& body) {
    switch (activation) {
        case Activation::none:
            return body.template operator()<Activation::none>();
        case Activation::relu:
            return body.template operator()<Activation::relu>();
        case Activation::silu:
            return body.template operator()<Activation::silu>();
        case Activation::gelu:
            return body.template operator()<Activation::gelu>();
        case Activation::relu6:
            return body.template operator()<Activation::relu6>();
        case Activation::hard_swish:
            return body.template operator()<Activation::hard_swish>();
        case Activation::dynamic:
            break;  // whoever has slopes looks for them first
    }
}

}  // namespace
}  // namespace mvit
