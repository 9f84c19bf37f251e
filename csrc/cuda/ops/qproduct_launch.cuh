// Which blocks a product of bytes is cut into.
#pragma once

#include "cuda/ops/qproduct.cuh"
#include "cuda/primitives/launch.cuh"

namespace mvit::cuda {

// launch<block_rows, bits>(grid). Tall blocks read the weight less often, low ones are more: they are taken where tall ones would leave
// multiprocessors idle.
template <class Launch>
Launched launch_product(const char* kernel, const QFragments& weight, int64_t rows, int device, const Launch& launch) {
    constexpr int tall = 128, low = 32;
    if (rows == 0 || weight.columns == 0) return {cudaSuccess, kernel};
    const int64_t across = ceil_divide(weight.columns, fragment_columns);
    const bool few = ceil_divide(rows, tall) * across < processors(device);
    const int64_t down = ceil_divide(rows, few ? low : tall);
    if (across > 65535 || down > INT32_MAX) return {cudaErrorInvalidConfiguration, kernel};
    const dim3 grid(static_cast<unsigned>(down), static_cast<unsigned>(across));
    return launched(kernel, device, [&] {
        if (weight.bits == 6) {
            few ? launch.template operator()<low, 6>(grid) : launch.template operator()<tall, 6>(grid);
        } else {
            few ? launch.template operator()<low, 8>(grid) : launch.template operator()<tall, 8>(grid);
        }
    });
}

}  // namespace mvit::cuda
