#include "cpu/ops/dynamic_relu.h"

#include "cpu/core/isa.h"
#include "cpu/core/scratch.h"

namespace mvit {

MVIT_FLOAT_TABLE(DynamicReluKernels, dynamic_relu)

namespace {

constexpr int64_t bytes_of_a_task = 32 * 1024;  // a few microseconds

}  // namespace

DynamicSlopes::DynamicSlopes(DType dtype, const void* u, int64_t batch, int64_t channels)
    : channels_(channels), rows_(u ? batch * 2 * channels : 0) {
    if (!u) return;
    const auto slopes = dynamic_relu_table.active().slopes[static_cast<int>(dtype)];
    const int64_t row = 2 * channels * element_size(dtype);
    for (int64_t image = 0; image < batch; ++image)
        slopes(static_cast<const char*>(u) + image * row, channels, &rows_[image * 2 * channels]);
}

Status dynamic_relu(const DynamicReluProblem& p, int threads) {
    if (p.batch < 0 || p.pixels < 0 || p.channels < 0) return Status::bad_shape;
    if (!known(p.dtype)) return Status::bad_dtype;
    if (p.batch * p.pixels * p.channels == 0) return Status::ok;
    return caught([&] {
        const auto kernel = dynamic_relu_table.active().pixels[static_cast<int>(p.dtype)];
        const DynamicSlopes slopes(p.dtype, p.u, p.batch, p.channels);
        const int64_t pixel = 2 * p.channels * element_size(p.dtype), height = bytes_of_a_task / pixel + 1;
        const int64_t pieces = (p.pixels + height - 1) / height, tasks = p.batch * pieces;
        parallel_for(tasks, threads_for(p.batch * p.pixels * pixel, tasks, threads), [&](int64_t task) {
            const int64_t image = task / pieces, begin = task % pieces * height;
            const int64_t count = p.pixels - begin < height ? p.pixels - begin : height;
            kernel(p, slopes.of(image), image * p.pixels + begin, count);
        });
    });
}

}  // namespace mvit
