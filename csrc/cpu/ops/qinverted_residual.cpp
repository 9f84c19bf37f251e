#include "cpu/ops/qinverted_residual.h"

#include <atomic>
#include <initializer_list>

#include "cpu/core/isa.h"
#include "cpu/core/scratch.h"

namespace mvit {

MVIT_INTEGER_TABLE(QGemmKernels, qgemm)
MVIT_INTEGER_TABLE(QDepthwiseConv2dKernels, qdepthwise_conv2d)

namespace {

constexpr int64_t ring_bytes = 192 * 1024;  // of the rows that a step works on: a part of the second cache
constexpr int64_t fewest_pixels = 96;       // of a product: enough for its weights to be worth loading

using Problem = QInvertedResidualProblem;

Status check(const Problem& p) {
    const QDepthwiseConv2dProblem& d = p.depthwise;
    if (d.batch != 1 || d.height < 0 || d.width < 0 || d.channels < 0 || (d.stride != 1 && d.stride != 2)) return Status::bad_shape;
    if (p.expand.rows != d.height * d.width || p.expand.weight.columns != d.channels) return Status::bad_shape;
    if (p.reduce.weight.depth != d.channels || p.reduce.norm) return Status::bad_shape;
    if (p.expand.norm && p.expand.norm->depth != p.expand.weight.depth) return Status::bad_shape;
    const QEpilogue &first = p.expand.epilogue, &middle = d.epilogue;
    if (first.type != QType::u8 || middle.type != QType::u8 || first.residual || middle.residual) return Status::bad_dtype;
    if (!known(p.reduce.epilogue.type) || (p.reduce.collected && p.reduce.epilogue.type != QType::i16)) return Status::bad_dtype;
    for (const QEpilogue* e : {&first, &middle, &p.reduce.epilogue})
        if (!slopes_fit(*e) || e->slope_rows > 0) return Status::bad_dtype;  // one image
    if (middle.slopes && d.narrow) return Status::bad_dtype;
    if (first.row_scale || first.row_zero_point || p.reduce.epilogue.row_scale || p.reduce.epilogue.row_zero_point)
        return Status::bad_layout;
    return Status::ok;
}

// `e` for rows from `row` on, written to y.
QEpilogue from_row(const QEpilogue& e, int64_t row, void* y) {
    QEpilogue rest = e;
    rest.y = y;
    if (e.residual) rest.residual = static_cast<const char*>(e.residual) + row * e.residual_stride * element_size(e.residual_type);
    return rest;
}

class Band {
  public:
    Band(const Problem& p, int64_t step, char* scratch)
        : p_(p),
          gemm_(qgemm_table.active()),
          depthwise_(qdepthwise_conv2d_table.active().row[p.depthwise.stride - 1]),
          step_(step),
          row_bytes_(p.depthwise.width * p.depthwise.channels),
          out_width_((p.depthwise.width - 1) / p.depthwise.stride + 1),
          ring_(reinterpret_cast<uint8_t*>(scratch)),
          filtered_(ring_ + round_up(ring_rows(p, step) * row_bytes_, 64)),
          rest_(filtered_ + round_up(step * out_width_ * p.depthwise.channels, 64)) {}

    static int64_t ring_rows(const Problem& p, int64_t step) { return p.depthwise.stride * (step - 1) + 3; }

    static int64_t scratch(const Problem& p, int64_t step) {
        const QGemmKernels& gemm = qgemm_table.active();
        const QDepthwiseConv2dProblem& d = p.depthwise;
        const int64_t out_pixels = step * ((d.width - 1) / d.stride + 1);
        const int64_t expand = gemm.scratch(p.expand, ring_rows(p, step) * d.width), reduce = gemm.scratch(p.reduce, out_pixels);
        return round_up(ring_rows(p, step) * d.width * d.channels, 64) + round_up(out_pixels * d.channels, 64) +
               (expand > reduce ? expand : reduce) + 64;
    }

    // Output rows [begin, end).
    void run(int64_t begin, int64_t end) {
        const QDepthwiseConv2dProblem& d = p_.depthwise;
        int64_t expanded = begin * d.stride > 0 ? begin * d.stride - 1 : 0;  // rows before that are not needed
        for (int64_t row = begin; row < end; row += step_) {
            const int64_t count = end - row < step_ ? end - row : step_, last = (row + count - 1) * d.stride + 2;
            const int64_t until = last < d.height ? last : d.height;
            if (expanded < until) expand(expanded, until);
            expanded = until;
            for (int64_t i = 0; i < count; ++i) filter(row + i, i);
            reduce(row, count);
        }
    }

