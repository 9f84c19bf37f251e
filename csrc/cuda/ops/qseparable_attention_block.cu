#include "cuda/ops/qseparable_attention_block.cuh"

#include "cuda/primitives/launch.cuh"

namespace mvit::cuda {
namespace {

__global__ void __launch_bounds__(phase_threads)
    qattention_context_kernel(QAttentionContextProblem problem, PhasePoints map, PhaseShared at) {
    wait_turn();
    extern __shared__ __align__(16) uint8_t shared[];
    qattention_context_phase(problem, map, at, shared);
}

}  // namespace

int qattention_context_shared(int channels, int points) { return PhaseShared(channels, points).bytes; }

Launched qattention_context(const QAttentionContextProblem& p, int device, void* stream) {
    constexpr const char* kernel = "qseparable_attention_block: context";
    const int64_t blocks = p.batch * p.patch_height * p.patch_width;
    if (blocks == 0) return {cudaSuccess, kernel};
    if (blocks > INT32_MAX) return {cudaErrorInvalidConfiguration, kernel};
    const PhasePoints map(p.height, p.width, p.patch_height, p.patch_width);
    const PhaseShared at(p.channels, map.points);
    static SharedLimit limit;
    return launched(kernel, device, [&] {
        if (!limit.raise(qattention_context_kernel, shared_of_block(device), device)) return;
        launch_early(qattention_context_kernel, static_cast<unsigned>(blocks), phase_threads, at.bytes, stream, p, map, at);
    });
}

}  // namespace mvit::cuda
