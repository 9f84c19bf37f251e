// What core/attention.h does for other maps, for those of bfloat16 on tiles of AMX. Internal linkage.
//
// Queries stand in rows, 16 of a band. K^T is packed in pairs of channels (tile.h), so the scores come out as rows of keys; e, rounded to
// bfloat16 as they are written, are the rows of the second product, whose weights are V in pairs of keys, two rows beside each other. Only
// K is transposed, 16 keys and 16 pairs at a time. Channels and keys are padded to whole tiles by zeros, so that all registers keep one
// shape: a product of them takes 16 cycles, however little is in it.
//
// e are within 2^-13, their sums of what was not rounded. Keys are taken in blocks as there.
//
// Floor: 16 queries and 32 keys take 16 cycles for every 16 channels of K and of V, and 16 exponentials about 6, on the same ports.
#pragma once

#include "cpu/core/attention_parts.h"
#include "cpu/core/tiles_amx.h"

#if defined(MVIT_ISA_AMX)

namespace mvit {
namespace {

constexpr int64_t pairs_of_tile = W, tile_values = 2 * pairs_of_tile;
static_assert(tile_rows == W && tile_values * sizeof(bf16) == tile_bytes);

inline __mmask32 first_of_tile(int64_t values) { return values >= tile_values ? ~0u : (1u << values) - 1u; }

// Up to 32 values as 16 pairs, zeros beyond.
inline F32 load_pairs(const bf16* from, int64_t values) {
    return {_mm512_castsi512_ps(_mm512_maskz_loadu_epi16(first_of_tile(values), from))};
}
inline void store_pairs(F32 pairs, bf16* to) { _mm512_storeu_ps(to, pairs.v); }

inline __m512i load_wide(const bf16* from, int lanes) {
    return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(static_cast<__mmask16>(first_of_tile(lanes)), from));
}

// Rows, zeros from the last to a whole band.
inline void pack_queries(const Pixels& pixels, int64_t begin, int64_t end, int64_t depth, int64_t padded, const bf16* from, bf16* to) {
    int64_t offset[W];
    const int count = locate(pixels, begin, end, offset);
    for (int64_t i = 0; i < W; ++i)
        for (int64_t c = 0; c < padded; c += tile_values)
            store_pairs(i < count ? load_pairs(from + offset[i] + c, depth - c) : F32::all(0.0f), to + i * padded + c);
}

// to[key / 16][channel / 2][key % 16][channel % 2], keys to whole tiles.
inline void pack_keys(const Pixels& pixels, int64_t begin, int64_t end, int64_t depth, int64_t padded, const bf16* from, bf16* to) {
    int64_t offset[W];
    for (int64_t first = begin; first < begin + round_up(end - begin, tile_values); first += W) {
        const int count = first < end ? locate(pixels, first, end, offset) : 0;
        for (int64_t c = 0; c < padded; c += tile_values, to += W * tile_values) {
            F32 x[W];
            for (int i = 0; i < W; ++i) x[i] = i < count ? load_pairs(from + offset[i] + c, depth - c) : F32::all(0.0f);
            transpose(x);
            for (int i = 0; i < W; ++i) store_pairs(x[i], to + i * tile_values);
        }
    }
}

// to[channel / 16][key / 2][channel % 16][key % 2], keys to whole tiles; as many channels as there are.
inline void pack_values(const Pixels& pixels, int64_t begin, int64_t end, int64_t depth, const bf16* from, bf16* to) {
    const int64_t padded = round_up(end - begin, tile_values);
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

// What the registers hold: sums of 16 queries and 32 keys, rows and a weight to be multiplied, results of up to 64 channels.
constexpr int score_tile = 0, row_tile = 2, weight_tile = 3, result_tile = 4, most_results = 4;

// Scores of 16 queries and 32 keys, of whole tiles.
inline void multiply_scores(const bf16* query, int64_t depth, const bf16* keys, float* to, int64_t stride) {
    zero_tile<score_tile>();
    zero_tile<score_tile + 1>();
    for (int64_t c = 0; c < depth; c += tile_values, query += tile_values, keys += W * tile_values) {
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

// Beyond the last key, to a whole tile.
inline void fill_beyond(float* scores, int64_t stride, int64_t keys, int64_t whole) {
    for (int i = 0; i < W; ++i)
        for (int64_t m = keys / W * W; m < whole; m += W) {
            const F32 x = m < keys ? load(scores + i * stride + m, lanes_left(keys, m), -__builtin_inff()) : F32::all(-__builtin_inff());
            x.store(scores + i * stride + m);
        }
}

// The largest of `keys` scores of each row, whole tiles.
inline F32 largest_of_rows(const float* scores, int64_t stride, int64_t keys) {
    F32 tops[W];
    for (int i = 0; i < W; ++i, scores += stride) {
        F32 even = F32::load(scores), odd = F32::load(scores + W);
        for (int64_t m = tile_values; m < keys; m += tile_values) {
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

// Of some queries in one block of keys, the first `panels` panels of channels of V. The scores of the next band are made between this
// one's exponentials, 32 keys of each at a time, so that neither waits long for the other.
template <int panels>
void attend_block(const Attending& s, int64_t key, int64_t block) {
    const AttentionTileScratch& at = s.layout->tiles;
    const auto bf16_at = [&](int64_t place) { return reinterpret_cast<bf16*>(s.scratch + place); };
    bf16 *const query = bf16_at(at.query), *const keys = bf16_at(at.keys), *const values = bf16_at(at.values), *const e = bf16_at(at.e);
    float *const tops = s.scratch + at.tops, *const sums = s.scratch + at.sums, *const factors = s.scratch + at.factors;
    const int64_t rows = s.end - s.begin, whole = round_up(block, tile_values), columns = at.value_columns, stride = at.score_stride;
    const float scale = s.bias ? 1.0f : s.scale;

    float *scores = s.scratch + at.scores, *next = scores + tile_rows * stride;
    const auto pack = [&](int64_t row) {
        pack_queries(s.q_at, s.begin + row, s.end, s.depth, at.depth, static_cast<const bf16*>(s.q), query);
    };
    const auto score = [&](int64_t m) { multiply_scores(query, at.depth, keys + m * at.depth, next + m, stride); };
    const auto value = [&](int64_t m) { multiply_values<panels>(e + m, at.e_stride, values + m * W, whole * W); };

    pack(0);
    for (int64_t m = 0; m < whole; m += tile_values) score(m);
    for (int64_t row = 0; row < rows; row += tile_rows) {
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
        load_results<panels>(key > 0 ? result : nullptr, columns);
        const bool last = row + tile_rows >= rows;
        if (!last) pack(row + tile_rows);
        F32 sum[W];
        for (F32& each : sum) each = F32::all(0.0f);
        for (int64_t m = 0; m < whole; m += tile_values) {
            if (m > 0) value(m - tile_values);
            if (!last) score(m);
            exponentials_of_rows(scores + m, stride, scale, factors, e + m, at.e_stride, sum);
        }
        value(whole - tile_values);
        store_results<panels>(result, columns);
        fma(F32::load(sums + row), shrunk, across(sum, [](F32 a, F32 b) { return a + b; })).store(sums + row);
        for (int64_t c = panels * W; c < columns; c += W) {  // beyond 64 channels
            load_results<1>(key > 0 ? result + c : nullptr, columns);
            for (int64_t m = 0; m < whole; m += tile_values) multiply_values<1>(e + m, at.e_stride, values + c * whole + m * W, 0);
            store_results<1>(result + c, columns);
        }
    }
}

inline void attend_by_tiles(const Attending& s) {
    constexpr void (*attend_blocks[most_results])(const Attending&, int64_t, int64_t) = {attend_block<1>, attend_block<2>, attend_block<3>,
                                                                                         attend_block<4>};
    const AttentionTileScratch& at = s.layout->tiles;
    float *const tops = s.scratch + at.tops, *const sums = s.scratch + at.sums, *const shares = s.scratch + at.factors;
    const int64_t rows = s.end - s.begin;
    const auto block_of = attend_blocks[at_most(at.value_columns / W, most_results) - 1];

    HeldTiles held;
    held.take(tile_rows, tile_bytes, 1, most_tile_panels);
    fill(tops, rows, -__builtin_inff());
    fill(sums, rows, 0.0f);
    for (int64_t key = 0; key < s.keys; key += attention_tile_keys) {
        const int64_t block = at_most(s.keys - key, attention_tile_keys);
        pack_keys(s.k_at, key, key + block, s.depth, at.depth, static_cast<const bf16*>(s.k), reinterpret_cast<bf16*>(s.scratch + at.keys));
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
