// The depthwise 3x3 filter of a slice of an inverted residual of 16-bit floats (residual_tile.cuh), on tensor cores.
//
// A tap multiplies each channel by a number of its own: a product with a diagonal matrix. 8 channels of two taps are a product's depth, so
// 16 pixels of 8 channels take four products and a half. Most of what they multiply is 0; but tensor cores have little else to do here, and
// without them each result takes 9 multiply-adds, and conversions of what they read.
//
// ldmatrix gives four matrices, 8 pixels side by side each, in the four registers that a product takes of its rows; others would have to be
// moved there first. So it reads what two taps see of a block of y, two times 8 pixels:
//
//     of each row of the hidden map, columns 0 and 1: taps 0 and 1 of one block of y, 3 and 4 of the one before it, 6 and 7 of the first
//     of each two rows, column 2: taps 2 and 5 of a block, and, one matrix of the pair, 8 of the one before it, as half of a product
//
// and with stride 1 the blocks in between have tap 2 of the first pair, 5 and 8 of the second. Thus with stride 1 each row is read three
// times, a pixel further each time, and not nine.
//
// NaN and infinities, whose product with 0 is NaN, reach the other channels of their eight. By the formula they reach all channels of y
// anyway, of the same pixels.
#pragma once

#include "cuda/ops/residual_tile.cuh"

namespace mvit::cuda {

// Taps in a slice, one channel after the other, in words, of each tap its number in the half of a word that is its place in the diagonal
// matrix, the upper one for odd channels, beside a 0. They lie in the pairs that products take: taps 0 and 1, 3 and 4, 6 and 7, 2 and 5, 5
// and 8; then two words of 0. Behind the last channel are as many words of 0.
//
// Lane l, g = l / 4 and t = l % 4, holds of column g, channel g, depths 2 t and 2 t + 1 (mma_s8.cuh): lanes with t = g / 2 have the diagonal,
// and all others read those zeros.
inline constexpr int filter_channels = 8, tap_words = 12, tap_bytes = 4 * tap_words;
inline constexpr int tap_of_word[10] = {0, 1, 3, 4, 6, 7, 2, 5, 5, 8};
inline constexpr int slice_taps_bytes = (residual_slice<f16> + 1) * tap_bytes;

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

    // finish(block, sums), of both channels of one half and then of the other. hidden: pixels `row` bytes apart, with more memory behind.
    // start: what sums begin with.
    template <int row, class Finish>
    MVIT_DEVICE void each(const uint8_t* hidden, const uint8_t* taps, const float (&start)[2], const Finish& finish) const {
        const int column = b_column(lane_);
        const bool is_diagonal = lane_ % 4 == column / 2;
        const uint8_t* words = taps + (is_diagonal ? group_ * filter_channels + column : residual_slice<T>) * tap_bytes;
        uint32_t b[tap_words];
        MVIT_UNROLL
        for (int i = 0; i < tap_words; i += 4) {
            const Sixteen some = *reinterpret_cast<const Sixteen*>(words + 4 * i);
            MVIT_UNROLL
            for (int k = 0; k < 4; ++k) b[i + k] = some.words[k];
        }

        // A lane's row of the four matrices: both halves of a block, of one tap, then of the other. Where there is no second row left, what
        // lies behind is read, and not used.
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
