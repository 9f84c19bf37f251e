// GroupNorm with one group (arXiv 1803.08494, equation 2; "layer_norm_2d" of MobileViTv2), forward and backward. Over the n = C P values of
// an image, channel c at position p:
//
//     y[c, p] = xhat[c, p] weight[c] + bias[c],   xhat = (x - mean) / sigma,   sigma = sqrt(M2 / n + eps),   M2 = sum (x - mean)^2
//
//     dbias[c] = sum_p dy,   dweight[c] = sum_p dy xhat
//     dx = (dy weight[c] - s1 - xhat s2) / sigma,   s1 = sum_c weight[c] dbias[c] / n,   s2 = sum_c weight[c] dweight[c] / n
//
// Mean and M2 are gathered tile by tile and combined in float64 in a fixed order (Chan, Golub, LeVeque 1983), and x - mean is formed before
// anything is multiplied: no cancellation, whatever mean / sigma is. The order depends on the shape alone, not on the threads.
//
// Floor: the forward reads x twice (the second time from cache, where an image fits) and writes y once.
#pragma once

#include "cpu/core/moments.h"
#include "cpu/core/types.h"

namespace mvit {

struct GroupNormProblem {
    DType dtype;         // of x, y, dy, dx
    bool channels_last;  // dense memory (B, P, C); else (B, C, P)
    int64_t batch, channels, positions;
    float eps;
    const float *weight, *bias;  // C values each
    const void* x;
    void* y;         // forward only
    const void* dy;  // these three: backward only
    void* dx;
    float *dweight, *dbias;  // C values each, summed over the batch
};

Status group_norm(const GroupNormProblem& problem, int threads);
Status group_norm_backward(const GroupNormProblem& problem, int threads);

// --- what isa/group_norm.cpp implements, each on a piece small enough for the first cache ---

struct GroupNormKernels {
    // Indexed by DType.
    Statistics (*statistics[3])(const void* x, int64_t count);
    // y on whole planes (weight, bias: a value a plane) and on whole pixels (a value a channel).
    void (*normalize_planes[3])(const void* x, void* y, int64_t planes, int64_t positions, Centre mean, float inverse_sigma,
                                const float* weight, const float* bias);
    void (*normalize_pixels[3])(const void* x, void* y, int64_t pixels, int64_t channels, Centre mean, float inverse_sigma,
                                const float* weight, const float* bias);
    // sums[0] = sum dy, sums[1] = sum dy (x - mean); of pixels: a value a channel, sums[0 .. C) and sums[C .. 2 C).
    void (*sum_plane[3])(const void* x, const void* dy, int64_t count, Centre mean, float* sums);
    void (*sum_pixels[3])(const void* x, const void* dy, int64_t rows, int64_t channels, Centre mean, float* sums);
    // dx = dy * scale + shift + (x - mean) * slope
    void (*gradient_plane[3])(const void* x, const void* dy, void* dx, int64_t count, Centre mean, float scale, float shift, float slope);
    void (*gradient_pixels[3])(const void* x, const void* dy, void* dx, int64_t rows, int64_t channels, Centre mean, const float* scale,
                               float shift, float slope);
};

}  // namespace mvit
