// One float32 vector type, F32, with the same members on every ISA, so that a kernel is written once and compiled once an ISA.
//
// Everything here has internal linkage (unnamed namespace): an inline function emitted with AVX-512 instructions under a shared name could
// be picked by the linker for the scalar build. For the same reason isa/*.cpp uses no function template of the standard library.
//
//     F32::width                      lanes: 16 (AVX-512), 8 (AVX2 and portable)
//     F32::load(p), store(p)          p: float*, bf16* or f16*, any alignment
//     F32::load_n(p, n, fill)         the first n lanes from memory, fill in the rest; reads nothing beyond p + n
//     x.store_n(p, n)                 writes n lanes
//     F32::all(s)                     s in every lane
//     + - * /, fma(a, b, c) = a * b + c, max(a, b), min(a, b), round(a)
//     max and min return their second argument where either is NaN (as the x86 instructions do)
//     x.swap_lanes<s>()               lane i gets lane i ^ s
//     where_positive(v, x)            x where !(v <= 0), else 0: NaN counts as positive, as in PyTorch's ReLU gradient
//     where_not_below(v, s, x)        x where !(v < s), else 0
//     pow2(n)                         2^n for integral n in [-126, 127]
//     times_pow2(x, n)                x * 2^n for integral n in [-126, 127]; beyond, anything between the nearest of these and the true
//     value
//     fraction(x)                     x - floor(x), 0 of infinity        }
//     reciprocal_estimate(x)          1 / x within 2^-14 of it           } under AVX-512 alone
//     minus_size(x, most)             -min(|x|, |most|), -|most| of NaN  }
//     transpose(x)                    of x[width]: lane i of x[j] and lane j of x[i] change places
//
// and I32, as many int32 lanes:
//
//     I32::load(p), load_n(p, n)      p: int32_t*, int16_t* or uint8_t*; zero in the lanes that are not loaded
//     store(p), store_n(p, n)         to int32_t*, int16_t* or uint8_t*: the low bits, so what does not fit must have been clamped
//     I32::all(s), + - * (which wrap), max, min
//     to_float(i)                     rounded to nearest even
//     to_int(f)                       the nearest integer, ties to even; anything where that is no int32 or f is NaN
//     truncated(f)                    the same towards zero
//     pick(table, i)                  lane i of table[32]; 0 <= i < 32
#pragma once

#include "cpu/core/types.h"

#if defined(MVIT_ISA_AVX512VNNI)
#include "cpu/core/simd_avx512.h"
#elif defined(MVIT_ISA_AVX2)
#include "cpu/core/simd_avx2.h"
#else
#include "cpu/core/simd_portable.h"
#endif

namespace mvit {
namespace {

// Asks for the line at p, to the second cache: a network has more weights than the caches that are near hold, and what hardware fetches
// by itself is late. p may be beyond what there is. Not for tiles of AMX: they load 16 lines at once, and were slower with it.
inline void fetch_later(const void* p) { __builtin_prefetch(p, 0, 2); }

// A vector of a row of n elements from position i on has this many lanes. With load and store below, full vectors take the plain
// instruction: the test is cheaper than a masked access.
inline int lanes_left(int64_t n, int64_t i) { return n - i < F32::width ? static_cast<int>(n - i) : F32::width; }

template <class T>
inline F32 load(const T* p, int n, float fill) {
    return n == F32::width ? F32::load(p) : F32::load_n(p, n, fill);
}
template <class T>
inline void store(F32 x, T* p, int n) {
    if (n == F32::width) {
        x.store(p);
    } else {
        x.store_n(p, n);
    }
}
// The same, but that a subnormal number may become 0 as bfloat16: an instruction where there is one.
template <class T>
inline void store_normal(F32 x, T* p, int n) {
#if defined(MVIT_ISA_AVX512BF16)
    if constexpr (is_bf16<T>) return n == F32::width ? x.store_normal(p) : x.store_normal_n(p, n);
#endif
    store(x, p, n);
}
template <class T>
inline I32 load_ints(const T* p, int n) {
    return n == F32::width ? I32::load(p) : I32::load_n(p, n);
}
template <class T>
inline void store(I32 x, T* p, int n) {
    if (n == F32::width) {
        x.store(p);
    } else {
        x.store_n(p, n);
    }
}
inline float first_lane(F32 x) {
    float lanes[F32::width];
    x.store(lanes);
    return lanes[0];
}

// Combines the lanes that are equal modulo `phases` (1, 2, 4 or 8) and leaves each result in all of its lanes. With pixels of a row in the
// lanes and patches `phases` wide, lane i belongs to phase i mod phases: this is the reduction inside each phase.
template <class Combine>
inline F32 reduce_phases(F32 x, int phases, Combine combine) {
    if constexpr (F32::width > 8) x = combine(x, x.template swap_lanes<8>());
    if (phases <= 4) x = combine(x, x.template swap_lanes<4>());
    if (phases <= 2) x = combine(x, x.template swap_lanes<2>());
    if (phases <= 1) x = combine(x, x.template swap_lanes<1>());
    return x;
}
inline F32 sum_phases(F32 x, int phases) {
    return reduce_phases(x, phases, [](F32 a, F32 b) { return a + b; });
}
inline F32 max_phases(F32 x, int phases) {
    return reduce_phases(x, phases, [](F32 a, F32 b) { return max(a, b); });
}

// n long sums side by side. `run` takes the terms, and added(k) says that it took k more: after 16 or so they are carried on to a block,
// and every 16th block to the total, so that no chain of additions is longer than about the square root of what it sums (and infinity stays
// infinity, which compensated summation would turn into NaN).
template <int n>
struct LongSum {
    F32 run[n], block[n], total[n];
    int64_t terms = 0;
    int runs = 0;

    LongSum() {
#pragma GCC unroll 4
        for (int j = 0; j < n; ++j) run[j] = block[j] = total[j] = F32::all(0.0f);
    }
    void added(int64_t more) {
        terms += more;
        if (terms < 16) return;
        terms = 0;
        const bool whole = ++runs % 16 == 0;
#pragma GCC unroll 4
        for (int j = 0; j < n; ++j) {
            block[j] = block[j] + run[j];
            run[j] = F32::all(0.0f);
            if (whole) {
                total[j] = total[j] + block[j];
                block[j] = run[j];
            }
        }
    }
    F32 value(int j) const { return total[j] + (block[j] + run[j]); }
};

// e^x within 2 ulp for x <= 88; below -87.3 the result is 0 (the true one is subnormal); NaN stays NaN.
// x = n ln2 + r with |r| <= ln2 / 2, e^x = 2^n e^r; ln2 in two parts (Cody and Waite), e^r by its Taylor series to r^7.
inline F32 exp(F32 x) {
    const F32 n = round(x * F32::all(1.44269504088896341f));
    F32 r = fma(n, F32::all(-0.693359375f), x);
    r = fma(n, F32::all(2.12194440e-4f), r);
    F32 p = F32::all(1.0f / 5040.0f);
    p = fma(p, r, F32::all(1.0f / 720.0f));
    p = fma(p, r, F32::all(1.0f / 120.0f));
    p = fma(p, r, F32::all(1.0f / 24.0f));
    p = fma(p, r, F32::all(1.0f / 6.0f));
    p = fma(p, r, F32::all(0.5f));
    p = fma(p, r, F32::all(1.0f));
    p = fma(p, r, F32::all(1.0f));
    return where_not_below(x, -87.3f, p * pow2(n));
}

}  // namespace
}  // namespace mvit
