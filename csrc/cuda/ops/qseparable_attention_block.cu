#include "cuda/ops/qseparable_attention_block.cuh"

#include "cuda/primitives/launch.cuh"

namespace mvit::cuda {
namespace {

constexpr const char* context_name = "qattention_context";
constexpr const char* values_name = "qattention_values";

__global__ void __launch_bounds__(qcontext_threads, 5)
    qattention_context_kernel(QAttentionContextProblem problem, AttentionPhases phases, QContextShared at) {
    wait_turn();
    extern __shared__ __align__(16) uint8_t shared[];
    qattention_context_phase(problem, phases, at, shared);
}

template <class Shape>
__global__ void __launch_bounds__(Shape::threads, Shape::blocks)
    qattention_values_kernel(QAttentionValuesProblem problem, AttentionPhases phases) {
    wait_turn();
    extern __shared__ __align__(16) uint8_t shared[];
    qattention_values_block<Shape>(problem, phases, shared);
}

template <class Shape>
Launched launch(const QAttentionValuesProblem& p, int device, void* stream) {
    const AttentionPhases phases(p.map);
    const int64_t blocks = ceil_divide(p.map.batch * QAttentionPlace<Shape>::pieces(phases), Shape::warps);
    if constexpr (has_few<Shape>) {
        if (blocks < processors(device)) return launch<typename Shape::Few>(p, device, stream);
    }
    if (blocks == 0) return {cudaSuccess, values_name};
    if (blocks * Shape::warps > INT32_MAX) return {cudaErrorInvalidConfiguration, values_name};
    constexpr int bytes = QAttentionShared<Shape>::bytes;
    static SharedLimit limit;
    return launched(values_name, device, [&] {
        if (!limit.raise(qattention_values_kernel<Shape>, bytes, device)) return;
        launch_early(qattention_values_kernel<Shape>, static_cast<unsigned>(blocks), Shape::threads, bytes, stream, p, phases);
    });
}

}  // namespace

int64_t qattention_context_shared(int channels, int64_t points) { return QContextShared::bytes_of(channels, points); }

int64_t qattention_pieces(int channels, int64_t phases, int64_t points) {
    int64_t pieces = 0;
    with_pair_shape(channels, [&]<class Shape>() { pieces = phases * ceil_divide(points, Shape::pixels); });
    return pieces;
}

Launched qattention_context(const QAttentionContextProblem& p, int device, void* stream) {
    const AttentionPhases phases(p.map);
    const int64_t blocks = p.map.batch * phases.phases;
    if (blocks == 0) return {cudaSuccess, context_name};
    if (blocks > INT32_MAX || QContextShared::bytes_of(p.map.channels, phases.points) > INT32_MAX)
        return {cudaErrorInvalidConfiguration, context_name};
    const QContextShared at(p.map.channels, phases.points);
    static SharedLimit limit;
    return launched(context_name, device, [&] {
        if (!limit.raise(qattention_context_kernel, shared_of_block(device), device)) return;
        launch_early(qattention_context_kernel, static_cast<unsigned>(blocks), qcontext_threads, at.bytes, stream, p, phases, at);
    });
}

Launched qattention_values(const QAttentionValuesProblem& p, int device, void* stream) {
    Launched done{cudaErrorInvalidConfiguration, values_name};
    with_pair_shape(p.map.channels, [&]<class Shape>() { done = launch<Shape>(p, device, stream); });
    return done;
}

}  // namespace mvit::cuda
