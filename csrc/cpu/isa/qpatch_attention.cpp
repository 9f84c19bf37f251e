// Attention of some queries of one phase and head on bytes; formulas and the plan in ops/qpatch_attention.h. Compiled once an ISA.
#include "cpu/ops/qpatch_attention.h"

#include <cstring>

#include "cpu/core/byte_table.h"
#include "cpu/core/isa.h"
#include "cpu/core/lanes.h"
#include "cpu/core/qepilogue.h"
#include "cpu/core/qvector.h"

namespace mvit {

extern const QTileKernels MVIT_ISA_SYMBOL(qtile);

namespace {

constexpr int W = F32::width;
constexpr int64_t score_bytes = 12 * 1024;         // of the rows that are worked on: they stay in the first cache
constexpr int64_t least_rows = 6, most_rows = 48;  // six are a tile of four panels
static_assert(most_rows <= summed_rows);
constexpr uint64_t flip = 0x80808080'80808080;  // b ^ 0x80 is the int8 b - 128

using Task = QPatchAttentionTask;
using Sixteen = Lanes<uint8_t, 16>;
using Pairs = Lanes<uint16_t, 8>;
using Quads = Lanes<uint32_t, 4>;
using Halves = Lanes<uint64_t, 2>;

int64_t rows_at_once(int64_t pixels) {
    const int64_t rows = score_bytes / (qpanels(pixels) * qpanel * int64_t{sizeof(int32_t)}) / least_rows * least_rows;
    return rows < least_rows ? least_rows : rows < most_rows ? rows : most_rows;
}

// Where what a task needs lies in its scratch. Rows of e are `keys` bytes apart: scores of whole panels become as many bytes.
struct Places {
    int64_t rows, keys, row_stride;  // queries at once; whole panels of keys; of copies of q
    int64_t packed_keys, packed_values, wide_keys, wide_values;
    int64_t init, zeros, queries, wide_rows, scores, e, results, size = 0;

    Places(int64_t pixels, int64_t depth) : rows(rows_at_once(pixels)), keys(qpanels(pixels) * qpanel), row_stride(round_up(depth, 16)) {
        packed_keys = place(qpanels(pixels) * qpanel_bytes(depth, 8));
        packed_values = place(qpanels(depth) * qpanel_bytes(pixels, 8));
        wide_keys = place(qpanels(pixels) * qpanel_stride(depth, 8));
        wide_values = place(qpanels(depth) * qpanel_stride(pixels, 8));
        init = place(keys * int64_t{sizeof(int32_t)});
        zeros = place(qgroup * qpanel * int64_t{sizeof(int32_t)});
        queries = place(rows * row_stride);
        wide_rows = place(qrows_scratch(rows, depth > pixels ? depth : pixels, 8));
        scores = place(rows * keys * int64_t{sizeof(int32_t)});
        e = place(rows * keys);
        results = place(rows * qpanels(depth) * qpanel * int64_t{sizeof(int32_t)});
    }

  private:
    int64_t place(int64_t bytes) {
        const int64_t start = size;
        size += round_up(bytes, 64);
        return start;
    }
};

// --- packing ---

// Where a run of pixels of the phase lies, one after another.
struct Walk {
    int64_t columns, row, column, y, x;

