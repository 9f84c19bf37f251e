// Dynamic ReLU (arXiv 2003.10027, equation 3, without intercepts) as Mobile-Former (arXiv 2108.05895) has it: of each image and channel
//
//     y[b, p, c] = max(a x[b, p, c], d x[b, p, c]),   a = 1 + clip(u[b, c]),   d = clip(u[b, C + c]),   clip to [-1, 1]
//
// so that u = 0 makes it ReLU. u comes from another part of the network; where a product makes x, it does this on the way (`slopes` of
// ops/gemm.h, depthwise_conv2d.h and inverted_residual.h). NaN of x or of u stays NaN; of infinity times a slope of 0 the other product.
//
// Floor: x read and y written once.
#pragma once

#include "cpu/core/borrowed.h"
#include "cpu/core/types.h"

namespace mvit {

// x and y: (batch, pixels, channels), dense; u: (batch, 2 channels).
struct DynamicReluProblem {
    DType dtype;
    int64_t batch, pixels, channels;
    const void *x, *u;
    void* y;  // may be x
};

Status dynamic_relu(const DynamicReluProblem& problem, int threads);

// The slopes of some images in float32: a row [a of all channels | d of all] each. Throws std::bad_alloc.
class DynamicSlopes {
  public:
    // Of u (batch, 2 channels), or null: no slopes.
    DynamicSlopes(DType dtype, const void* u, int64_t batch, int64_t channels);
    const float* of(int64_t image) const { return rows_.data() ? rows_.data() + image * 2 * channels_ : nullptr; }

  private:
    const int64_t channels_;
    const Borrowed<float> rows_;
};

// --- what isa/dynamic_relu.cpp implements ---

struct DynamicReluKernels {
    // Indexed by DType. A row of slopes from u, and some pixels of an image.
    void (*slopes[3])(const void* u, int64_t channels, float* to);
    void (*pixels[3])(const DynamicReluProblem&, const float* slopes, int64_t first, int64_t count);
};

}  // namespace mvit
