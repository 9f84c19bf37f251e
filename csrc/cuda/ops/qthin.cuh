// What pixels of a 3x3 convolution of few channels see, as rows of a product (ops/qconv2d.h).
#pragma once

#include "cuda/ops/qtaps.cuh"

namespace mvit::cuda {

// The taps of a line of the map are one run of 3 C bytes, which is what a chunk has: three chunks, a single stage, where a chunk for each
// tap would make three of mostly zeros. A run may begin at any byte: it is cut out of the words that have it, of which none may begin
// before the map or end behind it. What follows the run in its chunk meets zeros of the weight, as does the fourth chunk, which is not
// written.
//
// Pixels are not copied beside the computation, as there is no depth to go through: other blocks are multiplied meanwhile.
class QThinTaps {
  public:
    using Row = QTaps::Row;

    MVIT_BOTH explicit QThinTaps(const QConv2dProblem& p)
        : taps_(p, 1),
          x_(p.x),
          height_(static_cast<int>(p.height)),
          width_(static_cast<int>(p.width)),
          end_(p.x.data + (p.batch - 1) * p.x.image + (p.height - 1) * p.x.row + (p.width - 1) * p.x.pixel + p.x.channels) {}

    MVIT_BOTH int64_t rows() const { return taps_.rows(); }
    MVIT_DEVICE Row row(int64_t m, int) const { return taps_.row(m); }
    static constexpr bool has_init = true, one_stage = true;
    MVIT_DEVICE const int32_t* init(int64_t m) const { return taps_.init(m); }

    MVIT_DEVICE void copy(uint8_t* to, const Row& row, int c) const {
        const int y = row.y + c, channels = static_cast<int>(x_.channels);
        if (c >= 3) return;
        Quad<uint32_t> run{};
        if (row.exists && y >= 0 && y < height_) {
            // The bytes of the run that are of the map.
            const int first = row.x < 0 ? channels : 0, last = (row.x + 3 > width_ ? width_ - row.x : 3) * channels;
            const uint8_t* from = x_.data + row.image * x_.image + y * x_.row + row.x * x_.pixel;
            const int before = static_cast<int>(reinterpret_cast<uintptr_t>(from) % 4), words = (before + last + 3) / 4;
            const uint8_t* begin = from - before;
            if (x_.pixel == channels && begin >= x_.data && begin + 4 * words <= end_) {
                uint32_t word[5] = {};
                MVIT_UNROLL
                for (int i = 0; i < 5; ++i)
                    if (i < words) word[i] = *reinterpret_cast<const uint32_t*>(begin + 4 * i);
                MVIT_UNROLL
                for (int i = 0; i < 4; ++i) run.v[i] = static_cast<uint32_t>((uint64_t{word[i + 1]} << 32 | word[i]) >> (8 * before));
                if (first > 0 || last < 3 * channels) {
                    MVIT_UNROLL
                    for (int i = 0; i < 4; ++i) run.v[i] &= from_byte(first - 4 * i) & ~from_byte(last - 4 * i);
                }
            } else {
                *reinterpret_cast<Quad<uint32_t>*>(to) = run;
                MVIT_ROLLED
                for (int i = first; i < last; ++i) to[i] = from[i / channels * x_.pixel + i % channels];
                return;
            }
        }
        *reinterpret_cast<Quad<uint32_t>*>(to) = run;
    }

  private:
    // Ones from byte n of a word on.
    MVIT_DEVICE static uint32_t from_byte(int n) { return n <= 0 ? ~uint32_t{0} : n >= 4 ? 0 : ~uint32_t{0} << (8 * n); }

    QTaps taps_;
    QMap x_;
    int height_, width_;
    const uint8_t* end_;
};

}  // namespace mvit::cuda
