// F32 in plain C++: 8 lanes in an array, for the scalar ISA and for processors without kernels of their own. See simd.h.
#pragma once

#include <cstring>

namespace mvit {
namespace {

inline float from_bits(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}
inline uint32_t to_bits(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return from_bits(static_cast<uint32_t>(x.bits) << 16); }
inline float to_float(f16 x) {
    const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
    const uint32_t magnitude = x.bits & 0x7FFFu;
    if (magnitude >= 0x7C00u) return from_bits(sign | 0x7F800000u | (magnitude << 13));  // infinity, NaN
    // Moving the exponent by multiplication is exact and takes subnormals along.
    return from_bits(sign | to_bits(from_bits(magnitude << 13) * 0x1p112f));
}

inline void from_float(float x, float* out) { *out = x; }
inline void from_float(float x, bf16* out) {
    const uint32_t bits = to_bits(x);
    out->bits = x != x ? 0x7FC0u : static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}
inline void from_float(float x, f16* out) {
    const uint32_t bits = to_bits(x);
    const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
    const uint32_t magnitude = bits & 0x7FFFFFFFu;
    uint32_t half;
    if (magnitude > 0x7F800000u) {
        half = 0x7E00u | ((magnitude >> 13) & 0x3FFu);
    } else if (magnitude >= 0x47800000u) {  // 65536 and above, where the formula below would run past infinity's exponent
        half = 0x7C00u;
    } else if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 makes the hardware round at 2^-24
        half = to_bits(from_bits(magnitude) + 0.5f) - 0x3F000000u;
    } else {
        half = (magnitude - 0x38000000u + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
    }
    out->bits = static_cast<uint16_t>(sign | half);
}

struct F32 {
    static constexpr int width = 8;
    float lane[width];

    static F32 all(float s) {
        F32 r;
        for (float& x : r.lane) x = s;
        return r;
    }

    template <class T>
    static F32 load(const T* p) {
        F32 r;
        for (int i = 0; i < width; ++i) r.lane[i] = to_float(p[i]);
        return r;
    }
    template <class T>
    static F32 load_n(const T* p, int n, float fill) {
        F32 r = all(fill);
        for (int i = 0; i < n; ++i) r.lane[i] = to_float(p[i]);
        return r;
    }
    template <class T>
    void store(T* p) const {
        for (int i = 0; i < width; ++i) from_float(lane[i], p + i);
    }
    template <class T>
    void store_n(T* p, int n) const {
        for (int i = 0; i < n; ++i) from_float(lane[i], p + i);
    }

    template <int s>
    F32 swap_lanes() const {
        F32 r;
        for (int i = 0; i < width; ++i) r.lane[i] = lane[i ^ s];
        return r;
    }
};

template <class Function>
inline F32 each_lane(Function function) {
    F32 r;
    for (int i = 0; i < F32::width; ++i) r.lane[i] = function(i);
    return r;
}
inline F32 operator+(const F32& a, const F32& b) {
    return each_lane([&](int i) { return a.lane[i] + b.lane[i]; });
}
inline F32 operator-(const F32& a, const F32& b) {
    return each_lane([&](int i) { return a.lane[i] - b.lane[i]; });
}
inline F32 operator*(const F32& a, const F32& b) {
    return each_lane([&](int i) { return a.lane[i] * b.lane[i]; });
}
inline F32 operator/(const F32& a, const F32& b) {
    return each_lane([&](int i) { return a.lane[i] / b.lane[i]; });
}
inline F32 fma(const F32& a, const F32& b, const F32& c) {
    return each_lane([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
}
inline F32 max(const F32& a, const F32& b) {
    return each_lane([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline F32 min(const F32& a, const F32& b) {
    return each_lane([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}
// Adding 1.5 * 2^23 pushes the fraction out of the significand, which rounds to nearest even; good for |a| < 2^22.
inline F32 round(const F32& a) {
    return each_lane([&](int i) { return (a.lane[i] + 0x1.8p23f) - 0x1.8p23f; });
}
inline F32 pow2(const F32& n) {
    // Out of range (a NaN or -infinity on the way, replaced by the caller) the conversion is undefined, so it is kept inside.
    return each_lane([&](int i) {
        const float x = n.lane[i] >= -126.0f && n.lane[i] <= 127.0f ? n.lane[i] : 0.0f;
        return from_bits(static_cast<uint32_t>(static_cast<int32_t>(x) + 127) << 23);
    });
}
inline F32 times_pow2(const F32& x, const F32& n) { return x * pow2(min(max(n, F32::all(-126.0f)), F32::all(127.0f))); }
inline F32 where_positive(const F32& v, const F32& x) {
    return each_lane([&](int i) { return v.lane[i] <= 0.0f ? 0.0f : x.lane[i]; });
}
inline F32 where_not_below(const F32& v, float bound, const F32& x) {
    return each_lane([&](int i) { return v.lane[i] < bound ? 0.0f : x.lane[i]; });
}

struct I32 {
    int32_t lane[F32::width];

    static I32 all(int32_t s) {
        I32 r;
        for (int32_t& x : r.lane) x = s;
        return r;
    }
    template <class T>
    static I32 load(const T* p) {
        return load_n(p, F32::width);
    }
    template <class T>
    static I32 load_n(const T* p, int n) {
        I32 r = all(0);
        for (int i = 0; i < n; ++i) r.lane[i] = p[i];
        return r;
    }
    template <class T>
    void store(T* p) const {
        store_n(p, F32::width);
    }
    template <class T>
    void store_n(T* p, int n) const {
        for (int i = 0; i < n; ++i) p[i] = static_cast<T>(lane[i]);
    }
};

template <class Function>
inline I32 each_int_lane(Function function) {
    I32 r;
    for (int i = 0; i < F32::width; ++i) r.lane[i] = function(i);
    return r;
}
// As unsigned numbers, whose overflow is defined.
inline I32 operator+(const I32& a, const I32& b) {
    return each_int_lane([&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(a.lane[i]) + static_cast<uint32_t>(b.lane[i])); });
}
inline I32 operator-(const I32& a, const I32& b) {
    return each_int_lane([&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(a.lane[i]) - static_cast<uint32_t>(b.lane[i])); });
}
inline I32 operator*(const I32& a, const I32& b) {
    return each_int_lane([&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(a.lane[i]) * static_cast<uint32_t>(b.lane[i])); });
}
inline I32 max(const I32& a, const I32& b) {
    return each_int_lane([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline I32 min(const I32& a, const I32& b) {
    return each_int_lane([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline F32 to_float(const I32& a) {
    return each_lane([&](int i) { return static_cast<float>(a.lane[i]); });
}
// The conversion of a float that is no int32 is undefined in C++.
inline bool is_int(float x) { return x >= -0x1p31f && x < 0x1p31f; }
inline I32 to_int(const F32& a) {
    return each_int_lane([&](int i) { return is_int(a.lane[i]) ? static_cast<int32_t>(__builtin_rintf(a.lane[i])) : INT32_MIN; });
}
inline I32 truncated(const F32& a) {
    return each_int_lane([&](int i) { return is_int(a.lane[i]) ? static_cast<int32_t>(a.lane[i]) : INT32_MIN; });
}
inline F32 pick(const float* table, const I32& i) {
    return each_lane([&](int j) { return table[i.lane[j]]; });
}

inline void transpose(F32 (&x)[8]) {
    for (int i = 0; i < 8; ++i)
        for (int j = 0; j < i; ++j) {
            const float kept = x[i].lane[j];
            x[i].lane[j] = x[j].lane[i];
            x[j].lane[i] = kept;
        }
}

}  // namespace
}  // namespace mvit
