// One row of an integer depthwise 3x3 convolution; formula in ops/qdepthwise_conv2d.h, loops in core/qdepthwise.h. Compiled once an ISA.
#include "cpu/ops/qdepthwise_conv2d.h"

#include "cpu/core/isa.h"
#include "cpu/core/qdepthwise.h"

namespace mvit {
namespace {

template <int stride>
void row(const QDepthwiseConv2dRow& r) {
    const QDepthwiseConv2dProblem& p = r.problem;
    qdepthwise_row<stride>({{r.rows[0], r.rows[1], r.rows[2]}, p.width, r.pixel_stride, p.channels, p.blocks, p.narrow, r.first},
                           p.epilogue);
}

}  // namespace

extern const QDepthwiseConv2dKernels MVIT_ISA_SYMBOL(qdepthwise_conv2d);
const QDepthwiseConv2dKernels MVIT_ISA_SYMBOL(qdepthwise_conv2d) = {{row<1>, row<2>}};

}  // namespace mvit
