#include "cuda/ops/qfeed_forward.cuh"

#include "cuda/primitives/launch.cuh"

namespace mvit::cuda {
namespace {

template <class Shape>
__global__ void __launch_bounds__(Shape::threads, Shape::blocks) qfeed_forward_kernel(QFeedForwardProblem problem) {
    wait_turn();
    extern __shared__ __align__(16) uint8_t shared[];
    qfeed_forward_block<Shape>(problem, shared);
}

template <class Shape>
Launched launch(const QFeedForwardProblem& p, int device, void* stream) {
    constexpr const char* kernel = "qfeed_forward";
    const int64_t blocks = ceil_divide(p.batch * QPairPixels<Shape>::pieces(p.pixels), Shape::warps);
    if constexpr (has_few<Shape>) {
        if (blocks < processors(device)) return launch<typename Shape::Few>(p, device, stream);
    }
    if (blocks == 0) return {cudaSuccess, kernel};
    if (blocks * Shape::warps > INT32_MAX) return {cudaErrorInvalidConfiguration, kernel};
    constexpr int bytes = QFeedForwardShared<Shape>::bytes;
    static SharedLimit limit;
    return launched(kernel, device, [&] {
        if (!limit.raise(qfeed_forward_kernel<Shape>, bytes, device)) return;
        launch_early(qfeed_forward_kernel<Shape>, static_cast<unsigned>(blocks), Shape::threads, bytes, stream, p);
    });
}

}  // namespace

int qfeed_forward_pieces(int channels, int pixels) {
    int pieces = 0;
    with_pair_shape(channels, [&]<class Shape>() { pieces = QPairPixels<Shape>::pieces(pixels); });
    return pieces;
}

Launched qfeed_forward(const QFeedForwardProblem& p, int device, void* stream) {
    Launched done{cudaErrorInvalidConfiguration, "qfeed_forward"};
    with_pair_shape(p.channels, [&]<class Shape>() { done = launch<Shape>(p, device, stream); });
    return done;
}

}  // namespace mvit::cuda
