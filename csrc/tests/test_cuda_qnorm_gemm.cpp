// The CUDA kernel of qnorm_gemm on the processor, block by block (block.h), against the norm and the product in plain loops.
#include "cuda/ops/qnorm_gemm.cuh"

#include "tests/block.h"
#include "tests/qpair.h"
#include "tests/qweights.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

struct Case {
    int64_t groups;
    int rows, channels, columns;
    int pieces = 0;  // that sums of the groups come in; 0: each row by its own
    bool curve = false;
    int together = 1000;  // slices of a block
};

template <class Shape>
void compare(const Case& t, const BlockOrder& order) {
    const int64_t rows = t.groups * t.rows, depth = Shape::depth, slice = 256 + 1024 * depth;
    Guarded<int16_t> x(rows * t.channels);
    Guarded<uint8_t> y(rows * t.columns), slices(round_up(t.columns, 32) / 32 * slice);
    for (int64_t i = 0; i < x.size(); ++i) x[i] = static_cast<int16_t>(random_int(-300, i % 7 == 0 ? 30000 : 300));
    std::memset(y.data(), 0x5A, static_cast<size_t>(y.size())), std::memset(slices.data(), 0, static_cast<size_t>(slices.size()));
    RandomChannels channels(t.columns, 0.01f);
    std::vector<int> weight(static_cast<size_t>(t.columns) * static_cast<size_t>(t.channels));
    for (int64_t n = 0; n < t.columns; ++n) {
        // Column 8 t + 4 p + 2 u + b lies at 8 (2 p + u) + 2 t + b, and its two numbers at 32 p + 8 t + 4 u + b.
        uint8_t* own = slices.data() + n / 32 * slice;
        const int64_t t8 = n % 32 / 8, p = n % 8 / 4, u = n % 4 / 2, place = 16 * p + 8 * u + 2 * t8 + n % 2;
        for (int64_t twice : {0, 2}) std::memcpy(own + 4 * (32 * p + 8 * t8 + 4 * u + n % 2 + twice), channels.init.data() + n, 4);
        for (int64_t c = 0; c < t.channels; ++c) {
            const int value = weight[static_cast<size_t>(n * t.channels + c)] = random_int(-127, 127);
            const int64_t k = c % 8 / 4 * 16 + c % 32 / 8 * 4 + c % 4, lane = place % 8 * 4 + k % 16 / 4,
                          word = place % 16 / 8 * 2 + k / 16;
            own[256 + (place / 16 * depth + c / 32) * 512 + lane * 16 + word * 4 + k % 4] = static_cast<uint8_t>(value);
        }
    }
    const auto curve = Curve::with_steps();

    cuda::QNormGemmProblem p{};
    p.groups = t.groups, p.rows = t.rows, p.channels = t.channels, p.columns = t.columns, p.x = x.data(), p.slices = slices.data();
    const int pieces = t.pieces > 0 ? t.pieces : 1;
    Guarded<int64_t> sums(2 * t.groups * pieces);
    for (int64_t i = 0; i < sums.size(); ++i) sums[i] = 0;
    for (int64_t i = 0; i < x.size(); ++i) {
        const int64_t piece = i / (int64_t{t.rows} * t.channels) * pieces + i % pieces;
        sums[2 * piece] += x[i], sums[2 * piece + 1] += int64_t{x[i]} * x[i];
    }
    p.norm = {t.pieces > 0 ? sums.data() : nullptr, t.pieces, 0.0371 / 0.0083, 0.0371 * 0.0371, 1e-5, -29.0f, 226.0f, 29};
    QEpilogue& e = p.epilogue;
    e.channels = channels.channels(), e.type = QType::u8, e.plain = true, e.y = y.data(), e.y_stride = t.columns;
    if (t.curve) e.curve = curve->data();
    Guarded<uint8_t> shared(Shape::shared_bytes);
    for (int64_t block = 0; block * Shape::warps < t.groups * cuda::QPairPixels<Shape>::pieces(t.rows); ++block) {
        for (int share = 0; share * t.together < cuda::norm_gemm_slices(p.columns); ++share) {
            for (int64_t i = 0; i < shared.size(); ++i) shared[i] = static_cast<uint8_t>(random_int(0, 255));
            run_block(Shape::threads, block, share, order, [&] { cuda::qnorm_gemm_block<Shape>(p, t.together, shared.data()); });
            CHECK(shared.canary_intact());
        }
    }
    CHECK(y.canary_intact());

    std::vector<int> bytes(static_cast<size_t>(t.channels));
    for (int64_t row = 0; row < rows; ++row) {
        const int16_t* own = x.data() + row * t.channels;
        int64_t sum = 0, squares = 0;
        for (int64_t c = 0; t.pieces == 0 && c < t.channels; ++c) sum += own[c], squares += int64_t{own[c]} * own[c];
        for (int64_t i = 0; i < t.pieces; ++i) {
            const int64_t piece = row / t.rows * pieces + i;
            sum += sums[2 * piece], squares += sums[2 * piece + 1];
        }
        const double count = static_cast<double>(t.pieces > 0 ? int64_t{t.rows} * t.channels : t.channels);
        for (int64_t c = 0; c < t.channels; ++c)
            bytes[static_cast<size_t>(c)] = byte_of_stream(p.norm, own[c], static_cast<double>(sum), static_cast<double>(squares), count);
        for (int64_t n = 0; n < t.columns; ++n) {
            int64_t total = channels.init[n];
            for (int64_t c = 0; c < t.channels; ++c)
                total += weight[static_cast<size_t>(n * t.channels + c)] * bytes[static_cast<size_t>(c)];
            CHECK(y[row * t.columns + n] == finish_one(e, total, row, n));
        }
    }
}

