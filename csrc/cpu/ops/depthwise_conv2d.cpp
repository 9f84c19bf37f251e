#include "cpu/ops/depthwise_conv2d.h"

#include "cpu/core/isa.h"
#include "cpu/core/parallel.h"
#include "cpu/ops/dynamic_relu.h"
#include "cpu/ops/repeat_channels.h"

namespace mvit {

MVIT_FLOAT_TABLE(DepthwiseConv2dKernels, depthwise_conv2d)

namespace {

Status check(const DepthwiseConv2dProblem& p) {
    if (p.batch < 0 || p.height < 0 || p.width < 0 || p.channels < 0 || (p.stride != 1 && p.stride != 2)) return Status::bad_shape;
    if (p.multiplier < 0 || (p.multiplier > 1 && p.channels % p.multiplier != 0)) return Status::bad_shape;
    if (p.weight_stride < (p.channels + 15) / 16 * 16 || (p.slopes && p.activation != Activation::none)) return Status::bad_layout;
    if (p.dtype != DType::f32 && p.dtype != DType::bf16 && p.dtype != DType::f16) return Status::bad_dtype;
    return Status::ok;
}

void run(const DepthwiseConv2dProblem& p, int threads) {
    const auto kernel = depthwise_conv2d_table.active().row[static_cast<int>(p.dtype)][p.stride - 1];
    const int64_t element = element_size(p.dtype);
    const int64_t height = (p.height - 1) / p.stride + 1, width = (p.width - 1) / p.stride + 1;
    const int64_t values = p.batch * height * width * p.channels;
    const DynamicSlopes slopes(p.dtype, p.slopes, p.batch, p.channels);
    const auto from = [&](int64_t image, int64_t y) {
        return static_cast<const char*>(p.x) + (image * p.image_stride + y * p.row_stride) * element;
    };
    const auto to = [&](int64_t image, int64_t row) {
        return static_cast<char*>(p.y) + (image * height + row) * width * p.channels * element;
    };
    if (p.multiplier > 1) {
        const RepeatChannels repeat(p.channels, p.multiplier, element);
        each_repeated_row(repeat, p.batch, p.height, p.width, p.stride, p.pixel_stride * element, p.width * p.channels * element, threads,
                          from, [&](int64_t image, int64_t row, const void* const(&taps)[3]) {
                              kernel({{taps[0], taps[1], taps[2]}, to(image, row), slopes.of(image), p.channels, p});
                          });
        return;
    }
    // A task is a row: neighbours, which share input rows, are in turn on the same thread.
    parallel_for(p.batch * height, threads_for(4 * values * element, p.batch * height, threads), [&](int64_t task) {
        const int64_t image = task / height, centre = task % height * p.stride;
        DepthwiseConv2dRow row{{}, to(image, task % height), slopes.of(image), p.pixel_stride, p};
        for (int64_t ky = 0; ky < 3; ++ky) {
            const int64_t y = centre + ky - 1;
            if (y >= 0 && y < p.height) row.rows[ky] = from(image, y);
        }
        kernel(row);
    });
}

}  // namespace

Status depthwise_conv2d(const DepthwiseConv2dProblem& p, int threads) {
    if (const Status status = check(p); status != Status::ok) return status;
    if (p.batch == 0 || p.height == 0 || p.width == 0 || p.channels == 0) return Status::ok;
    return caught([&] { run(p, threads); });
}

}  // namespace mvit
