// What most products of a network end in, of eight neighbouring columns of a few rows, which is what a thread of ops/qproduct.cuh has: the
// sequences of qepilogue.cuh, with the same bits, for bytes that are plain, of a curve or of segments and for int16 streams. Nothing goes
// through shared memory, and nothing is decided in between.
//
// Rounding is one addition, `rint_bits`: the limits of bytes (zero-points are within 2^20) and of streams are within its range. A byte is
// the low one of these bits plus the zero-point, and int16 the low half.
#pragma once

#include <type_traits>

#include "cuda/primitives/dot4.cuh"
#include "cuda/primitives/qepilogue.cuh"
#include "cuda/primitives/qsegments.cuh"

namespace mvit::cuda {

inline constexpr int eight = 8;

// The low bytes, the low halves.
MVIT_DEVICE uint32_t low_bytes(const Quad<int32_t>& q) {
    const auto word = [&](int i) { return static_cast<uint32_t>(q.v[i]); };
    return permute(permute(word(0), word(1), 0x0040), permute(word(2), word(3), 0x0040), 0x5410);
}
MVIT_DEVICE uint32_t low_halves(int32_t a, int32_t b) { return permute(static_cast<uint32_t>(a), static_cast<uint32_t>(b), 0x5410); }

// Whether bytes are of segments, and of nothing else.
MVIT_DEVICE bool ends_in_segments(const QEpilogue& e) {
    const bool more = e.plain || e.table || e.residual || e.row_scale || e.row_zero_point;
    return e.type == QType::u8 && e.activation == QActivation::segments && !more;
}

MVIT_DEVICE bool ends_in_eight(const QEpilogue& e) {
    return finish_form(e) != FinishForm::any || ends_in_segments(e) ||
           (e.type == QType::u8 && e.plain && e.table && !e.row_scale && !e.row_zero_point);
}

// Each of these has four columns and makes `words` words of their scaled sums; of what the words hold before where `adds`.
template <bool by_table>
struct PlainBytes {
    using Element = uint8_t;
    static constexpr int words = 1;
    static constexpr bool adds = false;

    MVIT_DEVICE PlainBytes(const QEpilogue& e, int64_t column, const uint8_t*) : table(e.table) {
        const QChannels c = e.channels.from(column);
        low = load_quad(c.low, four, true), high = load_quad(c.high, four, true);
        zero_point = load_quad(c.zero_point, four, true);
    }
    MVIT_DEVICE void operator()(const Quad<float>& x, uint32_t* word) const {
        Quad<int32_t> q;
        MVIT_UNROLL
        for (int i = 0; i < four; ++i) q.v[i] = rint_bits(fminf(fmaxf(x.v[i], low.v[i]), high.v[i])) + zero_point.v[i];
        if constexpr (by_table) {
            MVIT_UNROLL
            for (int i = 0; i < four; ++i) q.v[i] = table[q.v[i] & 255];
        }
        *word = low_bytes(q);
    }

    const uint8_t* table;
    Quad<float> low, high;
    Quad<int32_t> zero_point;
};

struct SegmentBytes {
    using Element = uint8_t;
    static constexpr int words = 1;
    static constexpr bool adds = false;

    MVIT_DEVICE SegmentBytes(const QEpilogue& e, int64_t column, const uint8_t* shared)
        : activate(shared), plain(e, column, shared), inverse(load_quad(e.channels.inverse + column, four, true)) {}
    MVIT_DEVICE void operator()(const Quad<float>& x, uint32_t* word) const {
        Quad<float> y;
        MVIT_UNROLL
        for (int i = 0; i < four; ++i) y.v[i] = activate(x.v[i]) * inverse.v[i];
        plain(y, word);
    }

    SharedSegments activate;
    PlainBytes<false> plain;
    Quad<float> inverse;
};

// Curve: CurveSteps, or SharedCurve of one that has none.
template <class Curve>
struct CurveBytes {
    using Element = uint8_t;
    static constexpr int words = 1;
    static constexpr bool adds = false;

    MVIT_DEVICE CurveBytes(const QEpilogue&, int64_t, const uint8_t* shared) : curve(shared) {}
    MVIT_DEVICE void operator()(const Quad<float>& x, uint32_t* word) const {
        if constexpr (std::is_same_v<Curve, CurveSteps>) {
            *word = curve(x.v);
        } else {
            Quad<int32_t> q;
            MVIT_UNROLL
            for (int i = 0; i < four; ++i) q.v[i] = static_cast<int32_t>(curve(x.v[i]));
            *word = low_bytes(q);
        }
    }

    Curve curve;
};

template <bool residual>
struct Stream {
    using Element = int16_t;
    static constexpr int words = 2;
    static constexpr bool adds = residual;

    MVIT_DEVICE Stream(const QEpilogue&, int64_t, const uint8_t*) {}
    MVIT_DEVICE void operator()(const Quad<float>& x, uint32_t* word) const {
        Quad<int32_t> q;
        MVIT_UNROLL
        for (int i = 0; i < four; ++i) {
            if constexpr (residual) {
                q.v[i] = to_stream(x.v[i]) + static_cast<int16_t>(word[i / 2] >> (16 * (i % 2)));
            } else {
                q.v[i] = rint_bits(fminf(fmaxf(x.v[i], -0x1p15f), 0x1p15f - 1.0f));  // of integers within, which rounding keeps
            }
        }
        const auto halves = [&](int i) { return residual ? saturated_halves(q.v[i], q.v[i + 1]) : low_halves(q.v[i], q.v[i + 1]); };
        word[0] = halves(0), word[1] = halves(2);
    }
};

template <int words>
struct alignas(4 * words) Words {
    uint32_t v[words];
};

#if defined(__CUDACC__)

// One store each, which the compiler splits where some of its lanes take another way.
MVIT_DEVICE void store_words(const Words<2>& w, void* p) {
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(p), "r"(w.v[0]), "r"(w.v[1]) : "memory");
}
MVIT_DEVICE void store_words(const Words<4>& w, void* p) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(w.v[0]), "r"(w.v[1]), "r"(w.v[2]), "r"(w.v[3]) : "memory");
}

