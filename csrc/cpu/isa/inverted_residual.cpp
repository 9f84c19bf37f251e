// A band of output rows of an inverted residual; formula in ops/inverted_residual.h. Compiled once an ISA.
#include "cpu/ops/inverted_residual.h"

#include "cpu/core/depthwise.h"
#include "cpu/core/epilogue.h"
#include "cpu/core/isa.h"
#include "cpu/core/rows.h"

namespace mvit {

extern const TileKernels MVIT_ISA_SYMBOL(tile);

namespace {

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// act(W_e x + b_e) of `count` pixels.
template <class T>
void expand(const InvertedResidualBand& p, const T* x, int64_t count, float* to, int64_t stride, float* scratch, float* products) {
    using O = Operand<T>;
    RowSource source{};
    source.stride = source.depth = p.channels;
    for (int64_t first = 0; first < count; first += product_rows) {
        const int64_t rows = smaller(count - first, product_rows);
        source.a = x + first * p.channels;
        const Rows<O> a = load_rows<T>(source, rows, scratch);
        multiply_in_cache(MVIT_ISA_SYMBOL(tile), a.data, a.stride, rows, p.channels, static_cast<const O*>(p.expand_weight), p.expand_bias,
                          p.hidden, p.activation, p.expand_slopes, to + first * stride, stride, products);
    }
}

template <class In, class Out>
void filter(const InvertedResidualBand& p, const In* const rows[3], int64_t in_stride, Out* to, int64_t out_stride) {
    const DepthwiseRow<In, Out> row{{rows[0], rows[1], rows[2]}, p.width,          in_stride, p.hidden,   p.depthwise_weight,
                                    depthwise_stride(p.hidden),  p.depthwise_bias, to,        out_stride, p.depthwise_slopes};
    if (p.stride == 1) {
        depthwise_row<1>(row, p.activation);
    } else {
        depthwise_row<2>(row, p.activation);
    }
    if (const int64_t beyond = packed_depth<Out>(p.hidden); beyond > p.hidden)  // the product behind reads that far
        for (int64_t x = 0; x < (p.width - 1) / p.stride + 1; ++x) to[x * out_stride + p.hidden] = Out{};
}

template <class T>
void band(const InvertedResidualBand& p) {
    const T* x = static_cast<const T*>(p.x);
    T* y = static_cast<T*>(p.y);
    using O = Operand<T>;
    const int64_t out_width = (p.width - 1) / p.stride + 1, hidden_stride = scratch_stride<O>(p.hidden);
    const int64_t wide_stride = scratch_stride(p.hidden), row_size = p.width * wide_stride;
    float* expanded = p.scratch;
    float* after = p.scratch + expanded_floats(p.width, p.hidden, p.stride, p.step);
    O* filtered = reinterpret_cast<O*>(after);
    float* rest = after + p.step * out_width * scratch_stride(p.hidden);
    float* products = rest + product_rows * scratch_stride(p.channels);

    // `expanded` is a ring: input row r, while it is needed, is row r % held of it.
    const int64_t held = p.stride * (p.step - 1) + 3;
    int64_t next = larger(p.begin * p.stride - 1, 0);  // the input row that is expanded next
    for (int64_t begin = p.begin; begin < p.end; begin += p.step) {
        const int64_t end = smaller(begin + p.step, p.end), last = smaller((end - 1) * p.stride + 2, p.height);
        while (p.expand_weight && next < last) {
            const int64_t place = next % held, rows = smaller(last - next, held - place);
            expand(p, x + next * p.width * p.channels, rows * p.width, expanded + place * row_size, wide_stride, rest, products);
            next += rows;
        }
        for (int64_t row = begin; row < end; ++row) {
            O* out = filtered + (row - begin) * out_width * hidden_stride;
            const auto inside = [&](int64_t ky) { return row * p.stride + ky >= 1 && row * p.stride + ky <= p.height; };
            if (p.expand_weight) {
                const float* rows[3];
                for (int64_t ky = 0; ky < 3; ++ky) rows[ky] = inside(ky) ? expanded + (row * p.stride + ky - 1) % held * row_size : nullptr;
                filter(p, rows, wide_stride, out, hidden_stride);
            } else {
                const T* rows[3];
                for (int64_t ky = 0; ky < 3; ++ky) rows[ky] = inside(ky) ? x + (row * p.stride + ky - 1) * p.width * p.channels : nullptr;
                filter(p, rows, p.channels, out, hidden_stride);
            }
        }
        const int64_t pixels = (end - begin) * out_width;
        for (int64_t pixel = 0; pixel < pixels; pixel += product_rows) {
            const int64_t place = begin * out_width + pixel;
            multiply_panels<T>(MVIT_ISA_SYMBOL(tile), filtered + pixel * hidden_stride, hidden_stride,
                               smaller(pixels - pixel, product_rows), p.hidden, static_cast<const O*>(p.reduce_weight), p.reduce_bias,
                               p.columns, 0, panels(p.columns), Activation::none, p.residual ? x + place * p.columns : nullptr, p.columns,
                               y + place * p.columns, p.columns, products);
        }
    }
}

}  // namespace

extern const InvertedResidualKernels MVIT_ISA_SYMBOL(inverted_residual);
const InvertedResidualKernels MVIT_ISA_SYMBOL(inverted_residual) = {{band<float>, band<bf16>, band<f16>}};

}  // namespace mvit
