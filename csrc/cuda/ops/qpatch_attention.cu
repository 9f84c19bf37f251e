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

int qpatch_attention_shared(int heads, int pixels, int depth) {
    return pixels > 0 ? static_cast<int>(PhaseShape(heads, pixels, depth).bytes) : 0;
}

Launched qpatch_attention(const QPatchAttentionProblem& p, int device, void* stream) {
    constexpr const char* kernel = "qpatch_attention";
    if (p.batch * p.height * p.width * p.dim == 0) return {cudaSuccess, kernel};
    if (p.dim / p.heads > deepest_head || p.height / p.patch_h * (p.width / p.patch_w) > most_phase_pixels)
        return {cudaErrorInvalidConfiguration, kernel};
    // Offsets in an image are of 32 bits.
    const int64_t of_qkv = (p.height - 1) * p.row_stride + (p.width - 1) * p.pixel_stride + 3 * p.dim;
    if (of_qkv > INT32_MAX || p.height * p.width * p.dim > INT32_MAX) return {cudaErrorInvalidConfiguration, kernel};
    const QPatchAttentionCut cut(p);
    const int64_t blocks = cut.blocks(p);
    if (blocks > INT32_MAX) return {cudaErrorInvalidConfiguration, kernel};
    return launched(kernel, device, [&] {
        with_value_pairs(cut.pairs, [&]<int pairs>() {
            static SharedLimit limit;
            if (!limit.raise(qpatch_attention_kernel<pairs>, shared_of_block(device), device)) return;
            launch_early(qpatch_attention_kernel<pairs>, static_cast<unsigned>(blocks), static_cast<int>(cut.threads()),
                         static_cast<int>(cut.bytes), stream, p, cut);
        });
    });
}

}  // namespace mvit::cuda
