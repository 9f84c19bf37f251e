#include "cuda/ops/qgemm.h"

#include "cuda/ops/qproduct_launch.cuh"
#include "cuda/primitives/alignment.h"

namespace mvit::cuda {
namespace {

template <class Rows, int block_rows, int block_columns, int bits, class Shape = QProductShape<block_rows, block_columns, bits>>
__global__ void __launch_bounds__(Shape::threads, product_blocks<Rows>(Shape::threads, block_columns))
    qgemm_kernel(Rows source, QFragments weight, QEpilogue epilogue) {
    wait_turn();
    __shared__ __align__(16) uint8_t shared[Shape::shared_bytes];
    qproduct<block_rows, block_columns, bits>(source, weight, epilogue, source.rows, shared);
}

template <class Rows>
Launched launch(const Rows& rows, const QGemmProblem& p, int device, void* stream) {
    return launch_product("qgemm", p.weight, p.rows, device, [&]<int block_rows, int block_columns, int bits>(dim3 grid, int threads) {
        launch_early(qgemm_kernel<Rows, block_rows, block_columns, bits>, grid, threads, 0, stream, rows, p.weight, p.epilogue);
    });
}

}  // namespace

Launched qgemm(const QGemmProblem& p, int device, void* stream) {
    const QRows rows{p.a, p.rows, p.a_stride, p.depth, alignment_of(p.a, p.a_stride)};
    return QWholeRows::are(rows) ? launch(QWholeRows{rows}, p, device, stream) : launch(rows, p, device, stream);
}

}  // namespace mvit::cuda
