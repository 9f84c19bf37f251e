#include "cpu/ops/quantize_image.h"

#include "cpu/core/isa.h"
#include "cpu/core/parallel.h"

namespace mvit {

MVIT_INTEGER_TABLE(QuantizeImageKernels, quantize_image)

namespace {

constexpr int64_t pixels_a_task = 2048;

}  // namespace

Status quantize_image(const QuantizeImageProblem& p, int threads) {
    if (p.batch < 0 || p.channels < 0 || p.pixels < 0) return Status::bad_shape;
    if (p.bits != 8 && p.bits != 6) return Status::bad_dtype;
    if (!writable(p.zero_point)) return Status::overflow;
    const QuantizeImageKernels& kernels = quantize_image_table.active();
    const QByte to = qbyte(p.scale, p.zero_point, static_cast<int>(p.bits));
    const int64_t parts = (p.pixels + pixels_a_task - 1) / pixels_a_task, tasks = p.batch * parts;
    const int64_t bytes = p.batch * p.channels * p.pixels * int64_t{sizeof(float) + 1};
    parallel_for(tasks, threads_for(bytes, tasks, threads), [&](int64_t task) {
        const int64_t image = task / parts * p.channels * p.pixels, first = task % parts * pixels_a_task;
        const int64_t count = p.pixels - first < pixels_a_task ? p.pixels - first : pixels_a_task;
        kernels.run(p.x + image + first, p.pixels, p.channels, count, to, p.y + image + first * p.channels);
    });
    return Status::ok;
}

}  // namespace mvit
