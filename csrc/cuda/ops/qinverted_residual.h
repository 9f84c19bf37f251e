// Three integer layers in a row on a GPU, 1x1 convolution, depthwise 3x3, 1x1 convolution, in one launch: cpu/ops/qinverted_residual.h has
// what they compute, ops/inverted_residual.h how a block goes through a tile of y. The result is theirs one after another, bit for bit.
//
// Between the layers are bytes. Outside of the map the hidden one is its zero-point, one byte of all channels, as padding is real zeros; so
// the sums of the second layer begin with its init everywhere. (Other zero-points: mvit_kernels/ops/qinverted_residual.py takes three
// launches.) The first two layers end in curves (cpu/core/qcurve.h), in which compiled networks have SiLU, and which have steps
// (primitives/qcurve.cuh). The last layer ends as any does (qepilogue.cuh), and reads a residual from memory.
//
// Weights, `slices` (mvit_kernels/ops/qinverted_residual.py makes them): of each 64 hidden channels, one slice after the other,
//
//     numbers    rows of 64 words: taps of columns 0, 1, 2, each word those of ky = 0, 1, 2 and a 0; init and scale of the second layer;
//                init and scale of the first layer
//     expand     4 tiles of 16 columns, of each ceil(C / 32) tiles of depth 32     in the order of tensor cores (qfragments.h), 8 bits
//     reduce     ceil(N / 16) tiles of 16 columns, of each two of depth 32
//
// zeros beyond C, E and N: what such channels give meets weights of 0. At place 8 p + 2 t + i of a tile is channel 4 t + 2 p + i: what a
// lane has of both products of eight (mma_s8.cuh) are four neighbours, a word of the hidden map or four sums of y.
//
// Floor: that of ops/inverted_residual.h, of bytes; and P E (halo + 1 / s^2) curves of 8 instructions each, which are most of it.
//
// On an H200, of 128 images, one launch took 1.05 to 1.37 times as long as three of the layers' own kernels, for the shapes below
// (benchmarks/results/gpu/check-h200.json); mvit_kernels/ops/qinverted_residual.py chooses by that.
//
// What binds, counted in the machine code for sm_90a: cycles of a multiprocessor for a block's tile and 64 hidden channels,
// of its four schedulers and of its shared memory, which gives 128 bytes a cycle. In brackets the same channels of ops/inverted_residual.h,
// with all of the loop, of which a warp leaves out two of three forms of the expansion with stride 2.
//
//     C, E, N, s            instructions   shared memory
//     32, 64, 64, 1         2730 (1800)    2690 (2300)
//     64, 128, 128, 2       3330 (2570)    3580 (4220)
//     128, 256, 128, 1      3100 (2160)    3780 (4290)
//     128, 256, 256, 2      3710 (2880)    4370 (4540)
//
// 40 to 55 % of what shared memory does are lookups of curves: 32 of them take 2.2 to 2.5 cycles (maps of a network with random weights;
// 3.3 where most entries are as likely). Copies of a table, so that lanes have banks to themselves, gain little below 32 of them, which are
// 48 KB for a usual curve. Of the instructions of the third shape are curves and what writes them 52 %, products of the expansion 14 %, of
// the reduction 5 %, the rest of the filter 14 %, copies of weights 5 %, the order of the work 10 %. Tensor cores take 640 cycles of it at
// their best.
//
// The filter on tensor cores, as 16-bit maps have it (residual_filter.cuh), would take about a tenth of the third shape's instructions
// less, and some more of shared memory, where lookups bind.
#pragma once

#include "cpu/core/qepilogue_types.h"
#include "cuda/primitives/launched.h"

namespace mvit::cuda {

struct QInvertedResidualProblem {
    int64_t batch;
    int height, width, channels, hidden, columns;
    int stride;
    uint32_t padding;                            // the zero-point of the hidden map, four times
    const uint8_t* x;                            // (B, H, W, C), dense
    const uint8_t* slices;                       // aligned to 16 bytes
    const int16_t *expand_curve, *filter_curve;  // as mvit_kernels/ops/qcurve.py makes them, with steps
    QEpilogue reduce;                            // y and residual dense: (B, ceil(H / s), ceil(W / s), N)
};

// Bytes of shared memory that a block needs; 0 where there is no kernel for so many columns.
int qinverted_residual_shared(int channels, int columns, int stride);

// stream: a cudaStream_t of `device`.
Launched qinverted_residual(const QInvertedResidualProblem& problem, int device, void* stream);

}  // namespace mvit::cuda
