// A 3x3 convolution with stride 1 by minimal filtering, F(2 x 2, 3 x 3) (Winograd 1980; Lavin, Gray, arXiv 1509.09308, section 4.1): what
// ops/conv2d.h defines, with 16 multiplications for 2 x 2 pixels where 36 are the definition.
//
// A tile of 2 x 2 pixels sees 4 x 4 of the input, d. With g the 3 x 3 taps of one input and output channel,
//
//     y = A^T [(G g G^T) * (B^T d B)] A,   * by elements, summed over the input channels
//
//           [1  0 -1  0]        [ 1    0    0 ]
//     B^T = [0  1  1  0]    G = [1/2  1/2  1/2]    A^T = [1  1  1  0]
//           [0 -1  1  0]        [1/2 -1/2  1/2]          [0  1 -1 -1]
//           [0  1  0 -1]        [ 0    0    1 ]
//
// so each of the 16 elements is a matrix product of tiles times input channels by input channels times output channels. The G g G^T are
// packed once. A chain of additions is C long, not 9 C: the largest error is 0.3 to 1.6 times that of oneDNN's direct sum at the shapes of
// MobileViT-S. A value that is not finite reaches all 4 pixels of each tile that sees it.
//
// Floor: 16 / 36 of the multiply-adds of the direct sum; the transforms add about 40 C / W + 80 N / W instructions a tile to its
// 16 C N / W multiply-adds.
#pragma once

#include "cpu/ops/conv2d.h"

namespace mvit {

Status winograd(const Conv2dProblem& problem, int threads);

// --- what isa/winograd.cpp implements: a block of tiles times a range of columns, which are counted by 16: half panels ---

struct WinogradBlock {
    int64_t first, tiles;  // counted through all images
    int64_t begin, end;    // half panels
    float* scratch;        // winograd_scratch floats
    const Conv2dProblem& problem;
};

// The distance between two of the 16 matrices; the 16 floats keep them out of each other's sets in the first cache.
inline int64_t winograd_step(int64_t tiles, int64_t stride) { return tiles * stride + 16; }
inline int64_t winograd_scratch(int64_t tiles, int64_t channels) {
    return 16 * (winograd_step(tiles, scratch_stride(channels)) + winograd_step(tiles, panel));
}

struct WinogradKernels {
    void (*block[3])(const WinogradBlock&);  // by DType
};

}  // namespace mvit
