// Integer depthwise 3x3 convolution of channels-last bytes on a GPU: cpu/ops/qdepthwise_conv2d.h says what it computes.
//
// A thread takes four neighbouring channels of a run of pixels of one row of y. What it sees of one column of the map, three words of four
// channels, becomes four words of three taps (one channel each), so that one instruction multiplies and adds the taps of a column:
//
//     rows of the map    y-1 | c0 c1 c2 c3 |        c0 | y-1 y y+1 . |
//                        y   | c0 c1 c2 c3 |  --->  c1 | y-1 y y+1 . |       dot4 with the weights of that column: | ky = 0 1 2 . |
//                        y+1 | c0 c1 c2 c3 |        ..
//
// Three of them make a value of y, and its neighbour uses two of the columns again (with stride 2, one). Taps outside of the map are read
// as 0, and sums begin with border[class][c], which has what init took away for them: any int32 zero-point is right.
//
// All threads of a block are on the same row, whose addresses and borders are then no thread's work. Runs are of 8 pixels, unrolled,
// without a branch: of a run's columns only the first and the last can be outside.
//
// Floor: 3 dp4a, 1.5 permutations (with stride 2: 3) and the epilogue a value of y, 5 to 12 instructions; x read once (its rows three times
// from the caches), y written once.
#pragma once

#include "cpu/core/qepilogue_types.h"
#include "cuda/primitives/launched.h"

namespace mvit::cuda {

struct QDepthwiseConv2dProblem {
    int64_t batch, height, width, channels;
    int stride;
    const uint8_t* x;  // the channels of a pixel are contiguous; strides in bytes
    int64_t image_stride, row_stride, pixel_stride;
    const uint32_t*
        taps;  // [3][C]: of each column of the taps and channel, the weights of ky = 0, 1, 2 and a 0, of whole panels of channels
    const int32_t* border;  // 16 classes (cpu/ops/qconv2d.h) times whole panels of channels
    QEpilogue epilogue;     // y and residual dense: (B, ceil(H / s), ceil(W / s), C)
};

// stream: a cudaStream_t of `device`.
Launched qdepthwise_conv2d(const QDepthwiseConv2dProblem& problem, int device, void* stream);

}  // namespace mvit::cuda
