#include "cuda/ops/qinverted_residual.cuh"

#include "cuda/primitives/alignment.h"
#include "cuda/primitives/launch.cuh"

namespace mvit::cuda {
namespace {

template <class Tile>
__global__ void __launch_bounds__(residual_threads, Tile::blocks_of_bytes)
    qinverted_residual_kernel(QInvertedResidualProblem problem, ResidualTiles<Tile> tiles, QResidualShared<Tile> at, int alignment) {
    wait_turn();
    extern __shared__ __align__(16) uint8_t shared[];
    qinverted_residual_tile<Tile>(problem, tiles, at, alignment, shared);
}

template <class Tile>
Launched launch(const QInvertedResidualProblem& p, int device, void* stream) {
    constexpr const char* kernel = "qinverted_residual";
    const ResidualTiles<Tile> tiles(p.height, p.width);
    const int64_t blocks = p.batch * tiles.count();
    if (blocks == 0) return {cudaSuccess, kernel};
    if (blocks > INT32_MAX) return {cudaErrorInvalidConfiguration, kernel};
    using Shared = QResidualShared<Tile>;
    const auto shared = [&](int lag, int stages) { return Shared(p.channels, p.hidden, p.columns, lag, stages); };
    // Blocks at once on a multiprocessor are worth more than what a lag gains, or a second stage.
    const Shared ahead = shared(1, 2), plain = shared(0, 2), least = shared(0, 1);
    const auto as_many = [&](const Shared& some) {
        const auto at_once = [&](const Shared& each) { return blocks_at_once(each.bytes, Tile::blocks_of_bytes, device); };
        return at_once(some) > 0 && at_once(some) == at_once(least);
    };
    const Shared at = as_many(ahead) ? ahead : as_many(plain) ? plain : least;
    if (int64_t{at.slices} * at.slice > INT32_MAX) return {cudaErrorInvalidConfiguration, kernel};
    static SharedLimit limit;
    return launched(kernel, device, [&] {
        const int alignment = alignment_of(p.x, p.channels);
        if (!limit.raise(qinverted_residual_kernel<Tile>, shared_of_block(device), device)) return;
        launch_early(qinverted_residual_kernel<Tile>, static_cast<unsigned>(blocks), residual_threads, at.bytes, stream, p, tiles, at,
                     alignment);
    });
}

}  // namespace

int qinverted_residual_shared(int channels, int columns, int stride) {
    int bytes = 0;
    with_residual_tile(columns, stride, [&]<class Tile>() { bytes = QResidualShared<Tile>(channels, 0, columns, 0, 1).bytes; });
    return bytes;
}

Launched qinverted_residual(const QInvertedResidualProblem& p, int device, void* stream) {
    Launched done{cudaErrorInvalidConfiguration, "qinverted_residual"};
    with_residual_tile(p.columns, p.stride, [&]<class Tile>() { done = launch<Tile>(p, device, stream); });
    return done;
}

}  // namespace mvit::cuda
