#include "cpu/ops/conv2d.h"

#include <atomic>

#include "cpu/core/isa.h"
#include "cpu/core/parallel.h"
#include "cpu/core/scratch.h"
#include "cpu/ops/gemm.h"
#include "cpu/ops/winograd.h"

namespace mvit {

MVIT_FLOAT_TABLE(Conv2dKernels, conv2d)

namespace {

constexpr int64_t most_pixels = 64;             // enough for the weights to be worth loading
constexpr int64_t gathered_bytes = 256 * 1024;  // of a block: a part of the second cache
constexpr int64_t tasks_wanted = 8;             // few pixels: the columns are cut too

Status check(const Conv2dProblem& p) {
    if (p.batch < 0 || p.height < 0 || p.width < 0 || p.columns < 0 || p.x.channels < 0 || p.second.channels < 0) return Status::bad_shape;
    if (p.method != Conv2dMethod::gathered && p.kernel != 3) return Status::bad_shape;
    if (p.method == Conv2dMethod::winograd && p.stride != 1) return Status::bad_shape;
    if ((p.kernel != 1 && p.kernel != 3) || (p.stride != 1 && p.stride != 2)) return Status::bad_shape;
    if (p.dtype != DType::f32 && p.dtype != DType::bf16 && p.dtype != DType::f16) return Status::bad_dtype;
    const auto contiguous = [](const InputMap& map) { return map.channels <= 1 || map.channel == 1; };
    if (p.method == Conv2dMethod::planes ? (p.width > 1 && p.x.pixel != 1) || p.second.channels > 0
                                         : !contiguous(p.x) || !contiguous(p.second))
        return Status::bad_layout;
    return Status::ok;
}

// The distance between the pixels of a map where they are the rows of a matrix, one step apart; else -1.
int64_t matrix_stride(const Conv2dProblem& p, const InputMap& map) {
    const int64_t sizes[3] = {p.width, p.height, p.batch}, strides[3] = {map.pixel, map.row, map.image};
    int64_t step = -1, pixels = 1;
    for (int d = 0; d < 3; ++d) {
        if (sizes[d] == 1) continue;  // whatever its stride is, nobody takes it
        if (pixels == 1) step = strides[d];
        if (strides[d] != step * pixels) return -1;
        pixels *= sizes[d];
    }
    return pixels == 1 ? map.channels : step;
}

bool is_product(const Conv2dProblem& p) {
    return p.kernel == 1 && p.stride == 1 && matrix_stride(p, p.x) >= 0 && (p.second.channels == 0 || matrix_stride(p, p.second) >= 0);
}

Status product(const Conv2dProblem& p, int threads) {
    GemmProblem g{};
    g.dtype = p.dtype;
    g.groups = 1;
    g.rows = p.batch * p.height * p.width;
    g.depth = p.x.channels;
    g.columns = p.columns;
    g.a = p.x.data;
    g.a_stride = matrix_stride(p, p.x);
    g.second = p.second.channels > 0 ? p.second.data : nullptr;
    g.second_depth = p.second.channels;
    g.second_stride = matrix_stride(p, p.second);
    g.weight = p.weight;
    g.bias = p.bias;
    g.activation = p.activation;
    g.residual = p.residual;
    g.y = p.y;
    g.residual_stride = g.y_stride = p.columns;
    return gemm(g, threads);
}

Status by_gathering(const Conv2dProblem& p, int threads) {
    const auto kernel = conv2d_table.active().block[static_cast<int>(p.dtype)];
    const int64_t depth = conv2d_depth(p), pixels = p.batch * ((p.height - 1) / p.stride + 1) * ((p.width - 1) / p.stride + 1);
    const EvenCut cut = cut_evenly(pixels, scratch_stride(depth) * int64_t{sizeof(float)}, gathered_bytes, most_pixels);
    const int64_t all = panels(p.columns), pieces = ranges_of(all, cut.blocks, tasks_wanted);
    const int64_t bytes = pixels * depth * p.columns / 8;  // of a copy that takes about as long

    std::atomic<bool> no_memory{false};
    parallel_for(cut.blocks * pieces, threads_for(bytes, cut.blocks * pieces, threads), [&](int64_t task) {
        const int64_t piece = task % pieces, first = task / pieces * cut.height;
        const int64_t some = pixels - first < cut.height ? pixels - first : cut.height;
        if (float* scratch = thread_scratch().floats(conv2d_scratch(some, depth, p.columns))) {
            kernel({first, some, all * piece / pieces, all * (piece + 1) / pieces, scratch, p});
        } else {
            no_memory.store(true, std::memory_order_relaxed);
        }
    });
    return no_memory.load() ? Status::out_of_memory : Status::ok;
}

// A task is an output row: what is gathered for it is a few rows of the image.
Status by_planes(const Conv2dProblem& p, int threads) {
    const auto kernel = conv2d_table.active().planes_row[static_cast<int>(p.dtype)][p.stride - 1];
    const int64_t height = (p.height - 1) / p.stride + 1, rows = p.batch * height;
    const int64_t bytes = rows * p.width * conv2d_depth(p) * p.columns / 8;  // of a copy that takes about as long
    std::atomic<bool> no_memory{false};
    parallel_for(rows, threads_for(bytes, rows, threads), [&](int64_t task) {
        if (float* scratch = thread_scratch().floats(3 * p.x.channels * conv2d_padded(p))) {
            kernel({task / height, task % height, scratch, p});
        } else {
            no_memory.store(true, std::memory_order_relaxed);
        }
    });
    return no_memory.load() ? Status::out_of_memory : Status::ok;
}

}  // namespace

Status conv2d(const Conv2dProblem& p, int threads) {
    if (const Status status = check(p); status != Status::ok) return status;
    if (p.batch == 0 || p.height == 0 || p.width == 0 || p.columns == 0) return Status::ok;
    if (p.method == Conv2dMethod::winograd) return winograd(p, threads);
    if (p.method == Conv2dMethod::planes) return by_planes(p, threads);
    return is_product(p) ? product(p, threads) : by_gathering(p, threads);
}

}  // namespace mvit
