// The depthwise 3x3 filter of a slice of an inverted residual of 16-bit floats (residual_tile.cuh), on tensor cores.
//
// A tap multiplies each channel by a number of its own: a product with a diagonal matrix. 8 channels of two taps are a product's depth, so
// 16 pixels of 8 channels take four products and a half. Most of what they multiply is 0; but tensor cores have little else to do here, and
// without them each result takes 9 multiply-adds, and conversions of what they read.
//
// ldmatrix gives four matrices, 8 pixels side by side each, in the four registers that a product takes of its rows; others would have to be
// moved there first. So what is read at once is what two taps see of a block of y, 16 pixels: with stride 1 a row,
//
//     columns 0 and 1 of row r of the hidden map            taps 0 and 1 of y = r; 3 and 4 of y = r - 1; 6 and 7 of y = r - 2
//     column 2 of rows r and r + 1, r even                  taps 2 and 5 of y = r; 5 and 8 of y = r - 1
//       one of the two rows, half of a product              tap 8 of y = r - 2; tap 2 of y = r + 1
//
// so that each row is read three times, a pixel further each time, and not nine. With stride 2 a block is two rows of 8 pixels, two apart.
//
// NaN and infinities, whose product with 0 is NaN, reach the other channels of their eight. By the formula they reach all channels of y
// anyway, of the same pixels; but what would be an infinity there is NaN here.
#pragma once

#include "cuda/ops/residual_tile.cuh"
#include "cuda/primitives/dot4.cuh"

namespace mvit::cuda {

// Taps in a slice, in words of two: of each channel 0 and 1, 3 and 4, 6 and 7, 2 and 5; behind those of all channels, of each 8 and a 0.
inline constexpr int filter_channels = 8, tap_quads_bytes = 16 * residual_slice<f16>;
inline constexpr int slice_taps_bytes = tap_quads_bytes + 4 * residual_slice<f16>;

template <class T, class Tile>
class ResidualFilter {
  public:
    static constexpr int groups = residual_slice<T> / filter_channels, teams = residual_warps / groups;  // of channels; of rows of y
    static constexpr int height = Tile::height / teams, blocks = height * Tile::width / 16;              // a team's
    static_assert(Tile::stride == 1 ? Tile::width == 16 : Tile::width == 8 && height == 4);

    MVIT_DEVICE explicit ResidualFilter(uint32_t thread)
        : lane_(static_cast<int>(thread % warp_size)),
          group_(static_cast<int>(thread / warp_size % groups)),
          y_(static_cast<int>(thread / warp_size / groups * height)) {}

    // Of this lane's sums: the first of two channels, and the pixel of y in either half of a block. With stride 1 a block is a row, with
    // stride 2 two rows two apart.
    MVIT_DEVICE int channel() const { return group_ * filter_channels + c_column(lane_, 0); }
    MVIT_DEVICE int pixel(int block, int half) const {
        const int inside = c_row(lane_, 0);
        return (y_ + block) * Tile::width + inside + half * (Tile::stride == 1 ? 8 : 2 * Tile::width);
    }

    // finish(block, sums), of both channels of one half and then of the other. hidden: 16 Tile::seen_blocks pixels,
    // `row` bytes apart. start: what sums begin with.
    template <int row, class Finish>
    MVIT_DEVICE void each(const uint8_t* hidden, const uint8_t* taps, const float (&start)[2], const Finish& finish) const {
        // Lane l, g = l / 4 and t = l % 4, holds of column g, channel g, depths 2 t and 2 t + 1 (mma_s8.cuh). So lanes with t = g / 2 have
        // the diagonal, in the upper half of a word where g is odd, beside a 0; all others have zeros, as byte 4 is.
        const int own = b_column(lane_), channel = group_ * filter_channels + own;
        const bool is_diagonal = lane_ % 4 == own / 2;
        const uint32_t first_of_two = !is_diagonal ? 0x4444 : own % 2 ? 0x1044 : 0x4410;
        const uint32_t second_of_two = !is_diagonal ? 0x4444 : own % 2 ? 0x3244 : 0x4432;
        const Sixteen quad = *reinterpret_cast<const Sixteen*>(taps + 16 * channel);
        const uint32_t last = *reinterpret_cast<const uint32_t*>(taps + tap_quads_bytes + 4 * channel);
        uint32_t b[10];  // in the pairs that products take: taps 0 and 1, 3 and 4, 6 and 7, 2 and 5, 5 and 8
        MVIT_UNROLL
        for (int i = 0; i < 4; ++i) {
            b[2 * i] = permute(quad.words[i], 0, first_of_two);
            b[2 * i + 1] = permute(quad.words[i], 0, second_of_two);
        }
        b[8] = permute(quad.words[3], 0, second_of_two);
        b[9] = permute(last, 0, first_of_two);

        // A lane's row of the four matrices: both halves of a block, of one tap, then of the other. Where there is no second row left, what
        // lies behind is read, which is of no tile's pixels, and not used.
        const int half = Tile::stride == 1 ? 8 : Tile::place(4, 0);
        const uint8_t* const from =
            hidden + (Tile::place(y_ * Tile::stride, 0) + lane_ % 8 + lane_ / 8 % 2 * half) * row + 2 * filter_channels * group_;
        const uint8_t* const first_two = from + lane_ / 16 * (Tile::place(0, 1) * row);
        const uint8_t* const third = from + (Tile::place(0, 2) + lane_ / 16 * Tile::place(1, 0)) * row;
        constexpr int rows = (blocks - 1) * Tile::stride + 3;
        const float first[4] = {start[0], start[1], start[0], start[1]};
        uint32_t two[rows][4], pair[(rows + 1) / 2][4];
        MVIT_UNROLL
        for (int block = 0; block < blocks; ++block) {
            const int y = block * Tile::stride;
            MVIT_UNROLL
            for (int i = block == 0 ? 0 : 3 - Tile::stride; i < 3; ++i) {
                ldmatrix_x4(two[y + i], first_two + Tile::place(y + i, 0) * row);
                if ((y + i) % 2 == 0) ldmatrix_x4(pair[(y + i) / 2], third + Tile::place(y + i, 0) * row);
            }
            float sums[4];
            mma(sums, two[y], b[0], b[1], first, T{});
            mma(sums, two[y + 1], b[2], b[3], T{});
            mma(sums, two[y + 2], b[4], b[5], T{});
            if (y % 2 == 0) {
                mma(sums, pair[y / 2], b[6], b[7], T{});
                mma_half(sums, pair[y / 2 + 1][0], pair[y / 2 + 1][1], b[9], T{});
            } else {
                mma_half(sums, pair[y / 2][2], pair[y / 2][3], b[6], T{});
                mma(sums, pair[y / 2 + 1], b[8], b[9], T{});
            }
            finish(block, sums);
        }
    }

  private:
    int lane_, group_, y_;
};

}  // namespace mvit::cuda
