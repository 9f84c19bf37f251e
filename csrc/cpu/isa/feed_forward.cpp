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
    using O = Operand<T>;
    const int64_t dim = p.source.depth, stride = scratch_stride<O>(p.hidden);
    float* after = p.scratch + p.rows * scratch_stride(dim);
    O* hidden = reinterpret_cast<O*>(after);
    float* products = after + p.rows * scratch_stride(p.hidden);
    const Rows<O> x = load_rows<T>(p.source, p.rows, p.scratch);
    multiply_in_cache(tiles, x.data, x.stride, p.rows, dim, static_cast<const O*>(p.weight1), p.bias1, p.hidden, p.activation, nullptr,
                      hidden, stride, products);
    multiply_panels<T>(tiles, hidden, stride, p.rows, p.hidden, static_cast<const O*>(p.weight2), p.bias2, dim, 0, panels(dim),
                       Activation::none, static_cast<const T*>(p.source.a), dim, static_cast<T*>(p.y), dim, products);
}

}  // namespace

extern const FeedForwardKernels MVIT_ISA_SYMBOL(feed_forward);
const FeedForwardKernels MVIT_ISA_SYMBOL(feed_forward) = {{block<float>, block<bf16>, block<f16>}};

}  // namespace mvit
