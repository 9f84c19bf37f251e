#include "cpu/ops/qresize.h"

#include <cmath>
#include "cpu/core/between.h"
#include "cpu/core/borrowed.h"
#include "cpu/core/isa.h"
#include "cpu/core/scratch.h"

namespace mvit {

MVIT_INTEGER_TABLE(QResizeKernels, qresize)

namespace {

void find_taps(int64_t in, int64_t out, bool align_corners, QResizeTap* taps) {
    const BetweenInputs inputs(in, out, align_corners);
    for (int64_t i = 0; i < out; ++i) {
        const Between at = inputs[i];
        taps[i] = {at.first, at.second, static_cast<int32_t>(std::nearbyint(at.weight * resize_one))};
    }
}

void run(const QResizeProblem& p, int threads) {
    const QResizeKernels& kernels = qresize_table.active();
    const Borrowed<QResizeTap> rows(p.out_height), columns(p.out_width);
    find_taps(p.height, p.out_height, p.align_corners, rows.data());
    find_taps(p.width, p.out_width, p.align_corners, columns.data());
    const int64_t row_bytes = p.width * p.channels, tasks = p.batch * p.out_height;
    const int64_t bytes = 4 * tasks * p.out_width * p.channels;  // four loads an output
    parallel_for(tasks, threads_for(bytes, tasks, threads), [&](int64_t task) {
        const QResizeTap& tap = rows[task % p.out_height];
        const uint8_t* image = p.x + task / p.out_height * p.height * row_bytes;
        kernels.row(image + tap.first * row_bytes, image + tap.second * row_bytes, tap.weight, columns.data(), p.out_width, p.channels,
                    p.y + task * p.out_width * p.channels);
    });
}

}  // namespace

Status qresize(const QResizeProblem& p, int threads) {
    if (p.batch < 0 || p.channels < 0 || p.height < 1 || p.width < 1 || p.out_height < 0 || p.out_width < 0) return Status::bad_shape;
    if (p.batch == 0 || p.channels == 0 || p.out_height == 0 || p.out_width == 0) return Status::ok;
    return caught([&] { run(p, threads); });
}

}  // namespace mvit
