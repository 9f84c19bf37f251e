#include "cpu/ops/qdepthwise_conv2d.h"

#include "cpu/core/isa.h"
#include "cpu/core/parallel.h"
#include "cpu/ops/repeat_channels.h"

namespace mvit {

MVIT_INTEGER_TABLE(QDepthwiseConv2dKernels, qdepthwise_conv2d)

namespace {

Status check(const QDepthwiseConv2dProblem& p) {
    const QEpilogue& e = p.epilogue;
    if (p.batch < 0 || p.height < 0 || p.width < 0 || p.channels < 0 || (p.stride != 1 && p.stride != 2)) return Status::bad_shape;
    if (p.multiplier < 0 || (p.multiplier > 1 && p.channels % p.multiplier != 0)) return Status::bad_shape;
    if (!known(e.type) || (e.table && e.type != QType::u8)) return Status::bad_dtype;
    if (e.curve && (e.type != QType::u8 || !e.plain || e.residual)) return Status::bad_dtype;
    if (p.narrow && (e.type != QType::u8 || e.residual || !(e.plain || e.activation == QActivation::segments))) return Status::bad_dtype;
    if (e.row_scale || e.row_zero_point) return Status::bad_layout;  // pixels of a map have no scales of their own
    return slopes_fit(e) && !(e.slopes && p.narrow) ? Status::ok : Status::bad_dtype;
}

void run(const QDepthwiseConv2dProblem& p, int threads) {
    const auto kernel = qdepthwise_conv2d_table.active().row[p.stride - 1];
    const int64_t height = (p.height - 1) / p.stride + 1, width = (p.width - 1) / p.stride + 1;
    const auto from = [&](int64_t image, int64_t y) { return p.x + image * p.image_stride + y * p.row_stride; };
    if (p.multiplier > 1) {
        const RepeatChannels repeat(p.channels, p.multiplier, 1);
        each_repeated_row(repeat, p.batch, p.height, p.width, p.stride, p.pixel_stride, p.width * p.channels, threads, from,
                          [&](int64_t image, int64_t row, const void* const(&taps)[3]) {
                              const auto at = [&](int ky) { return static_cast<const uint8_t*>(taps[ky]); };
                              kernel({{at(0), at(1), at(2)}, (image * height + row) * width, p.channels, p});
                          });
        return;
    }
    const int64_t bytes = p.batch * p.channels * (p.height * p.width + height * width);
    // A task is a row: neighbours, which share input rows, are in turn on the same thread.
    parallel_for(p.batch * height, threads_for(bytes, p.batch * height, threads), [&](int64_t task) {
        const int64_t image = task / height, centre = task % height * p.stride;
        QDepthwiseConv2dRow row{{}, task * width, p.pixel_stride, p};
        for (int64_t ky = 0; ky < 3; ++ky) {
            const int64_t y = centre + ky - 1;
            if (y >= 0 && y < p.height) row.rows[ky] = from(image, y);
        }
        kernel(row);
    });
}

}  // namespace

Status qdepthwise_conv2d(const QDepthwiseConv2dProblem& p, int threads) {
    if (const Status status = check(p); status != Status::ok) return status;
    if (p.batch == 0 || p.height == 0 || p.width == 0 || p.channels == 0) return Status::ok;
    return caught([&] { run(p, threads); });
}

}  // namespace mvit
