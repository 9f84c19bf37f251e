// From an exact int32 sum to what the network goes on with. Internal linkage.
//
// Every step is one correctly rounded operation of IEEE 754 in a fixed order, nothing is contracted: the bits are the same on every
// instruction set, in torch and on a GPU. Three sequences (mvit_kernels/reference/qgemm.py defines them too):
//
//     plain       x = float(sum) * scale[n]                                       scale: s_a s_w / s_y for bytes, s_a s_w for floats
//     with more   x = float(sum) * scale[n], x = x + residual, x = activation(x)  scale: s_a s_w
//                 for bytes x = x * inverse[n]                                    inverse: 1 / s_y
//     dynamic     sum = sum - z_a[m] sum_w[n]                                     modulo 2^32
//                 x = float(sum) * (s_a[m] * scale[n]), x = x + bias[n]           scale: s_w
//                 then as "with more"
//
//     bytes       q = rint(min(max(x, low[n]), high[n])) + zero_point[n]          ties to even; low, high: what 0 .. 2^bits - 1 allows
//     int16       q = rint(min(max(x, -2^17), 2^17)) + residual, saturated        the residual stream: its scale is the output's
//     curve       q = an activation on int16 numbers                          qcurve.h; scale: s_a s_w 2^f / s_y
//     slopes      x = float(sum) * scale[n], x = max(a x, d x), a = 1 + clip(u[n]), d = clip(u[N + n])   then as "with more"
//
// The clamp comes before the conversion, which gives INT_MIN for whatever is too large.
#pragma once

#include "cpu/core/activation.h"
#include "cpu/core/byte_table.h"
#include "cpu/core/qcurve.h"
#include "cpu/core/qepilogue_types.h"
#include "cpu/core/qrows.h"

