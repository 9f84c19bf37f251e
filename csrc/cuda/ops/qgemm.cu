#include "cuda/ops/qgemm.h"

#include "cuda/ops/qproduct_launch.cuh"
#include "cuda/primitives/alignment.h"

namespace mvit::cuda {
namespace {

template <int block_rows, int block_columns, int bits, class Shape = QProductShape<block_rows, block_columns, bits>>
__global__ void __launch_bounds__(Shape::threads, product_blocks<QRows>(Shape::threads, block_columns))
    qgemm_kernel(QRows source, QFragments weight, QEpilogue epilogue, int64_t rows) {
    __shared__ __align__(16) uint8_t shared[Shape::shared_bytes];
    qproduct<block_rows, block_columns, bits>(source, weight, epilogue, rows, shared);
}

}  // namespace

Launched qgemm(const QGemmProblem& p, int device, void* stream) {
    const QRows source{p.a, p.rows, p.a_stride, p.depth, alignment_of(p.a, p.a_stride)};
    return launch_product("qgemm", p.weight, p.rows, device, [&]<int block_rows, int block_columns, int bits>(dim3 grid, int threads) {
        qgemm_kernel<block_rows, block_columns, bits>
            <<<grid, threads, 0, static_cast<cudaStream_t>(stream)>>>(source, p.weight, p.epilogue, p.rows);
    });
}

}  // namespace mvit::cuda
