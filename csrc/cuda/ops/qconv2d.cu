#include "cuda/ops/qconv2d.h"

#include "cuda/ops/qgemm.h"
#include "cuda/ops/qproduct_launch.cuh"
#include "cuda/ops/qtaps.cuh"
#include "cuda/ops/qthin.cuh"

namespace mvit::cuda {
namespace {

template <class Source, int block_rows, int block_columns, int bits, class Shape = QProductShape<block_rows, block_columns, bits>>
__global__ void __launch_bounds__(Shape::threads, product_blocks<Source>(Shape::threads, block_columns))
    qconv2d_kernel(Source source, QFragments weight, QEpilogue epilogue, int64_t rows) {
    wait_turn();
    __shared__ __align__(16) uint8_t shared[Shape::shared_bytes];
    qproduct<block_rows, block_columns, bits>(source, weight, epilogue, rows, shared);
}

template <class Source>
Launched launch(const Source& source, const QConv2dProblem& p, int device, void* stream) {
    return launch_product("qconv2d", p.weight, source.rows(), device,
                          [&]<int block_rows, int block_columns, int bits>(dim3 grid, int threads) {
                              launch_early(qconv2d_kernel<Source, block_rows, block_columns, bits>, grid, threads, 0, stream, source,
                                           p.weight, p.epilogue, source.rows());
                          });
}

}  // namespace

Launched qconv2d(const QConv2dProblem& p, int device, void* stream) {
    if (pixels_are_rows(p)) {
        const QRows rows = pixel_rows(p);
        Launched done = qgemm({rows.rows, rows.a, rows.stride, rows.depth, p.weight, p.epilogue}, device, stream);
        done.kernel = "qconv2d";
        return done;
    }
    if (p.height * p.width > INT32_MAX) return {cudaErrorInvalidConfiguration, "qconv2d"};  // numbers of pixels are of 32 bits
    if (is_thin(p)) return launch(QThinTaps(p), p, device, stream);
    return launch(QTaps(p, map_alignment(p.x, p.second)), p, device, stream);
}

}  // namespace mvit::cuda