namespace mvit {
namespace {

// max(x, 0) + e(|x|), as silu, gelu and hard-swish are, with e a quadratic polynomial on each of 32 segments and 0 from 16 on. Segments are
// 1/4 wide up to 4, 1/2 up to 8 and 1 up to 16, so that the least of three lines says where |x| lies. NaN takes the last segment.
inline F32 activate_segments(F32 x, const float* table) {
    const F32 zero = F32::all(0.0f), size = max(x, zero - x);
    const F32 line = min(min(size * F32::all(4.0f), size * F32::all(2.0f) + F32::all(8.0f)), size + F32::all(16.0f));
    const I32 i = truncated(min(line, F32::all(31.0f)));
    const F32 e = (pick(table + 64, i) * size + pick(table + 32, i)) * size + pick(table, i);
    return max(x, zero) + where_not_below(F32::all(16.0f) - size, 0.0f, e);
}

inline F32 activate(F32 x, QActivation activation, const float* segments) {
    if (activation == QActivation::relu) return max(F32::all(0.0f), x);  // in this order NaN stays NaN
    if (activation == QActivation::segments) return activate_segments(x, segments);
    return x;
}

// rint(min(max(x, low), high)) + zero_point; NaN becomes low.
inline I32 to_byte(F32 x, F32 low, F32 high, I32 zero_point) { return to_int(min(max(x, low), high)) + zero_point; }

inline F32 load_residual(const QEpilogue& e, int64_t row, int64_t column, int lanes) {
    const int64_t at = row * e.residual_stride + column;
    const auto real = [&](I32 q) { return to_float(q - I32::all(e.residual_zero_point)) * F32::all(e.residual_scale); };
    switch (e.residual_type) {
        case QType::u8:
            return real(load_ints(static_cast<const uint8_t*>(e.residual) + at, lanes));
        case QType::i16:
            return real(load_ints(static_cast<const int16_t*>(e.residual) + at, lanes));
        case QType::bf16:
            return load(static_cast<const bf16*>(e.residual) + at, lanes, 0.0f);
        case QType::f16:
            return load(static_cast<const f16*>(e.residual) + at, lanes, 0.0f);
        default:
            return load(static_cast<const float*>(e.residual) + at, lanes, 0.0f);
    }
}

// rint(min(max(x, -2^17), 2^17)) + residual, saturated.
inline I32 add_to_stream(F32 x, I32 residual) {
    const I32 q = to_int(min(max(x, F32::all(-0x1p17f)), F32::all(0x1p17f))) + residual;
    return min(max(q, I32::all(INT16_MIN)), I32::all(INT16_MAX));
}

// One vector of sums of row `row`, columns from `column` on.
inline void finish_vector(const QEpilogue& e, I32 sum, int64_t row, int64_t column, int lanes) {
    const QChannels c = e.channels.from(column);
    const int64_t at = row * e.y_stride + column;
    if (e.row_zero_point) sum = sum - I32::all(e.row_zero_point[row]) * I32::load(e.column_sum + column);
    if (e.type == QType::i32) return store(sum, static_cast<int32_t*>(e.y) + at, lanes);
    F32 x = to_float(sum);
    if (e.row_scale) {
        x = x * (F32::all(e.row_scale[row]) * F32::load(c.scale)) + F32::load(c.bias);
    } else {
        x = x * F32::load(c.scale);
    }
    if (e.type == QType::i16) {
        const auto* stream = static_cast<const int16_t*>(e.residual);
        const I32 more = stream ? load_ints(stream + row * e.residual_stride + column, lanes) : I32::all(0);
        return store(add_to_stream(x, more), static_cast<int16_t*>(e.y) + at, lanes);
    }
    if (!e.plain) {
        if (e.residual) x = x + load_residual(e, row, column, lanes);
        x = activate(x, e.activation, e.segments);
    }
    switch (e.type) {
        case QType::u8:
            if (!e.plain) x = x * F32::load(c.inverse);
            return store(to_byte(x, F32::load(c.low), F32::load(c.high), I32::load(c.zero_point)), static_cast<uint8_t*>(e.y) + at, lanes);
        case QType::bf16:
            return store(x, static_cast<bf16*>(e.y) + at, lanes);
        case QType::f16:
            return store(x, static_cast<f16*>(e.y) + at, lanes);
        default:
            return store(x, static_cast<float*>(e.y) + at, lanes);
    }
}

// finish_vector of results that are added to a stream, down the rows: pointers and scales are looked up once.
inline void finish_stream(const QEpilogue& e, const int32_t* c, int64_t c_stride, int64_t row, int64_t rows, int64_t first,
                          int64_t columns) {
    for (int64_t j = 0; j < columns; j += F32::width) {
        const int lanes = lanes_left(columns, j);
        const F32 scale = F32::load(e.channels.scale + first + j);
        const int32_t* sum = c + j;
        const auto* residual = static_cast<const int16_t*>(e.residual) + row * e.residual_stride + first + j;
        auto* y = static_cast<int16_t*>(e.y) + row * e.y_stride + first + j;
        for (int64_t r = 0; r < rows; ++r, sum += c_stride, residual += e.residual_stride, y += e.y_stride)
            store(add_to_stream(to_float(I32::load(sum)) * scale, load_ints(residual, lanes)), y, lanes);
    }
}

// Two vectors of integers in 0 .. 255, side by side.
inline void store_pair(I32 a, I32 b, uint8_t* p) {
#if defined(MVIT_ISA_AVX2)
    const __m256i shorts = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.v, b.v), 0xD8);  // packing works inside 128-bit lanes
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(_mm256_castsi256_si128(shorts), _mm256_extracti128_si256(shorts, 1)));
#else
    a.store(p);
    b.store(p + F32::width);
#endif
}

// finish_vector of plain bytes, down the rows.
inline void finish_bytes(const QEpilogue& e, const int32_t* c, int64_t c_stride, int64_t row, int64_t rows, int64_t first,
                         int64_t columns) {
    constexpr int W = F32::width;
    const auto byte_of = [](const int32_t* sum, F32 scale, F32 low, F32 high, I32 zero_point) {
        return to_byte(to_float(I32::load(sum)) * scale, low, high, zero_point);
    };
    for (int64_t j = 0; j < columns; j += 2 * W) {
        const QChannels k = e.channels.from(first + j);
        const F32 scale = F32::load(k.scale), low = F32::load(k.low), high = F32::load(k.high);
        const I32 zero_point = I32::load(k.zero_point);
        const int32_t* sum = c + j;
        uint8_t* y = static_cast<uint8_t*>(e.y) + row * e.y_stride + first + j;
        if (columns - j >= 2 * W) {
            const F32 scale2 = F32::load(k.scale + W), low2 = F32::load(k.low + W), high2 = F32::load(k.high + W);
            const I32 zero_point2 = I32::load(k.zero_point + W);
            for (int64_t r = 0; r < rows; ++r, sum += c_stride, y += e.y_stride)
                store_pair(byte_of(sum, scale, low, high, zero_point), byte_of(sum + W, scale2, low2, high2, zero_point2), y);
            continue;
        }
        const int lanes = lanes_left(columns, j);
        for (int64_t r = 0; r < rows; ++r) store(byte_of(sum + r * c_stride, scale, low, high, zero_point), y + r * e.y_stride, lanes);
        if (columns - j <= W) continue;
        const QChannels rest = k.from(W);
        const F32 scale2 = F32::load(rest.scale), low2 = F32::load(rest.low), high2 = F32::load(rest.high);
        const I32 zero_point2 = I32::load(rest.zero_point);
        const int more = lanes_left(columns, j + W);
        for (int64_t r = 0; r < rows; ++r)
            store(byte_of(sum + W + r * c_stride, scale2, low2, high2, zero_point2), y + W + r * e.y_stride, more);
    }
}

