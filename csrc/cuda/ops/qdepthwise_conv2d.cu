#include "cuda/ops/qdepthwise_conv2d.cuh"

#include "cuda/primitives/launch.cuh"

namespace mvit::cuda {
namespace {

template <int stride>
__global__ void __launch_bounds__(depthwise_threads) qdepthwise_conv2d_kernel(QDepthwiseConv2dProblem problem, QDepthwiseCut cut) {
    __shared__ __align__(8) uint8_t shared[SharedCurve::bytes];
    qdepthwise<stride>(problem, cut, shared);
}

}  // namespace

Launched qdepthwise_conv2d(const QDepthwiseConv2dProblem& p, int device, void* stream) {
    constexpr const char* kernel = "qdepthwise_conv2d";
    const QDepthwiseCut cut = QDepthwiseCut::of(p);
    const int64_t blocks = ceil_divide(cut.threads(), depthwise_threads);
    if (blocks == 0) return {cudaSuccess, kernel};
    if (blocks > INT32_MAX) return {cudaErrorInvalidConfiguration, kernel};
    return launched(kernel, device, [&] {
        const auto grid = static_cast<unsigned>(blocks);
        const auto on = static_cast<cudaStream_t>(stream);
        if (p.stride == 1) {
            qdepthwise_conv2d_kernel<1><<<grid, depthwise_threads, 0, on>>>(p, cut);
        } else {
            qdepthwise_conv2d_kernel<2><<<grid, depthwise_threads, 0, on>>>(p, cut);
        }
    });
}

}  // namespace mvit::cuda