#else

template <int words>
void store_words(const Words<words>& w, void* p) {
    *static_cast<Words<words>*>(p) = w;
}

#endif

// Of `lanes` columns of y or a residual from `p` on, eight where they are aligned.
template <class T, int words>
MVIT_DEVICE Words<words> load_eight(const T* p, int lanes, bool aligned) {
    if (aligned) return *reinterpret_cast<const Words<words>*>(p);
    Words<words> w{};
    constexpr int each = eight / words, bits = 32 / each;
    MVIT_UNROLL
    for (int i = 0; i < eight; ++i)
        if (i < lanes) w.v[i / each] |= (static_cast<uint32_t>(p[i]) & ((uint32_t{1} << bits) - 1)) << (bits * (i % each));
    return w;
}

template <class T, int words>
MVIT_DEVICE void store_eight(const Words<words>& w, T* p, int lanes, bool aligned) {
    if (aligned) return store_words(w, p);
    constexpr int each = eight / words, bits = 32 / each;
    MVIT_UNROLL
    for (int i = 0; i < eight; ++i)
        if (i < lanes) p[i] = static_cast<T>(w.v[i / each] >> (bits * (i % each)));
}

// What finish_eight looks up in shared memory, of all threads, before a barrier; shared: SharedCurve::bytes, aligned to 16.
MVIT_DEVICE void load_tables(const QEpilogue& e, uint8_t* shared, int threads) {
    static_assert(SharedSegments::bytes <= SharedCurve::bytes);
    if (e.curve) return SharedCurve::load(e.curve, shared, threads);
    if (ends_in_segments(e)) SharedSegments::load(e.segments, shared, threads);
}

// Sums with what they begin with, of rows `row` + 16 i + 8 half below `rows`: sums[i][c / 2][2 half + c % 2] is column `column` + c.
template <class Of, int rounds>
MVIT_DEVICE void finish_eight(const int32_t (&sums)[rounds][4][4], const QEpilogue& e, int columns, int column, int64_t row, int64_t rows,
                              const uint8_t* tables) {
    using T = typename Of::Element;
    constexpr int words = 2 * Of::words;
    const auto are_aligned = [&](const void* p, int64_t stride) {
        return columns - column >= eight && stride % eight == 0 && reinterpret_cast<uintptr_t>(p) % (eight * sizeof(T)) == 0;
    };
    const int lanes = columns - column < eight ? columns - column : eight,
              left = static_cast<int>(rows - row < 8 * 2 * rounds ? rows - row : 8 * 2 * rounds);
    Words<words> results[rounds][2];
    if constexpr (Of::adds) {
        const bool aligned = are_aligned(e.residual, e.residual_stride);
        const T* from = static_cast<const T*>(e.residual) + row * e.residual_stride + column;
        MVIT_UNROLL
        for (int i = 0; i < 2 * rounds; ++i)
            if (8 * i < left) results[i / 2][i % 2] = load_eight<T, words>(from + 8 * i * e.residual_stride, lanes, aligned);
    }
    MVIT_UNROLL
    for (int quad = 0; quad < 2; ++quad) {
        const Of of(e, column + four * quad, tables);
        const Quad<float> scale = load_quad(e.channels.scale + column + four * quad, four, true);
        MVIT_UNROLL
        for (int i = 0; i < rounds; ++i) {
            MVIT_UNROLL
            for (int half = 0; half < 2; ++half) {
                const auto sum = [&](int c) { return sums[i][2 * quad + c / 2][2 * half + c % 2]; };
                of(scaled({{sum(0), sum(1), sum(2), sum(3)}}, scale), results[i][half].v + quad * Of::words);
            }
        }
    }
    const bool aligned = are_aligned(e.y, e.y_stride);
    T* to = static_cast<T*>(e.y) + row * e.y_stride + column;
    MVIT_UNROLL
    for (int i = 0; i < 2 * rounds; ++i)
        if (8 * i < left) store_eight<T, words>(results[i / 2][i % 2], to + 8 * i * e.y_stride, lanes, aligned);
}

// Of what ends_in_eight.
template <int rounds>
MVIT_DEVICE void finish_eight(const int32_t (&sums)[rounds][4][4], const QEpilogue& e, int columns, int column, int64_t row, int64_t rows,
                              const uint8_t* tables) {
    if (e.type == QType::i16) {
        if (e.residual) return finish_eight<Stream<true>>(sums, e, columns, column, row, rows, tables);
        return finish_eight<Stream<false>>(sums, e, columns, column, row, rows, tables);
    }
    if (e.curve) {
        if (SharedCurve::has_steps(tables)) return finish_eight<CurveBytes<CurveSteps>>(sums, e, columns, column, row, rows, tables);
        return finish_eight<CurveBytes<SharedCurve>>(sums, e, columns, column, row, rows, tables);
    }
    if (!e.plain) return finish_eight<SegmentBytes>(sums, e, columns, column, row, rows, tables);
    if (e.table) return finish_eight<PlainBytes<true>>(sums, e, columns, column, row, rows, tables);
    finish_eight<PlainBytes<false>>(sums, e, columns, column, row, rows, tables);
}

}  // namespace mvit::cuda
