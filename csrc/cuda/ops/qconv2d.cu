#include "cuda/ops/qconv2d.h"

#include "cuda/ops/qproduct_launch.cuh"
#include "cuda/ops/qtaps.cuh"

namespace mvit::cuda {
namespace {

template <int block_rows, int bits>
__global__ void __launch_bounds__(product_threads) qconv2d_kernel(QTaps source, QFragments weight, QEpilogue epilogue, int64_t rows) {
    __shared__ __align__(16) uint8_t shared[QProductShape<block_rows, bits>::shared_bytes];
    qproduct<block_rows, bits>(source, weight, epilogue, rows, shared);
}

}  // namespace

Launched qconv2d(const QConv2dProblem& p, int device, void* stream) {
    const QTaps source(p, map_alignment(p.x, p.second));
    return launch_product("qconv2d", p.weight, source.rows(), device, [&]<int block_rows, int bits>(dim3 grid) {
        qconv2d_kernel<block_rows, bits>
            <<<grid, product_threads, 0, static_cast<cudaStream_t>(stream)>>>(source, p.weight, p.epilogue, source.rows());
    });
}

}  // namespace mvit::cuda