void compare(const Case& t, const BlockOrder& order) {
    cuda::with_pair_shape<cuda::QNormGemmShape, cuda::norm_gemm_channels>(t.channels, [&]<class Shape>() {
        compare<Shape>(t, order);
        if constexpr (Shape::rounds > 1) compare<typename Shape::Few>(t, order);
    });
}

}  // namespace

TEST(cuda_qnorm_gemm) {
    for (const BlockOrder& order : block_orders) {
        compare({.groups = 2, .rows = 70, .channels = 40, .columns = 72, .pieces = 3}, order);
        compare({.groups = 1, .rows = 50, .channels = 70, .columns = 208, .curve = true}, order);  // more slices than stages
        for (int together : {1, 2, 3}) compare({.groups = 1, .rows = 33, .channels = 70, .columns = 200, .together = together}, order);
    }
    int i = 0;
    for (int channels : {1, 31, 32, 64, 80, 96, 128, 144, 192, 220, 256, 300, 512}) {
        const BlockOrder& order = block_orders[i % 4];
        compare({.groups = 1, .rows = 35, .channels = channels, .columns = 3 * channels, .pieces = channels % 3}, order);
        compare({.groups = 3, .rows = 1, .channels = channels, .columns = 1 + i++, .curve = i % 2 == 0}, order);
    }
}

// All slices are somebody's, blocks of all shares run at once where those of one do, and as many do as there is room for.
TEST(cuda_qnorm_gemm_shares) {
    for (int slices : {1, 7, 16, 24, 48}) {
        for (int64_t blocks : {1, 4, 8, 128, 397, 100000}) {
            const int64_t at_once = 396, together = cuda::norm_gemm_together(slices, blocks, at_once);
            const int64_t shares = (slices + together - 1) / together;
            CHECK(together >= 1 && together <= slices);
            CHECK(shares == 1 || shares * blocks <= at_once);
            if (together > 1) CHECK((slices + together - 2) / (together - 1) * blocks > at_once);
        }
    }
    CHECK(cuda::norm_gemm_together(24, 4, 396) == 1);    // one image of 16 x 16
    CHECK(cuda::norm_gemm_together(24, 128, 396) == 8);  // 128 of 8 x 8
    CHECK(cuda::norm_gemm_together(12, 1024, 528) == 12);
}
