// Exact sums and every sequence of the epilogue against a plain loop, on every instruction set, with guard pages behind each buffer.
#include "cpu/ops/qgemm.h"

#include "cpu/core/crew.h"
#include "tests/qgemm_case.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

using Case = QGemmCase;

template <class T>
void compare(const Case& c) {
    compare_qgemm<T>(c, 3, [](const QGemmCall& call, int i) {
        CHECK(qgemm({call.rows, call.a, call.a_stride, nullptr, call.w.weight, call.epilogue, nullptr, 0}, i + 1) == Status::ok);
    });
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

// Bands of 16 rows, whole, broken and several, depths in equal parts and with a rest, and those that no tile takes.
TEST(qgemm_of_whole_tiles) {
    on_every_isa([] {
        for (int bits : {8, 6})
            for (int64_t depth : {28, 32, 36, 64, 68, 96, 100, 130, 136, 200, 320})
                for (int64_t columns : {16, 32, 48, 65, 130})
                    for (int64_t rows : {3, 4, 15, 17, 33, 49, 63, 65, 130}) {
                        compare<uint8_t>({.rows = rows, .columns = columns, .depth = depth, .bits = bits, .gap = rows % 3});
                        if (rows % 16 == 1)
                            compare<int32_t>({.rows = rows, .columns = columns, .depth = depth, .bits = bits, .type = QType::i32});
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

// Six-bit activations, and the first byte that is none.
TEST(qgemm_of_bytes_below_64) {
    on_every_isa([] {
        for (int most : {63, 64})
            for (bool extreme : {false, true})
                for (int64_t depth : {0, 1, 3, 4, 5, 28, 31, 32, 33, 36, 63, 64, 65, 68, 130, 257})
                    for (int64_t rows : {1, 2, 3, 4, 5, 6, 7, 13, 130}) {
                        const int64_t columns = 17 + depth % 3 * 16;
                        compare<uint8_t>({.rows = rows, .columns = columns, .depth = depth, .bits = 6, .extreme = extreme, .most = most});
                        compare<int32_t>({.rows = rows,
                                          .columns = columns,
                                          .depth = depth,
                                          .bits = 6,
                                          .type = QType::i32,
                                          .extreme = extreme,
                                          .most = most,
                                          .gap = rows % 3});
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
        for (int64_t slope_rows : {0, 4, 100}) {
            compare<uint8_t>({.rows = 103, .columns = 70, .depth = 21, .plain = false, .gap = 3, .slope_rows = slope_rows});
            compare<float>({.rows = 9, .columns = 37, .depth = 21, .type = QType::f32, .plain = false, .slope_rows = slope_rows});
        }
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
    const float slopes[2] = {};
    CHECK(status([&](QGemmProblem& p) { p.epilogue.plain = true, p.epilogue.slopes = slopes; }) == Status::bad_dtype);
    CHECK(status([&](QGemmProblem& p) { p.epilogue.slopes = slopes, p.epilogue.activation = QActivation::relu; }) == Status::bad_dtype);
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

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // which stop where malloc gives nothing
// Rows so deep that no memory holds what is made of them.
TEST(qgemm_without_memory) {
    on_every_isa([] {
        RandomChannels channels(64, 1.0f);
        QGemmProblem p{};
        p.rows = 64;
        p.weight.columns = 64, p.weight.depth = int64_t{1} << 45, p.weight.bits = 6;
        p.epilogue.channels = channels.channels(), p.epilogue.type = QType::u8, p.epilogue.plain = true;
        for (int milliseconds : {0, 60000, 0}) {
            Crew::expect_other_work(milliseconds);  // crews of OpenMP's threads, and of own ones
            for (int threads : {1, 2}) CHECK(qgemm(p, threads) == Status::out_of_memory);
            CHECK(!Crew::led());
        }
    });
}
#endif
