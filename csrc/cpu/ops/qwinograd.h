// A 3x3 convolution of bytes with stride 1 by minimal filtering, F(4 x 4, 3 x 3) (Winograd 1980; Lavin, Gray, arXiv 1509.09308), exact: the
// sums are those of ops/qconv2d.h, with 36 multiplications for 4 x 4 pixels where 144 are the definition.
//
// A tile of 4 x 4 pixels sees 6 x 6 of the input, d. With g the 3 x 3 taps of one input and output channel,
//
//     y = A^T [(G g G^T) * (B^T d B)] A,   * by elements, summed over the input channels
//
// where the rows of G have the denominators 4, 6, 6, 24, 24, 1. Without them G is integer,
//
//           [4  0 -5  0  1  0]        [1  0  0]
//           [0 -4 -4  1  1  0]        [1  1  1]           [6 -4 -4  1  1  0]   24 y0
//     B^T = [0  4 -4 -1  1  0]    G = [1 -1  1]    A^T  = [0 -2  2  1 -1  0]   12 y1
//           [0 -2 -1  2  1  0]        [1  2  4]           [0 -1 -1  1  1  0]    6 y2
//           [0  2 -1 -2  1  0]        [1 -2  4]           [0 -1  1  2 -2  6]    6 y3
//           [0  4  0 -5  0  1]        [0  0  1]
//
// and what comes out is y times 9 and a power of two: 64 or less. Everything is computed modulo 2^32. Multiplying by the inverse of 9 there
// is dividing by 9, and a shift divides the rest, which is exact where |64 y| < 2^31. Bytes are taken minus 128, which init makes up for,
// so |y| <= 128 sum |w| and the condition is sum |w| < 2^18 of every output channel: K up to 2064 whatever the weights, and much more with
// weights that are not all at their ends. B^T d B is at most 100 * 128 in size and G g G^T 49 * 127: both are int16, of which two products
// are one instruction on 32 bits.
//
// Floor: 36 / 144 of the multiply-adds of the direct sum, at half the rate of bytes: half the time. Transforms add about 400 C / W and
// 470 N / W instructions a tile, W = 32 and 16 lanes, to its 36 C N / 32.
#pragma once

#include "cpu/ops/qconv2d.h"

namespace mvit {

inline constexpr int qtile_positions = 36;

Status check_qwinograd(const QConv2dProblem& problem);

// Of what check_qwinograd finds ok.
Status qwinograd(const QConv2dProblem& problem, int threads);

// Pairs of input channels: the depth of each of the 36 products.
inline int64_t qwinograd_pairs(const QConv2dProblem& p) { return (p.x.channels + p.second.channels + 1) / 2; }

inline int64_t qwinograd_tiles(int64_t size) { return (size + 3) / 4; }

// --- what isa/qwinograd.cpp implements: a block of tiles, counted through all images, times a range of panels ---

struct QWinogradBlock {
    const QConv2dProblem* problem;
    int64_t first, tiles, panel_begin, panel_end;
    void* scratch;
};

struct QWinogradKernels {
    void (*block)(const QWinogradBlock&);
    int64_t fewest_channels;  // of each input: whole vectors, the last one overlapping the one before
};

inline int64_t qwinograd_scratch(const QConv2dProblem& p, int64_t tiles) {
    const int64_t rows = tiles * qtile_positions * (qwinograd_pairs(p) * 4 + qgroup * qpanel * 4);
    return rows + 17 * qgroup * qpanel * 4 + round_up(p.x.channels + p.second.channels, 64) + 64;
}

}  // namespace mvit
