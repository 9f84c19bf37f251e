// The CUDA kernel of qgemm on the processor, block by block (block.h): the cases of the CPU's kernels, exact.
#include "cuda/ops/qgemm.h"

#include <limits>

#include "cuda/ops/qproduct.cuh"
#include "cuda/primitives/alignment.h"
#include "cuda/primitives/qsegments.cuh"
#include "tests/block.h"
#include "tests/fragments.h"
#include "tests/qgemm_case.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

using Case = QGemmCase;

template <int block_rows, int block_columns, int bits, class Rows>
void run_blocks(const Rows& source, const cuda::QFragments& weight, const QGemmCall& call, const BlockOrder& order) {
    using Shape = cuda::QProductShape<block_rows, block_columns, bits>;
    Guarded<uint8_t> shared(Shape::shared_bytes);
    for (int64_t x = 0; x < (call.rows + block_rows - 1) / block_rows; ++x)
        for (int y = 0; y < (weight.columns + block_columns - 1) / block_columns; ++y) {
            std::memset(shared.data(), 0xA5, static_cast<size_t>(shared.size()));
            run_block(Shape::threads, x, y, order,
                      [&] { cuda::qproduct<block_rows, block_columns, bits>(source, weight, call.epilogue, call.rows, shared.data()); });
            CHECK(shared.canary_intact());
        }
}

template <int block_rows, int block_columns, int bits>
void run_grid(const QGemmCall& call, const BlockOrder& order) {
    const ProductMatrix w(call.w.weight.columns, call.w.weight.depth, bits, [&](int64_t n, int64_t k) { return call.w.at(n, k); });
    const cuda::QRows source{call.a, call.rows, call.a_stride, w.weight.depth, cuda::alignment_of(call.a, call.a_stride)};
    if (cuda::QWholeRows::are(source)) return run_blocks<block_rows, block_columns, bits>(cuda::QWholeRows{source}, w.weight, call, order);
    run_blocks<block_rows, block_columns, bits>(source, w.weight, call, order);
}

template <class T, int block_rows, int block_columns = 64>
void compare_blocks(const Case& c, int orders = static_cast<int>(std::size(block_orders))) {
    compare_qgemm<T>(c, orders, [&](const QGemmCall& call, int i) {
        c.bits == 6 ? run_grid<block_rows, block_columns, 6>(call, block_orders[i])
                    : run_grid<block_rows, block_columns, 8>(call, block_orders[i]);
    });
}

template <class T>
void compare(const Case& c) {
    compare_blocks<T, 32>(c);
    compare_blocks<T, 128>(c);
    compare_blocks<T, 128, 32>(c, 1);
}

}  // namespace

TEST(cuda_fragments_are_those_of_the_instructions) {
    // What the maps of mma_s8.cuh say, against what an instruction computes: one matrix is all zeros but for a single byte.
    for (int row : {0, 5, 8, 15})
        for (int k : {0, 3, 13, 16, 31})
            for (int column : {0, 6, 7})
                run_block(32, 0, 0, block_orders[0], [&] {
                    const int lane = cuda::thread_index();
                    uint32_t a[4] = {}, b[2] = {};
                    int32_t c[4] = {1, 2, 3, 4};
                    for (int i = 0; i < 16; ++i)
                        if (cuda::a_row(lane, i / 4) == row && cuda::a_k(lane, i / 4) + i % 4 == k) a[i / 4] |= 200u << (8 * (i % 4));
                    for (int i = 0; i < 8; ++i)
                        if (cuda::b_column(lane) == column && cuda::b_k(lane, i / 4) + i % 4 == k) b[i / 4] |= 0x81u << (8 * (i % 4));
                    cuda::mma_u8s8(c, a, b[0], b[1]);
                    for (int i = 0; i < 4; ++i) {
                        const bool here = cuda::c_row(lane, i) == row && cuda::c_column(lane, i) == column;
                        CHECK(c[i] == i + 1 + (here ? 200 * -127 : 0));
                    }
                });
}

TEST(cuda_swizzle_has_no_bank_conflicts) {
    for (int row = 0; row < 128; row += 8)
        for (int chunk = 0; chunk < cuda::row_chunks; ++chunk) {
            uint32_t banks = 0;  // eight rows of 16 bytes fill all 32 banks of four bytes
            for (int r = row; r < row + 8; ++r) {
                CHECK(cuda::swizzled(r, chunk) / cuda::row_bytes == r);
                banks |= 0xFu << (cuda::swizzled(r, chunk) / 4 % 32);
            }
            CHECK(banks == 0xFFFFFFFFu);
        }
    for (int row = 0; row < 128; ++row) {
        uint32_t places = 0;
        for (int chunk = 0; chunk < cuda::row_chunks; ++chunk) places |= 1u << (cuda::swizzled(row, chunk) % cuda::row_bytes / 16);
        CHECK(places == 0xFu);
    }
}

TEST(cuda_int6_comes_back) {
    for (int a = -32; a < 32; ++a)
        for (int d = -32; d < 32; ++d) {  // the values of a byte are those of no other
            uint32_t planes[3], words[4];
            const int v[4] = {a, -1 - a, a ^ 21, d};
            for (int i = 0; i < 3; ++i) {
                const auto byte = static_cast<uint32_t>((v[i] & 63) << 2 | (v[3] >> (4 - 2 * i) & 3));
                planes[i] = byte | 0x00FF00u | byte << 24;
            }
            cuda::unpack_int6(planes, words);
            for (int i = 0; i < 4; ++i)
                for (int byte : {0, 3}) CHECK(static_cast<int8_t>(words[i] >> (8 * byte)) == 4 * v[i]);
        }
}

