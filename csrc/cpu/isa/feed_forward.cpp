// A block of rows through both products of a feed-forward layer; formula in ops/feed_forward.h. Compiled once an ISA.
#include "cpu/ops/feed_forward.h"

#include "cpu/core/epilogue.h"
#include "cpu/core/isa.h"
#include "cpu/core/rows.h"

namespace mvit {

extern const TileKernels MVIT_ISA_SYMBOL(tile);

namespace {

template <class T>
void block(const FeedForwardBlock& p) {
    const TileKernels& tiles = MVIT_ISA_SYMBOL(tile);
    const int64_t dim = p.source.depth, stride = scratch_stride(p.hidden);
    float* hidden = p.scratch + p.rows * scratch_stride(dim);
    float* products = hidden + p.rows * stride;
    const Rows x = load_rows<T>(p.source, p.rows, p.scratch);
    multiply_in_cache(tiles, x.data, x.stride, p.rows, dim, p.weight1, p.bias1, p.hidden, p.activation, nullptr, hidden, stride);
    multiply_panels<T>(tiles, hidden, stride, p.rows, p.hidden, p.weight2, p.bias2, dim, 0, panels(dim), Activation::none,
                       static_cast<const T*>(p.source.a), dim, static_cast<T*>(p.y), dim, products);
}

}  // namespace

extern const FeedForwardKernels MVIT_ISA_SYMBOL(feed_forward);
const FeedForwardKernels MVIT_ISA_SYMBOL(feed_forward) = {{block<float>, block<bf16>, block<f16>}};

}  // namespace mvit
