#include "cpu/ops/inverted_residual.h"

#include "cpu/core/borrowed.h"
#include "cpu/core/isa.h"
#include "cpu/core/scratch.h"
#include "cpu/ops/dynamic_relu.h"
#include "cpu/ops/group_norm.h"

namespace mvit {

MVIT_FLOAT_TABLE(InvertedResidualKernels, inverted_residual)
MVIT_FLOAT_TABLE(GroupNormKernels, group_norm)

namespace {

constexpr int64_t step_floats = 80 * 1024;  // of expanded rows at once: 320 KB, a part of the second cache
constexpr int64_t step_pixels = 64;         // and at least as many output pixels, so that small maps make full products

Status check(const InvertedResidualProblem& p) {
    if (p.batch < 0 || p.height < 0 || p.width < 0 || p.channels < 0 || p.hidden < 0 || p.columns < 0) return Status::bad_shape;
    if (p.stride != 1 && p.stride != 2) return Status::bad_shape;
    if (!p.expand_weight && p.hidden != p.channels) return Status::bad_shape;
    if (p.residual && (p.stride != 1 || p.columns != p.channels)) return Status::bad_shape;
    const bool dynamic = p.expand_slopes || p.depthwise_slopes;
    if ((dynamic && p.activation != Activation::none) || (p.expand_slopes && !p.expand_weight)) return Status::bad_layout;
    return known(p.dtype) ? Status::ok : Status::bad_dtype;
}

// Output rows at once.
int64_t step_of(const InvertedResidualProblem& p, int64_t out_width, int64_t rows) {
    int64_t step = 1;
    while (step < rows && (expanded_floats(p.width, p.hidden, p.stride, step + 1) <= step_floats || step * out_width < step_pixels)) ++step;
    return step;
}

void run(const InvertedResidualProblem& p, int threads) {
    const InvertedResidualKernels& kernels = inverted_residual_table.active();
    const GroupNormKernels& norm = group_norm_table.active();
    const int code = static_cast<int>(p.dtype);
    const int64_t out_height = (p.height - 1) / p.stride + 1, out_width = (p.width - 1) / p.stride + 1;
    // Whole images where they give every thread the same work. Rows do not depend on the cut, and statistics are gathered a row at a time.
    const int64_t wanted = p.batch % threads == 0 ? 1 : threads, height = (out_height + wanted - 1) / wanted;
    const int64_t bands = (out_height + height - 1) / height, step = step_of(p, out_width, height);
    const int64_t in_bytes = p.height * p.width * p.channels * element_size(p.dtype);
    const int64_t row_bytes = out_width * p.columns * element_size(p.dtype);
    const DynamicSlopes expand_slopes(p.dtype, p.expand_slopes, p.batch, p.hidden);
    const DynamicSlopes depthwise_slopes(p.dtype, p.depthwise_slopes, p.batch, p.hidden);
    const Borrowed<Statistics> rows(p.collected ? p.batch * out_height : 0);
    const int64_t scratch_floats = inverted_residual_scratch(p.width, p.channels, p.hidden, p.columns, p.stride, step);
    parallel_tasks(p.batch * bands, p.batch * p.height * p.width * p.hidden * p.channels / 8, scratch_floats, threads,
                   [&](int64_t task, float* scratch) {
                       const int64_t image = task / bands, begin = task % bands * height;
                       const int64_t end = begin + height < out_height ? begin + height : out_height;
                       char* y = static_cast<char*>(p.y) + image * out_height * row_bytes;
                       kernels.band[code]({p.height,
                                           p.width,
                                           p.channels,
                                           p.hidden,
                                           p.columns,
                                           p.stride,
                                           p.expand_weight,
                                           p.expand_bias,
                                           p.depthwise_weight,
                                           p.depthwise_bias,
                                           p.reduce_weight,
                                           p.reduce_bias,
                                           p.activation,
                                           expand_slopes.of(image),
                                           depthwise_slopes.of(image),
                                           p.residual,
                                           static_cast<const char*>(p.x) + image * in_bytes,
                                           y,
                                           begin,
                                           end,
                                           step,
                                           scratch});
                       for (int64_t row = begin; p.collected && row < end; ++row)
                           rows[image * out_height + row] = norm.statistics[code](y + row * row_bytes, out_width * p.columns);
                   });
    for (int64_t image = 0; p.collected && image < p.batch; ++image)
        p.collected[image] = combine(rows.data() + image * out_height, out_height);
}

}  // namespace

Status inverted_residual(const InvertedResidualProblem& p, int threads) {
    if (const Status status = check(p); status != Status::ok) return status;
    if (p.batch == 0 || p.height == 0 || p.width == 0 || p.columns == 0) return Status::ok;
    return caught([&] { run(p, threads > 0 ? threads : 1); });
}

}  // namespace mvit
