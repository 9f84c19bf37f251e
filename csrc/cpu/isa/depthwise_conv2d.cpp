// One row of a depthwise 3x3 convolution; formula in ops/depthwise_conv2d.h, loops in core/depthwise.h. Compiled once an ISA.
#include "cpu/ops/depthwise_conv2d.h"

#include "cpu/core/depthwise.h"
#include "cpu/core/isa.h"

namespace mvit {
namespace {

template <class T, int stride>
void row(const DepthwiseConv2dRow& r) {
    const DepthwiseConv2dProblem& p = r.problem;
    const auto at = [&](int ky) { return static_cast<const T*>(r.rows[ky]); };
    depthwise_row<stride, T, T>({{at(0), at(1), at(2)},
                                 p.width,
                                 r.pixel_stride,
                                 p.channels,
                                 p.weight,
                                 p.weight_stride,
                                 p.bias,
                                 static_cast<T*>(r.y),
                                 p.channels,
                                 r.slopes},
                                p.activation);
}

}  // namespace

extern const DepthwiseConv2dKernels MVIT_ISA_SYMBOL(depthwise_conv2d);
const DepthwiseConv2dKernels MVIT_ISA_SYMBOL(depthwise_conv2d) = {
    {{row<float, 1>, row<float, 2>}, {row<bf16, 1>, row<bf16, 2>}, {row<f16, 1>, row<f16, 2>}}};

}  // namespace mvit