// finish_vector of bytes by way of a curve, down the rows.
inline void finish_curve(const QEpilogue& e, const int32_t* c, int64_t c_stride, int64_t row, int64_t rows, int64_t first,
                         int64_t columns) {
    const QCurve curve(e.curve);
    int64_t j = 0;
#if defined(MVIT_ISA_AVX2)
    for (; j + 32 <= columns; j += 32) {  // two vectors of int16 at once
        __m256 scale[4];
        for (int v = 0; v < 4; ++v) scale[v] = _mm256_loadu_ps(e.channels.scale + first + j + 8 * v);
        const int32_t* sum = c + j;
        uint8_t* y = static_cast<uint8_t*>(e.y) + row * e.y_stride + first + j;
        for (int64_t r = 0; r < rows; ++r, sum += c_stride, y += e.y_stride) {
            const auto argument = [&](int v) {
                return curve_argument(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(sum + 8 * v)), scale[v]);
            };
            const __m256i packed = curve(_mm256_packs_epi32(argument(0), argument(1)), _mm256_packs_epi32(argument(2), argument(3)));
            // Packing worked inside 128-bit lanes: fours of columns stand in the order 0 2 4 6, 1 3 5 7.
            const __m256i bytes = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(y), bytes);
        }
    }
#endif
    for (; j < columns; j += F32::width) {
        const int lanes = lanes_left(columns, j);
        const F32 scale = F32::load(e.channels.scale + first + j);
        const int32_t* sum = c + j;
        uint8_t* y = static_cast<uint8_t*>(e.y) + row * e.y_stride + first + j;
        for (int64_t r = 0; r < rows; ++r, sum += c_stride, y += e.y_stride) store(curve_of(curve, I32::load(sum), scale), y, lanes);
    }
}

// finish_vector by way of slopes, down the rows of each image.
inline void finish_dynamic(const QEpilogue& e, const int32_t* c, int64_t c_stride, int64_t row, int64_t rows, int64_t first,
                           int64_t columns) {
    const F32 one = F32::all(1.0f), minus = F32::all(-1.0f);
    for (const int64_t end = row + rows; row < end;) {
        const int64_t image = e.slope_rows > 0 ? row / e.slope_rows : 0, behind = (image + 1) * e.slope_rows;
        const int64_t count = e.slope_rows > 0 && behind < end ? behind - row : end - row;
        const float* slopes = e.slopes + image * 2 * e.slope_columns + first;
        for (int64_t j = 0; j < columns; j += F32::width) {
            const int lanes = lanes_left(columns, j);
            const QChannels k = e.channels.from(first + j);
            const F32 a = one + min(one, max(minus, load(slopes + j, lanes, 0.0f)));
            const F32 d = beside(a, min(one, max(minus, load(slopes + e.slope_columns + j, lanes, 0.0f))));
            const F32 scale = F32::load(k.scale), low = F32::load(k.low), high = F32::load(k.high);
            const F32 inverse = F32::load(k.inverse);
            const I32 zero_point = I32::load(k.zero_point);
            for (int64_t r = 0; r < count; ++r) {
                const F32 x = to_float(load_ints(c + r * c_stride + j, lanes)) * scale, y = max(a * x, d * x);
                const int64_t at = (row + r) * e.y_stride + first + j;
                if (e.type == QType::u8) {
                    store(to_byte(y * inverse, low, high, zero_point), static_cast<uint8_t*>(e.y) + at, lanes);
                } else {
                    store(y, static_cast<float*>(e.y) + at, lanes);
                }
            }
        }
        c += count * c_stride;
        row += count;
    }
}

