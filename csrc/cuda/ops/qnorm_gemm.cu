#include "cuda/ops/qnorm_gemm.cuh"

#include "cuda/primitives/launch.cuh"

namespace mvit::cuda {
namespace {

template <class Shape>
__global__ void __launch_bounds__(Shape::threads, Shape::blocks) qnorm_gemm_kernel(QNormGemmProblem problem, int together) {
    wait_turn();
    extern __shared__ __align__(16) uint8_t shared[];
    qnorm_gemm_block<Shape>(problem, together, shared);
}

template <class Shape>
Launched launch(const QNormGemmProblem& p, int device, void* stream) {
    constexpr const char* kernel = "qnorm_gemm";
    const int64_t at_once = int64_t{processors(device)} * Shape::blocks;
    if constexpr (Shape::rounds > 1) {
        using Few = typename Shape::Few;
        if (ceil_divide(p.groups * QPairPixels<Few>::pieces(p.rows), Few::warps) <= at_once) return launch<Few>(p, device, stream);
    }
    const int64_t blocks = ceil_divide(p.groups * QPairPixels<Shape>::pieces(p.rows), Shape::warps);
    if (blocks == 0 || p.columns == 0) return {cudaSuccess, kernel};
    if (blocks * Shape::warps > INT32_MAX) return {cudaErrorInvalidConfiguration, kernel};
    const int slices = norm_gemm_slices(p.columns);
    const int together = norm_gemm_together(slices, blocks, at_once);
    const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(ceil_divide(slices, together)));
    static SharedLimit limit;
    return launched(kernel, device, [&] {
        if (!limit.raise(qnorm_gemm_kernel<Shape>, Shape::shared_bytes, device)) return;
        launch_early(qnorm_gemm_kernel<Shape>, grid, Shape::threads, Shape::shared_bytes, stream, p, together);
    });
}

}  // namespace

Launched qnorm_gemm(const QNormGemmProblem& p, int device, void* stream) {
    Launched done{cudaErrorInvalidConfiguration, "qnorm_gemm"};
    with_pair_shape<QNormGemmShape, norm_gemm_channels>(p.channels, [&]<class Shape>() { done = launch<Shape>(p, device, stream); });
    return done;
}

}  // namespace mvit::cuda
