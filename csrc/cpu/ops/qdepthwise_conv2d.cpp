#include "cpu/ops/qdepthwise_conv2d.h"

#include "cpu/core/isa.h"
#include "cpu/core/parallel.h"

namespace mvit {

MVIT_ISA_TABLE(QDepthwiseConv2dKernels, qdepthwise_conv2d)

namespace {

Status check(const QDepthwiseConv2dProblem& p) {
    const QEpilogue& e = p.epilogue;
    if (p.batch < 0 || p.height < 0 || p.width < 0 || p.channels < 0 || (p.stride != 1 && p.stride != 2)) return Status::bad_shape;
    if (!known(e.type) || (e.table && e.type != QType::u8)) return Status::bad_dtype;
    if (e.curve && (e.type != QType::u8 || !e.plain || e.residual)) return Status::bad_dtype;
    if (p.narrow && (e.type != QType::u8 || e.residual || !(e.plain || e.activation == QActivation::segments))) return Status::bad_dtype;
    if (e.row_scale || e.row_zero_point) return Status::bad_layout;  // pixels of a map have no scales of their own
    return Status::ok;
}

}  // namespace

Status qdepthwise_conv2d(const QDepthwiseConv2dProblem& p, int threads) {
    if (const Status status = check(p); status != Status::ok) return status;
    if (p.batch == 0 || p.height == 0 || p.width == 0 || p.channels == 0) return Status::ok;
    const auto kernel = qdepthwise_conv2d_table.active().row[p.stride - 1];
    const int64_t height = (p.height - 1) / p.stride + 1, width = (p.width - 1) / p.stride + 1;
    const int64_t bytes = p.batch * p.channels * (p.height * p.width + height * width);
    // A task is a row: neighbours, which share input rows, are in turn on the same thread.
    parallel_for(p.batch * height, threads_for(bytes, p.batch * height, threads), [&](int64_t task) {
        const int64_t image = task / height, centre = task % height * p.stride;
        QDepthwiseConv2dRow row{{}, task * width, p};
        for (int64_t ky = 0; ky < 3; ++ky) {
            const int64_t y = centre + ky - 1;
            if (y >= 0 && y < p.height) row.rows[ky] = p.x + image * p.image_stride + y * p.row_stride;
        }
        kernel(row);
    });
    return Status::ok;
}

}  // namespace mvit
