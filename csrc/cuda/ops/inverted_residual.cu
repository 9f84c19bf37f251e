#include "cuda/ops/inverted_residual.cuh"

#include "cuda/primitives/launch.cuh"

namespace mvit::cuda {
namespace {

template <class T, class Tile, int depth>
__global__ void __launch_bounds__(residual_threads, Tile::blocks)
    inverted_residual_kernel(InvertedResidualProblem problem, ResidualTiles<Tile> tiles, ResidualShared<Tile> at) {
    wait_turn();
    extern __shared__ __align__(16) uint8_t shared[];
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
    constexpr int known = Tile::blocks > 2 ? 0 : depth;  // what three blocks leave of registers is two words too few
#else
    constexpr int known = depth;
#endif
    inverted_residual_tile<T, Tile, known>(problem, tiles, at, shared);
}

template <class T, class Tile>
Launched launch(const InvertedResidualProblem& p, int device, void* stream) {
    constexpr const char* kernel = "inverted_residual";
    const ResidualTiles<Tile> tiles(p.height, p.width);
    const int64_t blocks = p.batch * tiles.count();
    if (blocks == 0) return {cudaSuccess, kernel};
    if (blocks > INT32_MAX) return {cudaErrorInvalidConfiguration, kernel};
    using Shared = ResidualShared<Tile>;
    const Shared ahead(p.channels, p.hidden, p.columns, 1), plain(p.channels, p.hidden, p.columns, 0);
    if (int64_t{plain.slices} * plain.slice > INT32_MAX) return {cudaErrorInvalidConfiguration, kernel};
    // Blocks at once on a multiprocessor are worth more than what a lag gains.
    const auto at_once = [&](const Shared& shared) { return blocks_at_once(shared.bytes, Tile::blocks, device); };
    const Shared at = at_once(ahead) > 0 && at_once(ahead) == at_once(plain) ? ahead : plain;
    const auto with = [&]<int depth>() {
        static SharedLimit limit;
        return launched(kernel, device, [&] {
            if (!limit.raise(inverted_residual_kernel<T, Tile, depth>, shared_of_block(device), device)) return;
            launch_early(inverted_residual_kernel<T, Tile, depth>, static_cast<unsigned>(blocks), residual_threads, at.bytes, stream, p,
                         tiles, at);
        });
    };
    return with_known_depth<Tile>(at.depth, with);
}

}  // namespace

int inverted_residual_shared(int channels, int columns, int stride) {
    int bytes = 0;
    with_residual_tile(columns, stride, [&]<class Tile>() { bytes = ResidualShared<Tile>(channels, 0, columns, 0).bytes; });
    return bytes;
}

Launched inverted_residual(const InvertedResidualProblem& p, int device, void* stream) {
    Launched done{cudaErrorInvalidConfiguration, "inverted_residual"};
    with_residual_tile(p.columns, p.stride, [&]<class Tile>() {
        done = p.dtype == DType::bf16 ? launch<bf16, Tile>(p, device, stream) : launch<f16, Tile>(p, device, stream);
    });
    return done;
}

}  // namespace mvit::cuda