    Walk(int64_t columns, int64_t row, int64_t column, int64_t first)
        : columns(columns), row(row), column(column), y(first / columns), x(first % columns) {}
    int64_t next() {
        const int64_t offset = y * row + x * column;
        if (++x == columns) x = 0, ++y;
        return offset;
    }
};

template <class To, class From>
inline typename To::Vector as(From v) {
    static_assert(sizeof(v) == sizeof(typename To::Vector));
    return reinterpret_cast<typename To::Vector>(v);
}

// The first n of 16 bytes, zeros in the others; reads nothing beyond p + n.
inline Sixteen::Vector load_bytes(const uint8_t* p, int64_t n) {
    if (n >= 16) return Sixteen::load(p);
#if defined(MVIT_ISA_AVX512VNNI)
    return as<Sixteen>(_mm_maskz_loadu_epi8(static_cast<__mmask16>((1u << n) - 1u), p));
#else
    uint64_t halves[2] = {0, 0};
    int half = 0, shift = 0;
    if (n & 8) {
        std::memcpy(halves, p, 8);
        half = 1, p += 8;
    }
    if (n & 4) {
        uint32_t four;
        std::memcpy(&four, p, 4);
        halves[half] = four;
        shift = 32, p += 4;
    }
    for (int64_t i = 0; i < (n & 3); ++i, shift += 8) halves[half] |= uint64_t{p[i]} << shift;
    return as<Sixteen>(Halves::load(halves));
#endif
}

inline Sixteen::Vector load_signed(const uint8_t* p, int64_t n) { return load_bytes(p, n) ^ as<Sixteen>(Halves::Vector{flip, flip}); }

// Keys as the columns of a weight: panels of 16, blocks of four channels. The last key fills the last panel up: it changes no maximum.
void pack_keys(const Task& t, uint8_t* to) {
    const int64_t blocks = qblocks(t.depth);
    Walk walk(t.columns, t.qkv_row, t.qkv_column, 0);
    int64_t offset = 0;
    for (int64_t key = 0; key < round_up(t.pixels, qpanel); key += 4) {
        const uint8_t* row[4];
        for (int i = 0; i < 4; ++i) {
            if (key + i < t.pixels) offset = walk.next();
            row[i] = t.k + offset;
        }
        uint8_t* at = to + key / qpanel * blocks * qblock + key % qpanel * 4;
        for (int64_t block = 0; block < blocks; block += 4) {
            const int64_t left = t.depth - 4 * block;
            Quads::Vector x[4];
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) x[i] = as<Quads>(load_signed(row[i] + 4 * block, left));
            // Four keys' words of four channels each, transposed.
            const auto low01 = as<Halves>(Quads::low(x[0], x[1])), high01 = as<Halves>(Quads::high(x[0], x[1]));
            const auto low23 = as<Halves>(Quads::low(x[2], x[3])), high23 = as<Halves>(Quads::high(x[2], x[3]));
            const Halves::Vector y[4] = {Halves::low(low01, low23), Halves::high(low01, low23), Halves::low(high01, high23),
                                         Halves::high(high01, high23)};
            const int64_t count = blocks - block < 4 ? blocks - block : 4;
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i)
                if (i < count) Sixteen::store(as<Sixteen>(y[i]), at + (block + i) * qblock);
        }
    }
}

// Values as the depth of a weight whose columns are channels: blocks of four pixels. What stands beyond the last pixel meets zeros.
void pack_values(const Task& t, uint8_t* to) {
    const int64_t panel_bytes = qpanel_bytes(t.pixels, 8);
    Walk walk(t.columns, t.qkv_row, t.qkv_column, 0);
    int64_t offset = 0;
    for (int64_t pixel = 0; pixel < t.pixels; pixel += 4, to += qblock) {
        const uint8_t* row[4];
        for (int i = 0; i < 4; ++i) {
            if (pixel + i < t.pixels) offset = walk.next();
            row[i] = t.v + offset;
        }
        uint8_t* at = to;
        for (int64_t channel = 0; channel < t.depth; channel += qpanel, at += panel_bytes) {
            const int64_t left = t.depth - channel;
            Sixteen::Vector x[4];
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) x[i] = load_signed(row[i] + channel, left);
            const auto low01 = as<Pairs>(Sixteen::low(x[0], x[1])), high01 = as<Pairs>(Sixteen::high(x[0], x[1]));
            const auto low23 = as<Pairs>(Sixteen::low(x[2], x[3])), high23 = as<Pairs>(Sixteen::high(x[2], x[3]));
            Sixteen::store(as<Sixteen>(Pairs::low(low01, low23)), at);
            Sixteen::store(as<Sixteen>(Pairs::high(low01, low23)), at + 16);
            Sixteen::store(as<Sixteen>(Pairs::low(high01, high23)), at + 32);
            Sixteen::store(as<Sixteen>(Pairs::high(high01, high23)), at + 48);
        }
    }
}

