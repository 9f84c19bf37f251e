// A product of random bytes in every form of the epilogue, against a plain loop, with guard pages behind each buffer: what the tests of
// every kernel of qgemm share.
#pragma once

#include "tests/floats.h"
#include "tests/qweights.h"

namespace mvit::tests {

struct QGemmCase {
    int64_t rows, columns, depth;
    int bits = 8;
    QType type = QType::u8;
    bool plain = true;
    QActivation activation = QActivation::none;
    QType residual = QType::i32;  // none
    bool of_rows = false, table = false, curve = false, steps = false, extreme = false;
    int most = 255;  // of the bytes that are multiplied
    int64_t gap = 0;
    int64_t slope_rows = -1;  // of an image: 0 is all, less is no slopes
};

template <class T>
double value_of(T x) {
    if constexpr (std::is_same_v<T, bf16> || std::is_same_v<T, f16>) {
        return value(x);
    } else {
        return static_cast<double>(x);
    }
}

template <class T>
T rounded(double x) {
    if constexpr (std::is_same_v<T, bf16> || std::is_same_v<T, f16>) {
        T to;
        from_float(static_cast<float>(x), &to);
        return to;
    } else {
        return static_cast<T>(x);
    }
}

// What a kernel is given.
struct QGemmCall {
    int64_t rows;
    const uint8_t* a;
    int64_t a_stride;
    const PackedMatrix& w;
    QEpilogue epilogue;
};

// run(call, i) `runs` times, each with the same result.
template <class T, class Run>
void compare_qgemm(const QGemmCase& c, int runs, const Run& run) {
    const int64_t a_stride = c.depth + c.gap, y_stride = c.columns + c.gap;
    Guarded<uint8_t> a((c.rows - 1) * a_stride + c.depth);
    for (int64_t i = 0; i < a.size(); ++i) a[i] = static_cast<uint8_t>(c.extreme ? c.most : random_int(0, c.most));
    PackedMatrix w(c.columns, c.depth, c.bits, c.extreme);
    RandomChannels channels(c.columns, 4.0f / static_cast<float>(c.depth + 1));
    Guarded<float> segments(96), row_scale(c.rows);
    Guarded<int32_t> row_zero(c.rows);
    Guarded<uint8_t> table(256);
    Curve curve(c.steps ? CurveKind::silu : CurveKind::random);
    Guarded<float> slopes(c.rows * 2 * c.columns);
    fill(slopes);
    for (int i = 0; i < 96; ++i) segments[i] = random_float();
    for (int i = 0; i < 256; ++i) table[i] = static_cast<uint8_t>(random_int(0, 255));
    for (int64_t m = 0; m < c.rows; ++m) row_scale[m] = std::fabs(random_float()), row_zero[m] = random_int(-1300, 300);
    Guarded<uint8_t> bytes((c.rows - 1) * y_stride + c.columns);
    Guarded<int16_t> shorts(bytes.size());
    Guarded<float> reals(bytes.size());
    for (int64_t i = 0; i < bytes.size(); ++i)
        bytes[i] = static_cast<uint8_t>(random_int(0, 255)), shorts[i] = static_cast<int16_t>(random_int(-32768, 32767)),
        reals[i] = random_float();

    QGemmCall call{c.rows, a.data(), a_stride, w, {}};
    QEpilogue& e = call.epilogue;
    e.channels = channels.channels();
    e.type = c.type, e.plain = c.plain, e.activation = c.activation, e.segments = segments.data();
    if (c.table) e.table = table.data();
    if (c.curve || c.steps) e.curve = curve.data();
    if (c.slope_rows >= 0) e.slopes = slopes.data(), e.slope_columns = c.columns, e.slope_rows = c.slope_rows;
    if (c.residual == QType::u8) e.residual = bytes.data();
    if (c.residual == QType::i16) e.residual = shorts.data();
    if (c.residual == QType::f32) e.residual = reals.data();
    e.residual_type = c.residual, e.residual_stride = y_stride, e.residual_scale = 0.37f, e.residual_zero_point = -40;
    e.column_sum = w.weight.sum;
    if (c.of_rows) {
        e.row_zero_point = row_zero.data();
        if (c.type != QType::i32) e.row_scale = row_scale.data();
    }
    Guarded<T> y((c.rows - 1) * y_stride + c.columns);
    for (int i = 0; i < runs; ++i) {
        std::memset(y.data(), 0xAA, static_cast<size_t>(y.size()) * sizeof(T));
        e.y = y.data(), e.y_stride = y_stride;
        run(call, i);
        CHECK(y.canary_intact());
        for (int64_t m = 0; m < c.rows; ++m) {
            for (int64_t n = 0; n < c.columns; ++n) {
                int64_t sum = e.channels.init[n];
                for (int64_t k = 0; k < c.depth; ++k) sum += a[m * a_stride + k] * w.at(n, k);
                const T expected = rounded<T>(finish_one(e, sum, m, n));
                CHECK(std::memcmp(&y[m * y_stride + n], &expected, sizeof(T)) == 0 || value_of(y[m * y_stride + n]) == value_of(expected));
            }
            for (int64_t j = c.columns; j < y_stride && m + 1 < c.rows; ++j) {  // between the rows nothing is written
                const auto* raw = reinterpret_cast<const uint8_t*>(&y[m * y_stride + j]);
                for (size_t b = 0; b < sizeof(T); ++b) CHECK(raw[b] == 0xAA);
            }
        }
    }
}

}  // namespace mvit::tests
