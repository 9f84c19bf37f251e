#include "cuda/ops/qgemm.h"

#include "cuda/ops/qproduct_launch.cuh"
#include "cuda/primitives/alignment.h"

namespace mvit::cuda {
namespace {

template <int block_rows, int bits>
__global__ void __launch_bounds__(product_threads) qgemm_kernel(QRows source, QFragments weight, QEpilogue epilogue, int64_t rows) {
    __shared__ __align__(16) uint8_t shared[QProductShape<block_rows, bits>::shared_bytes];
    qproduct<block_rows, bits>(source, weight, epilogue, rows, shared);
}

}  // namespace

Launched qgemm(const QGemmProblem& p, int device, void* stream) {
    const QRows source{p.a, p.rows, p.a_stride, p.weight.depth, alignment_of(p.a, p.a_stride)};
    return launch_product("qgemm", p.weight, p.rows, device, [&]<int block_rows, int bits>(dim3 grid) {
        qgemm_kernel<block_rows, bits>
            <<<grid, product_threads, 0, static_cast<cudaStream_t>(stream)>>>(source, p.weight, p.epilogue, p.rows);
    });
}

}  // namespace mvit::cuda