  private:
    uint8_t* ring(int64_t row) const { return ring_ + row % ring_rows(p_, step_) * row_bytes_; }

    void expand(int64_t first, int64_t until) {
        for (int64_t row = first; row < until;) {
            const int64_t size = ring_rows(p_, step_), left = size - row % size, count = until - row < left ? until - row : left;
            const int64_t pixel = row * p_.depthwise.width;
            QGemmProblem part = p_.expand;
            QNorm norm{};
            if (part.norm) {
                norm = *part.norm;
                norm.x += pixel * norm.x_stride;
                part.norm = &norm;
            } else {
                part.a += pixel * part.a_stride;
            }
            part.epilogue = from_row(part.epilogue, pixel, ring(row));
            part.epilogue.y_stride = p_.depthwise.channels;
            gemm_.block({&part, 0, count * p_.depthwise.width, 0, qpanels(part.weight.columns), rest_});
            row += count;
        }
    }

    void filter(int64_t row, int64_t i) {
        QDepthwiseConv2dProblem part = p_.depthwise;
        part.epilogue = from_row(part.epilogue, 0, filtered_);
        part.epilogue.y_stride = part.channels;
        QDepthwiseConv2dRow one{{}, i * out_width_, part.channels, part};
        for (int64_t ky = 0; ky < 3; ++ky) {
            const int64_t y = row * part.stride + ky - 1;
            if (y >= 0 && y < part.height) one.rows[ky] = ring(y);
        }
        depthwise_(one);
    }

    void reduce(int64_t row, int64_t count) {
        const int64_t pixel = row * out_width_, rows = count * out_width_, columns = p_.reduce.weight.columns;
        const QEpilogue& e = p_.reduce.epilogue;
        char* y = static_cast<char*>(e.y) + pixel * e.y_stride * element_size(e.type);
        QGemmProblem part = p_.reduce;
        part.a = filtered_;
        part.a_stride = p_.depthwise.channels;
        part.epilogue = from_row(e, pixel, y);
        gemm_.block({&part, 0, rows, 0, qpanels(columns), rest_});
        if (!part.collected) return;
        int64_t sums[2];
        gemm_.sums(reinterpret_cast<const int16_t*>(y), e.y_stride, rows, columns, sums);
        for (int i = 0; i < 2; ++i) std::atomic_ref(part.collected[i]).fetch_add(sums[i], std::memory_order_relaxed);
    }

    const Problem& p_;
    const QGemmKernels& gemm_;
    void (*const depthwise_)(const QDepthwiseConv2dRow&);
    const int64_t step_, row_bytes_, out_width_;
    uint8_t *const ring_, *const filtered_, *const rest_;
};

void run(const Problem& p, int threads) {
    const QDepthwiseConv2dProblem& d = p.depthwise;
    const int64_t height = (d.height - 1) / d.stride + 1, out_width = (d.width - 1) / d.stride + 1;
    const int64_t share = (height + threads - 1) / threads, bands = (height + share - 1) / share;
    int64_t step = 1;
    while (step < share && (Band::ring_rows(p, step + 1) * d.width * d.channels <= ring_bytes || step * out_width < fewest_pixels)) ++step;
    const int64_t bytes = p.expand.rows * d.channels * (p.expand.weight.depth + p.reduce.weight.columns) / 32;
    parallel_tasks(bands, bytes, Band::scratch(p, step) / int64_t{sizeof(float)} + 1, threads, [&](int64_t task, float* scratch) {
        const int64_t begin = task * share, end = begin + share < height ? begin + share : height;
        Band(p, step, reinterpret_cast<char*>(scratch)).run(begin, end);
    });
}

}  // namespace

Status qinverted_residual(const Problem& p, int threads) {
    if (const Status status = check(p); status != Status::ok) return status;
    for (int i = 0; p.reduce.collected && i < 2; ++i) p.reduce.collected[i] = 0;
    if (p.depthwise.height == 0 || p.depthwise.width == 0 || p.depthwise.channels == 0 || p.reduce.weight.columns == 0) return Status::ok;
    return caught([&] { run(p, threads > 0 ? threads : 1); });
}

}  // namespace mvit