void copy_queries(const Task& t, int64_t begin, int64_t end, uint8_t* to, int64_t stride) {
    Walk walk(t.columns, t.qkv_row, t.qkv_column, begin);
    for (int64_t i = begin; i < end; ++i, to += stride) {
        const uint8_t* from = t.q + walk.next();
        for (int64_t c = 0; c < t.depth; c += 16) Sixteen::store(load_bytes(from + c, t.depth - c), to + c);
    }
}

// --- a row of scores ---

inline int32_t largest_lane(I32 x) {
#if defined(MVIT_ISA_AVX512VNNI)
    return _mm512_reduce_max_epi32(x.v);
#elif defined(MVIT_ISA_AVX2)
    __m128i four = _mm_max_epi32(_mm256_castsi256_si128(x.v), _mm256_extracti128_si256(x.v, 1));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4E));
    return _mm_cvtsi128_si32(_mm_max_epi32(four, _mm_shuffle_epi32(four, 0xB1)));
#else
    int32_t most = x.lane[0];
    for (int i = 1; i < W; ++i) most = x.lane[i] > most ? x.lane[i] : most;
    return most;
#endif
}

// `count`: whole panels.
inline int32_t largest(const int32_t* scores, int64_t count) {
    I32 a = I32::load(scores), b = a;
    int64_t i = 0;
    for (; i + 2 * W <= count; i += 2 * W) {
        a = max(a, I32::load(scores + i));
        b = max(b, I32::load(scores + i + W));
    }
    for (; i < count; i += W) a = max(a, I32::load(scores + i));
    return largest_lane(max(a, b));
}

inline void steps_below(const int32_t* scores, int64_t count, F32 factor, uint8_t* to) {
    const I32 top = I32::all(largest(scores, count));
    const F32 last = F32::all(255.0f);
    write_bytes(to, count, [&](int64_t i, int) { return to_int(min(to_float(top - I32::load(scores + i)) * factor, last)); });
}

// The sum of `count` bytes.
inline int64_t sum_of(const uint8_t* x, int64_t count) {
#if defined(MVIT_ISA_AVX512VNNI)
    __m512i sums = _mm512_setzero_si512();
    for (int64_t i = 0; i < count; i += 64) {
        const __m512i bytes = _mm512_maskz_loadu_epi8(first_bytes(count - i), x + i);
        sums = _mm512_add_epi64(sums, _mm512_sad_epu8(bytes, _mm512_setzero_si512()));
    }
    return _mm512_reduce_add_epi64(sums);
#else
    int64_t sum = 0, i = 0;
#if defined(MVIT_ISA_AVX2)
    __m256i sums = _mm256_setzero_si256();
    for (; i + 32 <= count; i += 32) {
        const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i));
        sums = _mm256_add_epi64(sums, _mm256_sad_epu8(bytes, _mm256_setzero_si256()));
    }
    const __m128i two = _mm_add_epi64(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    sum = _mm_cvtsi128_si64(_mm_add_epi64(two, _mm_unpackhi_epi64(two, two)));
#endif
    for (; i < count; ++i) sum += x[i];
    return sum;
#endif
}

// --- a task ---

// c[r, n] of all panels of a packed weight.
inline void multiply(const QOperand& rows, int64_t count, int64_t depth, const QOperand& panels, int64_t columns, const int32_t* init,
                     int64_t init_step, int32_t* c) {
    const int64_t all = qpanels(columns);
    for (int64_t panel = 0; panel < all; panel += qgroup) {
        const int64_t group = all - panel < qgroup ? all - panel : qgroup;
        const QTile tile{.a = rows.data,
                         .a_stride = rows.stride,
                         .rows = count,
                         .depth = depth,
                         .w = static_cast<const char*>(panels.data) + panel * panels.stride,
                         .w_stride = panels.stride,
                         .panels = static_cast<int>(group),
                         .bits = 8,
                         .planes = false,
                         .init = init + panel * init_step,
                         .init_stride = 0};
        MVIT_ISA_SYMBOL(qtile).accumulate(tile, c + panel * qpanel, all * qpanel, RowsDone([](int64_t, int64_t) {}));
    }
}

