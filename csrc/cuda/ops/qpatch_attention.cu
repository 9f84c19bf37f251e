#include "cuda/ops/qpatch_attention.cuh"

#include "cuda/primitives/launch.cuh"

namespace mvit::cuda {
namespace {

// Of a multiprocessor's blocks at once, as many as there are registers for.
constexpr int blocks_of(int pairs) { return pairs < 5 ? 2 : 1; }

template <int pairs>
__global__ void __launch_bounds__(phase_warps* warp_size, blocks_of(pairs))
    qpatch_attention_kernel(QPatchAttentionProblem problem, QPatchAttentionCut cut) {
    wait_turn();
    extern __shared__ __align__(16) uint8_t shared[];
    qpatch_attention_block<pairs>(problem, cut, shared);
}

}  // namespace

int qpatch_attention_shared(int heads, int pixels, int depth) { return pixels > 0 ? QPatchAttentionCut(heads, 1, pixels, depth).bytes : 0; }

Launched qpatch_attention(const QPatchAttentionProblem& p, int device, void* stream) {
    constexpr const char* kernel = "qpatch_attention";
    if (p.batch * p.height * p.width * p.dim == 0) return {cudaSuccess, kernel};
    const int64_t rows = p.height / p.patch_h, columns = p.width / p.patch_w, depth = p.dim / p.heads;
    if (rows * columns > INT16_MAX || p.heads > INT32_MAX || depth > deepest_head) return {cudaErrorInvalidConfiguration, kernel};
    const auto cut = QPatchAttentionCut::of(p);
    const int64_t blocks = cut.blocks(p);
    if (blocks > INT32_MAX) return {cudaErrorInvalidConfiguration, kernel};
    return launched(kernel, device, [&] {
        with_value_pairs(cut.pairs, [&]<int pairs>() {
            static SharedLimit limit;
            if (!limit.raise(qpatch_attention_kernel<pairs>, shared_of_block(device), device)) return;
            launch_early(qpatch_attention_kernel<pairs>, static_cast<unsigned>(blocks), cut.threads(), cut.bytes, stream, p, cut);
        });
    });
}

}  // namespace mvit::cuda
