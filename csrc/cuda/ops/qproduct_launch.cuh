// Which blocks a product of bytes is cut into.
#pragma once

#include <type_traits>

#include "cuda/ops/qproduct.cuh"
#include "cuda/primitives/launch.cuh"

namespace mvit::cuda {

// How many blocks a multiprocessor shall hold: 24 warps of rows of a matrix in wide blocks, 80 registers a thread; 20 where a thread copies
// four rows, 96 registers; 16 of what pixels see, whose places take more.
template <class Source>
constexpr int product_blocks(int threads, int block_columns) {
    const int warps = !std::is_base_of_v<QRows, Source> ? 16 : block_columns < 64 ? 20 : 24;
    return warps * warp_size / threads;
}

// launch<block_rows, block_columns, bits>(grid, threads).
//
// What a block costs a thread beside its results, 32 of them in tall blocks: setting up, and per stage of 64 of the depth four chunks
// copied (of which those of the rows do not depend on the columns: 64 columns halve them, where there are as many), eight fragments read
// and 16 products. So wide blocks are taken unless half of one would be empty; warps beyond the columns do nothing. Tall blocks read
// the weight less often, low ones are more: they are taken where tall ones would leave multiprocessors idle.
template <class Launch>
Launched launch_product(const char* kernel, const QFragments& weight, int64_t rows, int device, const Launch& launch) {
    constexpr int tall = 128, low = 32, wide = 64, narrow = 32;
    if (rows == 0 || weight.columns == 0) return {cudaSuccess, kernel};
    const bool few = ceil_divide(rows, tall) * ceil_divide(weight.columns, wide) < processors(device);
    const bool thin = !few && weight.columns <= narrow;
    const int64_t down = ceil_divide(rows, few ? low : tall), across = ceil_divide(weight.columns, thin ? narrow : wide);
    if (across > 65535 || down > INT32_MAX) return {cudaErrorInvalidConfiguration, kernel};
    const dim3 grid(static_cast<unsigned>(down), static_cast<unsigned>(across));
    const auto with = [&]<int block_rows, int block_columns>() {
        if (weight.bits == 6) {
            launch.template operator()<block_rows, block_columns, 6>(grid, QProductShape<block_rows, block_columns, 6>::threads);
        } else {
            launch.template operator()<block_rows, block_columns, 8>(grid, QProductShape<block_rows, block_columns, 8>::threads);
        }
    };
    return launched(kernel, device, [&] {
        few    ? with.template operator()<low, wide>()
        : thin ? with.template operator()<tall, narrow>()
               : with.template operator()<tall, wide>();
    });
}

}  // namespace mvit::cuda
