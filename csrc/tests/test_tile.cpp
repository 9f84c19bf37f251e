// Products of bfloat16 as kernels call for them, which more than one panel of columns at a time, a row of sums or the results themselves to
// begin with, and several chunks of k are. Of integers: float32 holds every sum exactly. Guard pages behind each buffer.
#include "cpu/core/tile.h"

#include <cmath>

#include "tests/floats.h"

namespace mvit {

MVIT_ISA_TABLE(TileKernels, tile)

}  // namespace mvit

using namespace mvit;
using namespace mvit::tests;

namespace {

enum class Init { rows, one_row, results };

void compare(int64_t rows, int64_t columns, int64_t depth, Init init) {
    const int64_t packed = packed_depth<bf16>(depth), width = round_up(columns, half_panel), a_stride = packed + 3, c_stride = width + 5;
    const auto size = [&](int64_t row, int64_t stride) { return rows > 0 ? (rows - 1) * stride + row : 0; };
    Guarded<bf16> a(size(packed, a_stride)), b(width * packed);
    Guarded<float> c(size(width, c_stride)), begin(init == Init::one_row ? width : c.size());
    fill_with(a, NAN), fill_with(b, 0.0f);
    const auto some = [] { return static_cast<float>(random_int(-4, 4)); };
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t k = 0; k < depth; ++k) from_float(some(), &a[r * a_stride + k]);
        if (packed > depth) from_float(1e30f, &a[r * a_stride + depth]);  // anything finite
    }
    for (int64_t n = 0; n < columns; ++n)
        for (int64_t k = 0; k < depth; ++k) from_float(some(), &b[packed_index<bf16>(n, k, depth)]);
    for (int64_t i = 0; i < begin.size(); ++i) begin[i] = some();
    const int64_t begin_stride = init == Init::one_row ? 0 : c_stride;

    std::vector<double> exact(static_cast<size_t>(rows * columns));
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t n = 0; n < columns; ++n) {
            double& sum = exact[static_cast<size_t>(r * columns + n)] = double{begin[r * begin_stride + n]};
            for (int64_t k = 0; k < depth; ++k) sum += value(a[r * a_stride + k]) * value(b[packed_index<bf16>(n, k, depth)]);
        }
    const auto check = [&](int64_t nowhere) {
        for (int64_t i = 0; i < c.size(); ++i) c[i] = init == Init::results && i % c_stride < width ? begin[i] : 7.0f;
        const bool same = init == Init::results;
        tile_table.active().multiply_bf16(a.data(), a_stride, rows, b.data(), depth, static_cast<int>(columns),
                                          same ? c.data() : begin.data(), begin_stride, c.data(), c_stride);
        CHECK(c.canary_intact());
        for (int64_t i = 0; i < c.size(); ++i) {
            const int64_t r = i / c_stride, n = i % c_stride;
            if (n >= width) CHECK(c[i] == 7.0f);
            if (n < columns) CHECK(r == nowhere ? std::isnan(c[i]) : double{c[i]} == exact[static_cast<size_t>(r * columns + n)]);
        }
    };
    on_every_isa([&] { check(-1); });
    if (rows == 0 || depth == 0) return;
    from_float(NAN, &a[rows / 2 * a_stride + depth - 1]);
    on_every_isa([&] { check(rows / 2); });
}

}  // namespace

TEST(tiles_of_bfloat16) {
    for (Init init : {Init::rows, Init::one_row, Init::results}) {
        for (int64_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 29})
            for (int64_t columns : {1, 16, 17, 32, 33, 48, 80})
                for (int64_t depth : {1, 6}) compare(rows, columns, depth, init);
        for (int64_t depth : {0, 2, 3, 127, 128, 129, 255, 511, 512, 513, 514, 1025, 1601})
            for (int64_t columns : {16, 49}) compare(3, columns, depth, init);
    }
    for (Init init : {Init::rows, Init::one_row}) compare(0, 40, 6, init), compare(3, 0, 6, init);
}