void attend(const Task& t) {
    const QPatchAttentionProblem& p = *t.problem;
    const Places at(t.pixels, t.depth);
    char* const memory = static_cast<char*>(t.scratch);
    const auto ints = [&](int64_t place) { return reinterpret_cast<int32_t*>(memory + place); };
    const auto bytes = [&](int64_t place) { return reinterpret_cast<uint8_t*>(memory + place); };
    int32_t *const init = ints(at.init), *const zeros = ints(at.zeros), *const scores = ints(at.scores), *const results = ints(at.results);
    uint8_t *const queries = bytes(at.queries), *const e = bytes(at.e);
    const int64_t columns = qpanels(t.depth) * qpanel;

    pack_keys(t, bytes(at.packed_keys));
    pack_values(t, bytes(at.packed_values));
    const auto weight = [&](int64_t packed, int64_t n, int64_t depth) {
        return QWeight{reinterpret_cast<const int8_t*>(memory + packed), n, depth, 8, nullptr, 0};
    };
    const QWeight packed_keys = weight(at.packed_keys, t.pixels, t.depth), packed_values = weight(at.packed_values, t.depth, t.pixels);
    const QOperand keys = load_qpanels(packed_keys, 0, qpanels(t.pixels), at.rows, memory + at.wide_keys);
    const QOperand values = load_qpanels(packed_values, 0, qpanels(t.depth), at.rows, memory + at.wide_values);

    // Scores begin with -z_q sum_c k: a row of ones times the keys, times -z_q.
    std::memset(zeros, 0, qgroup * qpanel * sizeof(int32_t));
    std::memset(queries, 1, static_cast<size_t>(at.row_stride));
    multiply(load_qrows(queries, at.row_stride, 1, t.depth, 8, memory + at.wide_rows), 1, t.depth, keys, t.pixels, zeros, 0, init);
    for (int64_t i = 0; i < at.keys; i += W) (I32::all(-p.q_zero_point) * I32::load(init + i)).store(init + i);

    const F32 factor = F32::all(p.score_steps), low = F32::all(p.byte.low), high = F32::all(p.byte.high);
    const I32 zero_point = I32::all(p.byte.zero_point);
    Walk walk(t.columns, t.y_row, t.y_column, t.begin);
    for (int64_t row = t.begin; row < t.end; row += at.rows) {
        const int64_t rows = t.end - row < at.rows ? t.end - row : at.rows;
        copy_queries(t, row, row + rows, queries, at.row_stride);
        const QOperand q = load_qrows(queries, at.row_stride, rows, t.depth, 8, memory + at.wide_rows);
        multiply(q, rows, t.depth, keys, t.pixels, init, qpanel, scores);
        for (int64_t r = 0; r < rows; ++r) steps_below(scores + r * at.keys, at.keys, factor, e + r * at.keys);
        look_up(p.table, e, e, rows * at.keys);
        multiply(load_qrows(e, at.keys, rows, t.pixels, 8, memory + at.wide_rows), rows, t.pixels, values, t.depth, zeros, 0, results);
        for (int64_t r = 0; r < rows; ++r) {
            const auto sum = static_cast<int32_t>(sum_of(e + r * at.keys, t.pixels));
            const I32 shift = I32::all(sum * (128 - p.v_zero_point));
            const F32 times = F32::all(p.ratio / static_cast<float>(sum));
            const int32_t* result = results + r * columns;
            write_bytes(t.y + walk.next(), t.depth,
                        [&](int64_t c, int) { return to_byte(to_float(I32::load(result + c) + shift) * times, low, high, zero_point); });
        }
    }
}

int64_t scratch(int64_t pixels, int64_t depth) { return Places(pixels, depth).size; }

}  // namespace

extern const QPatchAttentionKernels MVIT_ISA_SYMBOL(qpatch_attention);
const QPatchAttentionKernels MVIT_ISA_SYMBOL(qpatch_attention) = {attend, scratch};

}  // namespace mvit
