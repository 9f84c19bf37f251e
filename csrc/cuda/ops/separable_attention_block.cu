#include "cuda/ops/separable_attention_block.cuh"

#include "cuda/primitives/launch.cuh"

namespace mvit::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(score_threads) separable_attention_scores_kernel(AttentionProblem problem) {
    wait_turn();
    __shared__ double shared[score_warps];
    attention_scores<T>(problem, shared);
}

template <class T>
__global__ void __launch_bounds__(context_threads) separable_attention_context_kernel(AttentionProblem problem) {
    wait_turn();
    __shared__ ContextShared shared;
    attention_context<T>(problem, shared);
}

template <class T>
__global__ void __launch_bounds__(value_threads) separable_attention_values_kernel(AttentionProblem problem) {
    wait_turn();
    extern __shared__ __align__(16) uint8_t shared[];
    attention_values<T>(problem, shared);
}

template <class T>
Launched launch(const AttentionProblem& p, int device, void* stream) {
    const AttentionMap map(p);
    const int64_t tiles = p.batch * map.tiles, phases = p.batch * map.phases;
    const int64_t blocks = ceil_divide(p.batch * map.pixels, attention_tile);
    constexpr const char* kernels[] = {"separable_attention_scores", "separable_attention_context", "separable_attention_values"};
    if (tiles == 0) return {cudaSuccess, kernels[0]};
    if (tiles > INT32_MAX || phases > INT32_MAX) return {cudaErrorInvalidConfiguration, kernels[0]};
    const auto size = [](int64_t count) { return static_cast<unsigned>(count); };
    Launched done =
        launched(kernels[0], device, [&] { launch_early(separable_attention_scores_kernel<T>, size(tiles), score_threads, 0, stream, p); });
    if (done.error) return done;
    done = launched(kernels[1], device,
                    [&] { launch_early(separable_attention_context_kernel<T>, size(phases), context_threads, 0, stream, p); });
    if (done.error) return done;
    static SharedLimit limit;
    return launched(kernels[2], device, [&] {
        if (!limit.raise(separable_attention_values_kernel<T>, value_shared_bytes(attention_most_channels), device)) return;
        launch_early(separable_attention_values_kernel<T>, size(blocks), value_threads, value_shared_bytes(p.channels), stream, p);
    });
}

}  // namespace

Launched separable_attention_block(const SeparableAttentionBlockProblem& p, int device, void* stream) {
    return p.dtype == DType::bf16 ? launch<bf16>(p, device, stream) : launch<f16>(p, device, stream);
}

}  // namespace mvit::cuda
