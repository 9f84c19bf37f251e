#include "cpu/ops/layer_norm.h"

#include <new>
#include <vector>

#include "cpu/core/isa.h"
#include "cpu/core/parallel.h"

namespace mvit {

MVIT_FLOAT_TABLE(LayerNormKernels, layer_norm)

namespace {

constexpr int64_t rows_a_block = 32;  // of a task, and whose sums over rows are added in float32 before they are combined in float64

size_t size(int64_t n) { return static_cast<size_t>(n); }
int code(const LayerNormProblem& p) { return static_cast<int>(p.dtype); }

Status check(const LayerNormProblem& p) {
    if (p.rows < 0 || p.channels < 0) return Status::bad_shape;
    if (p.dtype != DType::f32 && p.dtype != DType::bf16 && p.dtype != DType::f16) return Status::bad_dtype;
    return Status::ok;
}

int64_t blocks_of(const LayerNormProblem& p) { return (p.rows + rows_a_block - 1) / rows_a_block; }

// body(block, bytes before its first row, rows) for each block; `tensors`: how many of the size of x are read or written.
template <class Body>
void each_block(const LayerNormProblem& p, int64_t tensors, int threads, const Body& body) {
    const int64_t row_bytes = p.channels * (p.dtype == DType::f32 ? 4 : 2), blocks = blocks_of(p);
    parallel_for(blocks, threads_for(tensors * p.rows * row_bytes, blocks, threads), [&](int64_t block) {
        const int64_t first = block * rows_a_block, left = p.rows - first;
        body(block, first * row_bytes, left < rows_a_block ? left : rows_a_block);
    });
}

const char* at(const void* data, int64_t bytes) { return static_cast<const char*>(data) + bytes; }
char* at(void* data, int64_t bytes) { return static_cast<char*>(data) + bytes; }

void backward(const LayerNormProblem& p, int threads) {
    const LayerNormKernels& kernels = layer_norm_table.active();
    const int64_t width = 2 * p.channels;
    std::vector<float> parts(size(blocks_of(p) * width));
    each_block(p, 3, threads, [&](int64_t block, int64_t begin, int64_t rows) {
        kernels.gradient[code(p)](at(p.x, begin), at(p.dy, begin), at(p.dx, begin), rows, p.channels, p.eps, p.weight,
                                  parts.data() + block * width);
    });
    std::vector<double> sums(size(width));
    for (int64_t block = 0; block < blocks_of(p); ++block)
        for (int64_t i = 0; i < width; ++i) sums[size(i)] += static_cast<double>(parts[size(block * width + i)]);
    for (int64_t c = 0; c < p.channels; ++c) {
        p.dbias[c] = static_cast<float>(sums[size(c)]);
        p.dweight[c] = static_cast<float>(sums[size(p.channels + c)]);
    }
}

}  // namespace

Status layer_norm(const LayerNormProblem& p, int threads) {
    if (const Status status = check(p); status != Status::ok) return status;
    if (p.rows == 0 || p.channels == 0) return Status::ok;
    const LayerNormKernels& kernels = layer_norm_table.active();
    each_block(p, 2, threads, [&](int64_t, int64_t begin, int64_t rows) {
        kernels.normalize[code(p)](at(p.x, begin), at(p.y, begin), rows, p.channels, p.eps, p.weight, p.bias);
    });
    return Status::ok;
}

Status layer_norm_backward(const LayerNormProblem& p, int threads) {
    if (const Status status = check(p); status != Status::ok) return status;
    if (p.rows == 0 || p.channels == 0) {
        for (int64_t c = 0; c < p.channels; ++c) p.dweight[c] = p.dbias[c] = 0.0f;
        return Status::ok;
    }
    try {
        backward(p, threads);
    } catch (const std::bad_alloc&) {
        return Status::out_of_memory;
    }
    return Status::ok;
}

}  // namespace mvit
