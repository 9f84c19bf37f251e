// What core/attention.h does for other maps, for those of bfloat16 where they are multiplied as such. Internal linkage.
//
// Queries stand in rows, 16 of a band. K^T is packed in pairs of channels (tile.h), so the scores come out as rows of keys; e, rounded to
// bfloat16 as they are written, are the rows of the second product, whose weights are V in pairs of keys, two rows beside each other. Only
// K is transposed, 16 keys and 16 pairs at a time. Keys are padded to lines of 32 by zeros, and channels to pairs. For tiles of AMX
// channels, too, are padded to lines, so that all registers keep one shape: a product of them takes 16 cycles, however little is in it.
//
// e are within 2^-13, their sums of what was not rounded. Keys are taken in blocks as there.
//
// Floor: 16 queries and 32 keys take 16 cycles on tiles for every 16 channels of K and of V, and 256 without; 16 exponentials about 6, on
// the same ports.
#pragma once

#include "cpu/core/attention_parts.h"
#include "cpu/core/isa.h"
#include "cpu/core/tiles_amx.h"

#if defined(MVIT_ISA_AVX512BF16)

namespace mvit {

extern const TileKernels MVIT_ISA_SYMBOL(tile);

namespace {

constexpr int64_t band = W, line = 2 * W;  // queries; values of 64 bytes
#if defined(MVIT_ISA_AMX)
constexpr int64_t depth_step = line;
static_assert(band == tile_rows && line * sizeof(bf16) == tile_bytes);
#else
constexpr int64_t depth_step = 2;
#endif

inline __mmask32 first_of_line(int64_t values) { return values >= line ? ~0u : (1u << values) - 1u; }

// Up to 32 values as 16 pairs, zeros beyond.
inline F32 load_pairs(const bf16* from, int64_t values) {
    return {_mm512_castsi512_ps(_mm512_maskz_loadu_epi16(first_of_line(values), from))};
}
inline void store_pairs(F32 pairs, bf16* to) { _mm512_storeu_ps(to, pairs.v); }
inline void store_pairs(F32 pairs, bf16* to, int64_t values) {
    if (values >= line) return store_pairs(pairs, to);
    _mm512_mask_storeu_epi16(to, first_of_line(values), _mm512_castps_si512(pairs.v));
}

inline __m512i load_wide(const bf16* from, int lanes) {
    return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(static_cast<__mmask16>(first_of_line(lanes)), from));
}

// Rows, zeros from the last to a whole band.
inline void pack_queries(const Pixels& pixels, int64_t begin, int64_t end, int64_t depth, int64_t padded, const bf16* from, bf16* to) {
    int64_t offset[W];
    const int count = locate(pixels, begin, end, offset);
    for (int64_t i = 0; i < W; ++i)
        for (int64_t c = 0; c < padded; c += line)
            store_pairs(i < count ? load_pairs(from + offset[i] + c, depth - c) : F32::all(0.0f), to + i * padded + c, padded - c);
}

// to[key / 16][channel / 2][key % 16][channel % 2], keys to whole lines.
inline void pack_keys(const Pixels& pixels, int64_t begin, int64_t end, int64_t depth, int64_t padded, const bf16* from, bf16* to) {
    int64_t offset[W];
    for (int64_t first = begin; first < begin + round_up(end - begin, line); first += W) {
        const int count = first < end ? locate(pixels, first, end, offset) : 0;
        for (int64_t c = 0; c < padded; c += line) {
            F32 x[W];
            for (int i = 0; i < W; ++i) x[i] = i < count ? load_pairs(from + offset[i] + c, depth - c) : F32::all(0.0f);
            transpose(x);
            for (int64_t i = 0; i < at_most(padded - c, line) / 2; ++i, to += line) store_pairs(x[i], to);
        }
    }
}

// to[channel / 16][key / 2][channel % 16][key % 2], keys to whole lines; as many channels as there are.
inline void pack_values(const Pixels& pixels, int64_t begin, int64_t end, int64_t depth, const bf16* from, bf16* to) {
    const int64_t padded = round_up(end - begin, line);
    int64_t offset[W];
    for (int64_t first = 0; first < padded; first += W) {
        const int count = begin + first < end ? locate(pixels, begin + first, end, offset) : 0;
        for (int64_t c = 0; c < depth; c += W) {
            const int lanes = lanes_left(depth, c);
            bf16* const at = to + c * padded + first * W;
            for (int i = 0; i < W; i += 2) {
                const __m512i even = i < count ? load_wide(from + offset[i] + c, lanes) : _mm512_setzero_si512();
                const __m512i odd = i + 1 < count ? load_wide(from + offset[i + 1] + c, lanes) : _mm512_setzero_si512();
                _mm512_storeu_si512(at + i * W, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
            }
        }
    }
}

#if defined(MVIT_ISA_AMX)
// What the registers hold: sums of 16 queries and 32 keys, rows and a weight to be multiplied, results of up to 64 channels.
constexpr int score_tile = 0, row_tile = 2, weight_tile = 3, result_tile = 4, most_results = 4;

// Scores of 16 queries and 32 keys.
inline void multiply_scores(const bf16* query, int64_t depth, const bf16* keys, float* to, int64_t stride) {
    zero_tile<score_tile>();
    zero_tile<score_tile + 1>();
    for (int64_t c = 0; c < depth; c += line, query += line, keys += W * line) {
        load_tile<row_tile>(query, depth * int64_t{sizeof(bf16)});
        times<2>([&](auto i) {
            load_tile<weight_tile>(keys + i * W * depth, tile_bytes);
            dot_bf16<score_tile + i, row_tile, weight_tile>();
        });
    }
    times<2>([&](auto i) { store_tile<score_tile + i>(to + i * W, stride * int64_t{sizeof(float)}); });
}

// Adds e (16, 32) times 32 keys of V to the results.
template <int panels>
inline void multiply_values(const bf16* e, int64_t stride, const bf16* values, int64_t panel_size) {
    load_tile<row_tile>(e, stride * int64_t{sizeof(bf16)});
    times<panels>([&](auto p) {
        load_tile<weight_tile>(values + p * panel_size, tile_bytes);
        dot_bf16<result_tile + p, row_tile, weight_tile>();
    });
}
template <int panels>
inline void load_results(const float* from, int64_t stride) {
    times<panels>(
        [&](auto p) { from ? load_tile<result_tile + p>(from + p * W, stride * int64_t{sizeof(float)}) : zero_tile<result_tile + p>(); });
}
template <int panels>
inline void store_results(float* to, int64_t stride) {
    times<panels>([&](auto p) { store_tile<result_tile + p>(to + p * W, stride * int64_t{sizeof(float)}); });
}
#else
inline void multiply_scores(const bf16* query, int64_t depth, const bf16* keys, float* to, int64_t stride) {
    static constexpr float zeros[line] = {};
    MVIT_ISA_SYMBOL(tile).multiply_bf16(query, depth, band, keys, depth, static_cast<int>(line), zeros, 0, to, stride);
}
#endif

// Lane i of the result: of all of x[i].
template <class Combine>
inline F32 across(F32 (&x)[W], const Combine& combine) {
    transpose(x);
#pragma GCC unroll 4
    for (int step = W / 2; step > 0; step /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < step; ++i) x[i] = combine(x[i], x[i + step]);
    return x[0];
}

// Scores become a q.k + bias; s.bias has queries side by side, from `query` and `key` on.
inline void add_bias(const Attending& s, int64_t query, int64_t key, int64_t keys, float* scores, int64_t stride) {
    const F32 scale = F32::all(s.scale);
    for (int64_t m = 0; m < keys; m += W) {
        const int count = lanes_left(keys, m);
        F32 x[W];
        for (int i = 0; i < W; ++i) x[i] = i < count ? F32::load(s.bias + (key + m + i) * s.bias_stride + query) : F32::all(0.0f);
        transpose(x);
        for (int i = 0; i < W; ++i) fma(F32::load(scores + i * stride + m), scale, x[i]).store(scores + i * stride + m);
    }
}

// Beyond the last key, to a whole line.
inline void fill_beyond(float* scores, int64_t stride, int64_t keys, int64_t whole) {
    for (int i = 0; i < W; ++i)
        for (int64_t m = keys / W * W; m < whole; m += W) {
            const F32 x = m < keys ? load(scores + i * stride + m, lanes_left(keys, m), -__builtin_inff()) : F32::all(-__builtin_inff());
            x.store(scores + i * stride + m);
        }
}

// The largest of `keys` scores of each row, whole lines.
inline F32 largest_of_rows(const float* scores, int64_t stride, int64_t keys) {
    F32 tops[W];
    for (int i = 0; i < W; ++i, scores += stride) {
        F32 even = F32::load(scores), odd = F32::load(scores + W);
        for (int64_t m = line; m < keys; m += line) {
            even = max(even, F32::load(scores + m));
            odd = max(odd, F32::load(scores + m + W));
        }
        tops[i] = max(even, odd);
    }
    return across(tops, [](F32 a, F32 b) { return max(a, b); });
}

// e of 32 keys, 2^(scale score - shift) for the shift of each row; adds them to its sums.
inline void exponentials_of_rows(const float* scores, int64_t stride, float scale, const float* shift, bf16* e, int64_t e_stride,
                                 F32 (&sums)[W]) {
    const F32 factor = F32::all(scale), least = F32::all(least_exponent);
#pragma GCC unroll 2
    for (int i = 0; i < W; ++i, scores += stride, e += e_stride) {
        const F32 top = F32::all(-shift[i]);
        const F32 e0 = exp2_short(max(least, fma(F32::load(scores), factor, top)));
        const F32 e1 = exp2_short(max(least, fma(F32::load(scores + W), factor, top)));
        sums[i] = sums[i] + (e0 + e1);
        _mm512_storeu_si512(e, __builtin_bit_cast(__m512i, _mm512_cvtne2ps_pbh(e1.v, e0.v)));
    }
}

// Of some queries in one block of keys; on tiles, the first `panels` panels of channels of V stay in registers. The scores of the next band
// are made between this one's exponentials, 32 keys of each at a time, so that neither waits long for the other.
template <int panels>
void attend_block(const Attending& s, int64_t key, int64_t block) {
    const AttentionBf16Scratch& at = s.layout->bf16;
    const auto bf16_at = [&](int64_t place) { return reinterpret_cast<bf16*>(s.scratch + place); };
    bf16 *const query = bf16_at(at.query), *const keys = bf16_at(at.keys), *const values = bf16_at(at.values), *const e = bf16_at(at.e);
    float *const tops = s.scratch + at.tops, *const sums = s.scratch + at.sums, *const factors = s.scratch + at.factors;
    const int64_t rows = s.end - s.begin, whole = round_up(block, line), columns = at.value_columns, stride = at.score_stride;
    const int64_t depth = round_up(s.depth, depth_step);
    const float scale = s.bias ? 1.0f : s.scale;

    float *scores = s.scratch + at.scores, *next = scores + band * stride;
    const auto pack = [&](int64_t row) {
        pack_queries(s.q_at, s.begin + row, s.end, s.depth, depth, static_cast<const bf16*>(s.q), query);
    };
    const auto score = [&](int64_t m) { multiply_scores(query, depth, keys + m * depth, next + m, stride); };

    pack(0);
    for (int64_t m = 0; m < whole; m += line) score(m);
    for (int64_t row = 0; row < rows; row += band) {
        float *const result = s.scratch + at.results + row * columns, *const made = next;
        next = scores, scores = made;
        if (s.bias) add_bias(s, s.begin + row, key, block, scores, stride);
        if (block < whole) fill_beyond(scores, stride, block, whole);
        const F32 before = F32::load(tops + row), top = max(before, largest_of_rows(scores, stride, whole) * F32::all(scale));
        const F32 shift = max(F32::all(-__FLT_MAX__), top), shrunk = weight(before - shift);
        top.store(tops + row);
        if (key > 0) {
            shrunk.store(factors);
            for (int64_t i = 0; i < W; ++i)
                for (int64_t c = i * columns; c < (i + 1) * columns; c += W)
                    (F32::load(result + c) * F32::all(factors[i])).store(result + c);
        }
        shift.store(factors);
        const bool last = row + band >= rows;
        if (!last) pack(row + band);
        F32 sum[W];
        for (F32& each : sum) each = F32::all(0.0f);
        const auto exponentials = [&](int64_t m) { exponentials_of_rows(scores + m, stride, scale, factors, e + m, at.e_stride, sum); };
#if defined(MVIT_ISA_AMX)
        const auto value = [&](int64_t m) { multiply_values<panels>(e + m, at.e_stride, values + m * W, whole * W); };
        load_results<panels>(key > 0 ? result : nullptr, columns);
        for (int64_t m = 0; m < whole; m += line) {
            if (m > 0) value(m - line);
            if (!last) score(m);
            exponentials(m);
        }
        value(whole - line);
        store_results<panels>(result, columns);
        for (int64_t c = panels * W; c < columns; c += W) {  // beyond 64 channels
            load_results<1>(key > 0 ? result + c : nullptr, columns);
            for (int64_t m = 0; m < whole; m += line) multiply_values<1>(e + m, at.e_stride, values + c * whole + m * W, 0);
            store_results<1>(result + c, columns);
        }
#else
        for (int64_t m = 0; m < whole; m += line) {
            if (!last) score(m);
            exponentials(m);
        }
        if (key == 0) fill(result, band * columns, 0.0f);
        MVIT_ISA_SYMBOL(tile).multiply_bf16(e, at.e_stride, band, values, whole, static_cast<int>(columns), result, columns, result,
                                            columns);
#endif
        fma(F32::load(sums + row), shrunk, across(sum, [](F32 a, F32 b) { return a + b; })).store(sums + row);
    }
}

inline void attend_bf16(const Attending& s) {
    const AttentionBf16Scratch& at = s.layout->bf16;
    float *const tops = s.scratch + at.tops, *const sums = s.scratch + at.sums, *const shares = s.scratch + at.factors;
    const int64_t rows = s.end - s.begin, depth = round_up(s.depth, depth_step);
#if defined(MVIT_ISA_AMX)
    constexpr void (*attend_blocks[most_results])(const Attending&, int64_t, int64_t) = {attend_block<1>, attend_block<2>, attend_block<3>,
                                                                                         attend_block<4>};
    const auto block_of = attend_blocks[at_most(at.value_columns / W, most_results) - 1];
    HeldTiles held;
    held.take(tile_rows, tile_bytes, 1, most_tile_panels);
#else
    const auto block_of = attend_block<0>;
#endif
    fill(tops, rows, -__builtin_inff());
    fill(sums, rows, 0.0f);
    for (int64_t key = 0; key < s.keys; key += attention_bf16_keys) {
        const int64_t block = at_most(s.keys - key, attention_bf16_keys);
        pack_keys(s.k_at, key, key + block, s.depth, depth, static_cast<const bf16*>(s.k), reinterpret_cast<bf16*>(s.scratch + at.keys));
        pack_values(s.v_at, key, key + block, s.value_depth, static_cast<const bf16*>(s.v), reinterpret_cast<bf16*>(s.scratch + at.values));
        block_of(s, key, block);
    }
    for (int64_t row = 0; row < rows; row += W) {
        const float* const result = s.scratch + at.results + row * at.value_columns;
        inverse(F32::load(sums + row), F32::load(tops + row)).store(shares);
        int64_t offset[W];
        const int count = locate(s.y_at, s.begin + row, s.end, offset);
        for (int i = 0; i < count; ++i)
            for (int64_t c = 0; c < s.value_depth; c += W)
                store_normal(F32::load(result + i * at.value_columns + c) * F32::all(shares[i]), static_cast<bf16*>(s.y) + offset[i] + c,
                             lanes_left(s.value_depth, c));
    }
}

}  // namespace
}  // namespace mvit

#endif
