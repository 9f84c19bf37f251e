// Exact sums and every sequence of the epilogue against a plain loop, on every instruction set, with guard pages behind each buffer.
#include "cpu/ops/qgemm.h"

#include "tests/floats.h"
#include "tests/qweights.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

struct Case {
    int64_t rows, columns, depth;
    int bits = 8;
    QType type = QType::u8;
    bool plain = true;
    QActivation activation = QActivation::none;
    QType residual = QType::i32;  // none
    bool of_rows = false, table = false, extreme = false;
    int64_t gap = 0;
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

template <class T>
void compare(const Case& c) {
    const int64_t a_stride = c.depth + c.gap, y_stride = c.columns + c.gap;
    Guarded<uint8_t> a((c.rows - 1) * a_stride + c.depth);
    for (int64_t i = 0; i < a.size(); ++i) a[i] = static_cast<uint8_t>(c.extreme ? 255 : random_int(0, 255));
    PackedMatrix w(c.columns, c.depth, c.bits, c.extreme);
    RandomChannels channels(c.columns, 4.0f / static_cast<float>(c.depth + 1));
    Guarded<float> segments(96), row_scale(c.rows);
    Guarded<int32_t> row_zero(c.rows);
    Guarded<uint8_t> table(256);
    for (int i = 0; i < 96; ++i) segments[i] = random_float();
    for (int i = 0; i < 256; ++i) table[i] = static_cast<uint8_t>(random_int(0, 255));
    for (int64_t m = 0; m < c.rows; ++m) row_scale[m] = std::fabs(random_float()), row_zero[m] = random_int(-1300, 300);
    Guarded<uint8_t> bytes((c.rows - 1) * y_stride + c.columns);
    Guarded<int16_t> shorts(bytes.size());
    Guarded<float> reals(bytes.size());
    for (int64_t i = 0; i < bytes.size(); ++i)
        bytes[i] = static_cast<uint8_t>(random_int(0, 255)), shorts[i] = static_cast<int16_t>(random_int(-32768, 32767)),
        reals[i] = random_float();

    QGemmProblem p{};
    p.rows = c.rows, p.a = a.data(), p.a_stride = a_stride, p.weight = w.weight;
    QEpilogue& e = p.epilogue;
    e.channels = channels.channels();
    e.type = c.type, e.plain = c.plain, e.activation = c.activation, e.segments = segments.data();
    if (c.table) e.table = table.data();
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
    for (int threads : {1, 2, 3}) {
        std::memset(y.data(), 0xAA, static_cast<size_t>(y.size()) * sizeof(T));
        e.y = y.data(), e.y_stride = y_stride;
        CHECK(qgemm(p, threads) == Status::ok);
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

}  // namespace

TEST(qgemm_on_every_tail) {
    on_every_isa([] {
        for (int bits : {8, 6}) {
            for (int64_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 25})
                for (int64_t columns : {1, 15, 16, 17, 33, 48, 64, 65, 80})
                    compare<uint8_t>({.rows = rows, .columns = columns, .depth = 7, .bits = bits, .gap = rows % 3});
            for (int64_t depth : {0, 1, 2, 3, 4, 5, 8, 15, 16, 17, 31, 33, 63, 64, 65, 130})
                for (int64_t rows : {1, 7})
                    for (int64_t columns : {17, 65}) {
                        compare<uint8_t>({.rows = rows, .columns = columns, .depth = depth, .bits = bits});
                        compare<int32_t>(
                            {.rows = rows, .columns = columns, .depth = depth, .bits = bits, .type = QType::i32, .of_rows = rows == 7});
                    }
        }
    });
}

TEST(qgemm_of_the_largest_values) {
    on_every_isa([] {
        for (int bits : {8, 6})
            for (int64_t depth : {64, 129, 2880}) {
                compare<int32_t>({.rows = 5, .columns = 33, .depth = depth, .bits = bits, .type = QType::i32, .extreme = true});
                compare<uint8_t>({.rows = 5, .columns = 64, .depth = depth, .bits = bits, .extreme = true});
            }
    });
}

TEST(qgemm_with_every_epilogue) {
    on_every_isa([] {
        for (QType residual : {QType::i32, QType::u8, QType::i16})
            for (QActivation activation : {QActivation::none, QActivation::relu, QActivation::segments})
                for (bool of_rows : {false, true}) {
                    compare<uint8_t>({.rows = 9,
                                      .columns = 37,
                                      .depth = 21,
                                      .plain = false,
                                      .activation = activation,
                                      .residual = residual,
                                      .of_rows = of_rows,
                                      .table = activation == QActivation::relu,
                                      .gap = 3});
                    compare<float>({.rows = 9,
                                    .columns = 37,
                                    .depth = 21,
                                    .bits = 6,
                                    .type = QType::f32,
                                    .plain = false,
                                    .activation = activation,
                                    .residual = residual,
                                    .of_rows = of_rows});
                    compare<bf16>({.rows = 9,
                                   .columns = 37,
                                   .depth = 21,
                                   .bits = 8,
                                   .type = QType::bf16,
                                   .plain = false,
                                   .activation = activation,
                                   .residual = residual,
                                   .of_rows = of_rows});
                    compare<f16>({.rows = 9,
                                  .columns = 37,
                                  .depth = 21,
                                  .bits = 8,
                                  .type = QType::f16,
                                  .plain = false,
                                  .activation = activation,
                                  .residual = residual,
                                  .of_rows = of_rows});
                }
        compare<float>({.rows = 9,
                        .columns = 37,
                        .depth = 21,
                        .bits = 8,
                        .type = QType::f32,
                        .plain = false,
                        .activation = QActivation::segments,
                        .residual = QType::f32});
        compare<int16_t>({.rows = 9, .columns = 37, .depth = 21, .bits = 8, .type = QType::i16});
        compare<int16_t>({.rows = 9, .columns = 37, .depth = 21, .bits = 6, .type = QType::i16, .residual = QType::i16, .gap = 2});
        compare<uint8_t>({.rows = 9, .columns = 70, .depth = 21, .bits = 8, .type = QType::u8, .table = true});
    });
}

TEST(qgemm_on_several_threads) {
    on_every_isa([] {
        compare<uint8_t>({.rows = 100, .columns = 130, .depth = 90});
        compare<uint8_t>({.rows = 3, .columns = 700, .depth = 600, .bits = 6});  // the columns are cut
        compare<float>({.rows = 1, .columns = 1000, .depth = 64, .bits = 8, .type = QType::f32, .plain = false});
    });
}

TEST(qgemm_refuses_what_it_cannot_do) {
    PackedMatrix w(3, 5, 8);
    const auto status = [&](const auto& change) {
        QGemmProblem p{};
        p.weight = w.weight;
        p.epilogue.type = QType::u8;
        change(p);
        return qgemm(p, 1);
    };
    const uint8_t table[256] = {};
    CHECK(status([](QGemmProblem&) {}) == Status::ok);
    CHECK(status([](QGemmProblem& p) { p.rows = -1; }) == Status::bad_shape);
    CHECK(status([](QGemmProblem& p) { p.epilogue.type = static_cast<QType>(9); }) == Status::bad_dtype);
    CHECK(status([&](QGemmProblem& p) { p.epilogue.type = QType::f32, p.epilogue.table = table; }) == Status::bad_dtype);
    const int32_t far = INT32_MIN;
    CHECK(status([&](QGemmProblem& p) { p.rows = 1, p.epilogue.row_zero_point = &far; }) == Status::overflow);
}

TEST(packed_weights_are_recognized) {
    PackedMatrix w(20, 37, 6);
    QWeight weight;
    const auto holds = [&](int64_t byte, uint8_t change) {
        w.data()[byte] = static_cast<uint8_t>(w.data()[byte] ^ change);
        const bool good = read_qweight(w.data(), w.size(), &weight);
        w.data()[byte] = static_cast<uint8_t>(w.data()[byte] ^ change);
        return good;
    };
    CHECK(holds(0, 0));
    for (int64_t byte : {0, 7, 8, 12, 16, 24, 32}) CHECK(!holds(byte, 0x40));  // magic, version, bits, columns, depth, bytes
    CHECK(!read_qweight(w.data(), w.size() - 1, &weight));
    CHECK(!read_qweight(w.data(), 10, &weight));
    CHECK(!read_qweight(nullptr, 0, &weight));
}
