#include "cpu/ops/depthwise_conv2d.h"

#include "cpu/core/isa.h"
#include "cpu/core/parallel.h"

namespace mvit {

MVIT_ISA_TABLE(DepthwiseConv2dKernels, depthwise_conv2d)

namespace {

Status check(const DepthwiseConv2dProblem& p) {
    if (p.batch < 0 || p.height < 0 || p.width < 0 || p.channels < 0 || (p.stride != 1 && p.stride != 2)) return Status::bad_shape;
    if (p.weight_stride < (p.channels + 15) / 16 * 16) return Status::bad_layout;
    if (p.dtype != DType::f32 && p.dtype != DType::bf16 && p.dtype != DType::f16) return Status::bad_dtype;
    return Status::ok;
}

}  // namespace

Status depthwise_conv2d(const DepthwiseConv2dProblem& p, int threads) {
    if (const Status status = check(p); status != Status::ok) return status;
    if (p.batch == 0 || p.height == 0 || p.width == 0 || p.channels == 0) return Status::ok;
    const auto kernel = depthwise_conv2d_table.active().row[static_cast<int>(p.dtype)][p.stride - 1];
    const int64_t element = p.dtype == DType::f32 ? 4 : 2;
    const int64_t height = (p.height - 1) / p.stride + 1, width = (p.width - 1) / p.stride + 1;
    const int64_t values = p.batch * height * width * p.channels;
    // A task is a row: neighbours, which share input rows, are in turn on the same thread.
    parallel_for(p.batch * height, threads_for(4 * values * element, p.batch * height, threads), [&](int64_t task) {
        const int64_t image = task / height, centre = task % height * p.stride;
        DepthwiseConv2dRow row{{}, static_cast<char*>(p.y) + task * width * p.channels * element, p};
        for (int64_t ky = 0; ky < 3; ++ky) {
            const int64_t y = centre + ky - 1;
            if (y >= 0 && y < p.height)
                row.rows[ky] = static_cast<const char*>(p.x) + (image * p.image_stride + y * p.row_stride) * element;
        }
        kernel(row);
    });
    return Status::ok;
}

}  // namespace mvit
