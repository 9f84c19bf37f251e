#include "cpu/ops/resize.h"

#include "cpu/core/borrowed.h"
#include "cpu/core/isa.h"
#include "cpu/core/scratch.h"

namespace mvit {

MVIT_FLOAT_TABLE(ResizeKernels, resize)

namespace {

void run(const ResizeProblem& p, int threads) {
    const auto kernel = resize_table.active().row[static_cast<int>(p.dtype)];
    const BetweenInputs rows(p.height, p.out_height, p.align_corners), inputs(p.width, p.out_width, p.align_corners);
    const Borrowed<Between> columns(p.out_width);
    for (int64_t i = 0; i < p.out_width; ++i) columns[i] = inputs[i];
    const int64_t pixel = p.channels * element_size(p.dtype), tasks = p.batch * p.out_height;
    const int64_t bytes = 4 * tasks * p.out_width * pixel;  // four loads an output
    parallel_for(tasks, threads_for(bytes, tasks, threads), [&](int64_t task) {
        const Between row = rows[task % p.out_height];
        const char* image = static_cast<const char*>(p.x) + task / p.out_height * p.height * p.width * pixel;
        kernel(image + row.first * p.width * pixel, image + row.second * p.width * pixel, row.weight, columns.data(), p.out_width,
               p.channels, static_cast<char*>(p.y) + task * p.out_width * pixel);
    });
}

}  // namespace

Status resize(const ResizeProblem& p, int threads) {
    if (p.batch < 0 || p.channels < 0 || p.height < 1 || p.width < 1 || p.out_height < 0 || p.out_width < 0) return Status::bad_shape;
    if (!known(p.dtype)) return Status::bad_dtype;
    if (p.batch == 0 || p.channels == 0 || p.out_height == 0 || p.out_width == 0) return Status::ok;
    return caught([&] { run(p, threads); });
}

}  // namespace mvit