TEST(cuda_segments_are_found_by_their_bits) {
    float table[96];
    for (float& each : table) each = random_float();
    Guarded<uint8_t> shared(cuda::SharedSegments::bytes);
    run_block(32, 0, 0, block_orders[0], [&] { cuda::SharedSegments::load(table, shared.data(), 32); });
    CHECK(shared.canary_intact());
    const cuda::SharedSegments segments(shared.data());
    constexpr float infinity = std::numeric_limits<float>::infinity();
    const auto is_right = [&](float x) {
        for (float each : {x, -x}) {
            const float right = cuda::activate_segments(each, table), found = segments(each);
            CHECK(found == right || (std::isnan(found) && std::isnan(right)));
        }
    };
    for (float x : {0.0f, 0x1p-149f, 0x1p-126f, 1e-20f, 33.0f, 1e6f, 3e38f, infinity, std::numeric_limits<float>::quiet_NaN()}) is_right(x);
    for (int i = 0; i <= 72; ++i) {  // where segments begin, beside, and between
        const auto x = static_cast<float>(i) / 4;
        const float before = std::nextafter(x, 0.0f);
        for (float each : {x, std::nextafter(x, infinity), before, std::nextafter(before, 0.0f), x + 0.1f, x + 0.2f}) is_right(each);
    }
    for (int i = 0; i < 100000; ++i) is_right(5.0f * random_float());
}

TEST(cuda_qgemm_on_every_tail) {
    for (int bits : {8, 6}) {
        for (int64_t rows : {1, 31, 33, 129})
            for (int64_t columns : {1, 15, 64, 65, 80})
                compare<uint8_t>({.rows = rows, .columns = columns, .depth = 20, .bits = bits, .gap = rows % 3});
        for (int64_t depth : {0, 1, 15, 16, 17, 31, 33, 64, 65, 130, 400})
            for (int64_t gap : {int64_t{0}, int64_t{12}, 16 - depth % 16}) {  // every alignment of rows
                compare<uint8_t>({.rows = 35, .columns = 65, .depth = depth, .bits = bits, .gap = gap});
                compare<int32_t>(
                    {.rows = 7, .columns = 17, .depth = depth, .bits = bits, .type = QType::i32, .of_rows = depth % 2 == 1, .gap = gap});
            }
    }
}

TEST(cuda_qgemm_of_the_largest_values) {
    for (int bits : {8, 6})
        for (int64_t depth : {129, 2880}) {
            compare<int32_t>({.rows = 5, .columns = 33, .depth = depth, .bits = bits, .type = QType::i32, .extreme = true});
            compare<uint8_t>({.rows = 5, .columns = 64, .depth = depth, .bits = bits, .extreme = true});
        }
}

TEST(cuda_qgemm_with_every_epilogue) {
    const auto every_type = [](Case c) {
        compare_blocks<uint8_t, 32>(c, 1);
        c.table = false;
        c.type = QType::f32, compare_blocks<float, 32>(c, 1);
        c.type = QType::bf16, compare_blocks<bf16, 32>(c, 1);
        c.type = QType::f16, compare_blocks<f16, 32>(c, 1);
    };
    for (int64_t columns : {37, 40})  // one by one, and four at once
        for (QType residual : {QType::i32, QType::u8, QType::i16})
            for (QActivation activation : {QActivation::none, QActivation::relu, QActivation::segments})
                for (bool of_rows : {false, true})
                    every_type({.rows = 9,
                                .columns = columns,
                                .depth = 21,
                                .plain = false,
                                .activation = activation,
                                .residual = residual,
                                .of_rows = of_rows,
                                .table = activation == QActivation::relu,
                                .gap = columns == 40 ? 0 : 3});
    compare<float>({.rows = 9,
                    .columns = 37,
                    .depth = 21,
                    .type = QType::f32,
                    .plain = false,
                    .activation = QActivation::segments,
                    .residual = QType::f32});
    for (int bits : {8, 6})
        for (int64_t depth : {0, 21, 200})
            compare<uint8_t>({.rows = 130,
                              .columns = 70,
                              .depth = depth,
                              .bits = bits,
                              .plain = false,
                              .activation = QActivation::segments,
                              .gap = depth == 21 ? 3 : 16 - 70 % 16});
    compare<int16_t>({.rows = 9, .columns = 37, .depth = 21, .type = QType::i16});
    compare<int16_t>({.rows = 9, .columns = 40, .depth = 21, .bits = 6, .type = QType::i16, .residual = QType::i16, .gap = 2});
    compare<uint8_t>({.rows = 9, .columns = 70, .depth = 21, .type = QType::u8, .table = true});
    for (int bits : {8, 6}) compare<uint8_t>({.rows = 130, .columns = 70, .depth = 21, .bits = bits, .type = QType::u8, .curve = true});
    for (int bits : {8, 6}) compare<uint8_t>({.rows = 130, .columns = 70, .depth = 21, .bits = bits, .type = QType::u8, .steps = true});
    compare<uint8_t>({.rows = 30, .columns = 72, .depth = 21, .type = QType::u8, .steps = true});
}