// Rows of sums [0, columns), which stand for the columns from `first` on; rows from `row` on.
inline void finish_rows(const QEpilogue& e, const int32_t* c, int64_t c_stride, int64_t row, int64_t rows, int64_t first, int64_t columns) {
    if (e.curve) return finish_curve(e, c, c_stride, row, rows, first, columns);
    if (e.slopes) return finish_dynamic(e, c, c_stride, row, rows, first, columns);
    if (!e.row_zero_point && !e.row_scale) {
        if (e.type == QType::i16 && e.residual) return finish_stream(e, c, c_stride, row, rows, first, columns);
        if (e.type == QType::u8 && e.plain) return finish_bytes(e, c, c_stride, row, rows, first, columns);
    }
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t j = 0; j < columns; j += F32::width)
            finish_vector(e, I32::load(c + r * c_stride + j), row + r, first + j, lanes_left(columns, j));
}

// Bytes that are done go through the table, if there is one.
inline void look_up_rows(const QEpilogue& e, int64_t row, int64_t rows, int64_t first, int64_t columns) {
    if (!e.table) return;
    for (int64_t r = row; r < row + rows; ++r) {
        uint8_t* y = static_cast<uint8_t*>(e.y) + r * e.y_stride + first;
        look_up(e.table, y, y, columns);
    }
}

inline constexpr int64_t qtile_scratch = qgroup * qpanel;  // int32 a row

// Bytes of scratch for multiply_qpanels, after which come those of load_qrows.
inline int64_t qmultiply_scratch(int64_t rows, int64_t depth, int bits) {
    return round_up(qpanels_scratch(depth, bits), 64) +
           (rows < summed_rows ? rows : summed_rows) * qtile_scratch * int64_t{sizeof(int32_t)};
}

// Rows [row, row + rows) of y: the panels [begin, end) of a weight times rows that load_qrows made ready. init, with a stride, replaces
// that of the channels where rows differ in it.
inline void multiply_qpanels(const QTileKernels& tiles, const QOperand& a, int64_t row, int64_t rows, const QWeight& w, int64_t begin,
                             int64_t end, const QEpilogue& e, const int32_t* init, int64_t init_stride, void* scratch) {
    auto* sums = reinterpret_cast<int32_t*>(static_cast<char*>(scratch) + round_up(qpanels_scratch(w.depth, w.bits), 64));
    const bool direct = tiles.requantize && e.plain && e.type == QType::u8 && !e.row_zero_point && !e.row_scale && !e.residual && !e.slopes;
    for (int64_t panel = begin; panel < end;) {
        // 5 panels are 3 and 2, rather than 4 and one alone.
        const int64_t left = end - panel, count = left == 5 ? 3 : left < qgroup ? left : qgroup;
        const int64_t first = panel * qpanel;
        const int64_t columns = w.columns - first < count * qpanel ? w.columns - first : count * qpanel;
        const QOperand panels = load_qpanels(w, panel, count, rows, scratch);
        const QTile tile{.a = a.data,
                         .a_stride = a.stride,
                         .rows = rows,
                         .depth = w.depth,
                         .w = panels.data,
                         .w_stride = panels.stride,
                         .panels = static_cast<int>(count),
                         .bits = w.bits,
                         .planes = meets_planes(rows, w.bits),
                         .init = init + first,
                         .init_stride = init_stride,
                         .windows = a.windows};
        if (direct) {
            tiles.requantize(tile, e.channels.from(first), static_cast<int>(columns), static_cast<uint8_t*>(e.y) + row * e.y_stride + first,
                             e.y_stride, e.curve);
        } else {
            const auto finish = [&](int64_t done, int64_t some) { finish_rows(e, sums, qtile_scratch, row + done, some, first, columns); };
            tiles.accumulate(tile, sums, qtile_scratch, RowsDone(finish));
        }
        look_up_rows(e, row, rows, first, columns);
        panel += count;
    }
}

}  // namespace
}  // namespace mvit
