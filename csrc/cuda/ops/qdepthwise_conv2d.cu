#include "cuda/ops/qdepthwise_conv2d.cuh"

#include "cuda/primitives/launch.cuh"

namespace mvit::cuda {
namespace {

// Of a multiprocessor's blocks at once, as many as there are registers for.
constexpr int blocks_of(FinishForm form) { return form == FinishForm::any ? 4 : form == FinishForm::bytes ? 6 : 8; }

template <int stride, int run, FinishForm form>
__global__ void __launch_bounds__(depthwise_threads, blocks_of(form))
    qdepthwise_conv2d_kernel(QDepthwiseConv2dProblem problem, QDepthwiseCut cut) {
    wait_turn();
    __shared__ __align__(16) uint8_t shared[SharedCurve::bytes];
    qdepthwise<stride, run, form>(problem, cut, shared);
}

}  // namespace

Launched qdepthwise_conv2d(const QDepthwiseConv2dProblem& p, int device, void* stream) {
    constexpr const char* kernel = "qdepthwise_conv2d";
    const QDepthwiseCut cut = QDepthwiseCut::of(p, int64_t{6} * depthwise_waves * processors(device));
    const int64_t blocks = cut.blocks();
    if (blocks == 0) return {cudaSuccess, kernel};
    // Offsets in a row of the map, and numbers of lines, are of 32 bits.
    if (blocks > INT32_MAX || cut.all_lines > INT32_MAX || p.width * p.pixel_stride > INT32_MAX)
        return {cudaErrorInvalidConfiguration, kernel};
    return launched(kernel, device, [&] {
        const auto start = [&]<int stride, int run, FinishForm form>() {
            launch_early(qdepthwise_conv2d_kernel<stride, run, form>, static_cast<unsigned>(blocks), cut.threads, 0, stream, p, cut);
        };
        with_depthwise_run(cut, [&]<int run, FinishForm form>() {
            p.stride == 1 ? start.template operator()<1, run, form>() : start.template operator()<2, run, form>();
        });
    });
}

}  // namespace mvit::cuda
