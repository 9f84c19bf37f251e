// What an integer 3x3 depthwise convolution keeps of its weights: mvit_kernels/ops/qdepthwise_conv2d.py writes it, qdepthwise.h reads it.
#pragma once

#include <cstdint>

namespace mvit {

// 64 channels, zeros beyond the last one. Channel 16 l + 4 q + j (l, q and j below 4) has position 16 q + 4 l + j: interleaving bytes and
// words inside 128-bit lanes leaves the channels of a vector q in this order, and packing them again restores their own. Whatever the
// width of the vectors: the first two quarters of a vector are the first 32 channels.
struct QDepthwiseBlock {
    int8_t weight[3][64][4];       // [kx][position][ky], and a zero: what meets the three bytes of a column
    int32_t init[4][4][64];        // [rows outside][columns outside][position]: what sums begin with, see below
    float scale[64], inverse[64];  // [position]: as QChannels has them; for results by narrow steps, as what follows
    int16_t zero_point[64];        // of channel 16 l + 8 h + i (i below 8) at 32 h + 8 l + i
    uint8_t low[64], high[64];     // [channel]: low + zero_point and high + zero_point
};
static_assert(sizeof(QDepthwiseBlock) == 5632);

inline constexpr int qdepthwise_block = 64;  // channels

// Taps outside of the map are real zeros, the zero-point z. They are left out of the sum, and init gives back what it takes away for them:
//
//     init[rows][columns][c] = bias[c] - z[c] sum_{taps inside} w[c, tap]       modulo 2^32, for any int32 z
//
// rows: 1 if the first row of the window is outside, plus 2 if the last one is; columns likewise.
inline constexpr int outside(bool first, bool last) { return (first ? 1 : 0) + (last ? 2 : 0); }

}  // namespace mvit
