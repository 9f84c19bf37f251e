#include "cpu/ops/qconv2d.h"

#include "cpu/core/isa.h"
#include "cpu/core/scratch.h"
#include "cpu/ops/qgemm.h"
#include "cpu/ops/qwinograd.h"

namespace mvit {

MVIT_INTEGER_TABLE(QConv2dKernels, qconv2d)

namespace {

constexpr int64_t products_of_a_task = 1 << 21;  // some microseconds: little to lose at the end, much more than a task costs
constexpr int64_t fewest_pixels = 24;            // of a task: enough for panels to be worth loading
constexpr int64_t most_bytes = 128 * 1024;       // of the lines of a task: a part of the second cache
constexpr int64_t tasks_wanted = 8;              // few pixels: the columns are cut too

int64_t channels(const QConv2dProblem& p) { return p.x.channels + p.second.channels; }

Status check(const QConv2dProblem& p) {
    if (p.batch < 0 || p.height < 0 || p.width < 0 || p.x.channels < 0 || p.second.channels < 0) return Status::bad_shape;
    if ((p.kernel != 1 && p.kernel != 3) || (p.stride != 1 && p.stride != 2)) return Status::bad_shape;
    if (p.weight.depth != p.kernel * p.kernel * channels(p)) return Status::bad_shape;
    if (!known(p.epilogue.type)) return Status::bad_dtype;
    if ((p.epilogue.table && p.epilogue.type != QType::u8) || !slopes_fit(p.epilogue)) return Status::bad_dtype;
    if (p.epilogue.curve && (p.epilogue.type != QType::u8 || !p.epilogue.plain || p.epilogue.residual)) return Status::bad_dtype;
    if (p.epilogue.row_scale || p.epilogue.row_zero_point) return Status::bad_layout;
    return Status::ok;
}

// The distance between the pixels of x where they are the rows of a matrix, one step apart; else -1.
int64_t matrix_stride(const QConv2dProblem& p) {
    const int64_t sizes[3] = {p.width, p.height, p.batch}, strides[3] = {p.x.pixel, p.x.row, p.x.image};
    int64_t step = -1, pixels = 1;
    for (int d = 0; d < 3; ++d) {
        if (sizes[d] == 1) continue;  // whatever its stride is, nobody takes it
        if (pixels == 1) step = strides[d];
        if (strides[d] != step * pixels) return -1;
        pixels *= sizes[d];
    }
    return pixels == 1 ? p.x.channels : step;
}

void run(const QConv2dProblem& p, int threads) {
    const QConv2dKernels& kernels = qconv2d_table.active();
    const int64_t height = qconv2d_size(p, p.height), width = qconv2d_size(p, p.width), all = qpanels(p.weight.columns);
    const int64_t depth = p.weight.depth > 0 ? p.weight.depth : 1, of_a_pixel = depth * all * qpanel;
    const int64_t speed = product_speed();
    const int64_t wanted = speed * products_of_a_task / of_a_pixel, pixels = wanted > fewest_pixels ? wanted : fewest_pixels;
    const int64_t fitting = most_bytes / (p.stride * p.width * (channels(p) + 1)) + 1, enough = (pixels + width - 1) / width;
    const int64_t share = (p.batch * height + threads - 1) / threads;
    const int64_t some = enough < fitting ? enough : fitting, most = some < share ? some : share;
    const int64_t needed = (height + most - 1) / most;  // blocks of an image; as many for each thread
    const int64_t even = needed > threads && p.batch % threads != 0 ? needed / threads * threads : needed;
    const int64_t rows = (height + even - 1) / even, blocks = (height + rows - 1) / rows;
    const int64_t pieces = threads > 1 ? (tasks_wanted + p.batch * blocks - 1) / (p.batch * blocks) : 1;
    const int64_t panels = round_up((all + pieces - 1) / pieces, qgroup), ranges = (all + panels - 1) / panels;
    // Pixels of a block are gathered in even parts: those of fewer lines may be larger.
    const int64_t of_most = kernels.scratch(p, rows), of_last = kernels.scratch(p, height - (blocks - 1) * rows);
    const int64_t bytes = of_most > of_last ? of_most : of_last;

    parallel_tasks(p.batch * blocks * ranges, p.batch * height * width * of_a_pixel / (32 * speed), bytes / int64_t{sizeof(float)} + 1,
                   threads, [&](int64_t task, float* scratch) {
                       const int64_t block = task / ranges, row = block % blocks * rows, begin = task % ranges * panels;
                       const int64_t end = begin + panels < all ? begin + panels : all, count = height - row < rows ? height - row : rows;
                       kernels.block({&p, block / blocks, row, count, begin, end, scratch});
                   });
}

}  // namespace

Status qconv2d(const QConv2dProblem& p, int threads) {
    if (const Status status = check(p); status != Status::ok) return status;
    if (p.batch == 0 || p.height == 0 || p.width == 0 || p.weight.columns == 0) return Status::ok;
    if (p.kernel == 1 && p.stride == 1 && p.second.channels == 0 && matrix_stride(p) >= 0)
        return qgemm({p.batch * p.height * p.width, p.x.data, matrix_stride(p), nullptr, p.weight, p.epilogue, nullptr, 0}, threads);
    if (p.filtered) {
        if (const Status status = check_qwinograd(p); status != Status::ok) return status;  // on every set, or calls would depend on it
        // A quarter of the products, in int16: for vectors a gain, while tiles multiply bytes eight times as fast.
        if (isa_active() != Isa::amx) return qwinograd(p, threads);
    }
    return caught([&] { run(p, threads > 0 ? threads : 1); });
}

}  // namespace mvit
