// What pixels of a convolution see, as rows of a product (ops/qconv2d.h).
#pragma once

#include "cuda/ops/qconv2d.h"
#include "cuda/ops/qproduct.cuh"
#include "cuda/primitives/alignment.h"
#include "cuda/primitives/divisor.h"

namespace mvit::cuda {

// Of the chunks of both.
inline int map_alignment(const QMap& x, const QMap& second) {
    const auto of = [](const QMap& map) { return map.channels ? alignment_of(map.data, map.image, map.row, map.pixel) : 16; };
    return of(x) < of(second) ? of(x) : of(second);
}

inline constexpr int64_t padded_panels(int64_t columns) { return (columns + 15) / 16 * 16; }

// From a pixel to the next one, wherever that is: axes of one pixel have any stride.
inline int64_t pixel_step(const QConv2dProblem& p) { return p.width > 1 ? p.x.pixel : p.height > 1 ? p.x.row : p.x.image; }
// Whether pixels are the rows of a matrix, and which.
inline bool pixels_are_rows(const QConv2dProblem& p) {
    const int64_t row = p.width * pixel_step(p);
    const bool dense = (p.height == 1 || p.x.row == row) && (p.batch == 1 || p.x.image == p.height * row);
    return p.kernel == 1 && p.stride == 1 && p.second.channels == 0 && dense;
}
inline QRows pixel_rows(const QConv2dProblem& p) {
    return {p.x.data, p.batch * p.height * p.width, pixel_step(p), p.x.channels, alignment_of(p.x.data, pixel_step(p))};
}

class QTaps {
  public:
    struct Row {
        int64_t image;
        int y, x;  // of the first tap
        bool exists;
    };

    MVIT_BOTH QTaps(const QConv2dProblem& p, int alignment)
        : alignment(alignment),
          x_(p.x),
          second_(p.second),
          border_(p.kernel == 3 ? p.border : nullptr),
          border_stride_(padded_panels(p.weight.columns)),
          batch_(p.batch),
          height_(static_cast<int>(p.height)),
          width_(static_cast<int>(p.width)),
          out_height_((static_cast<int>(p.height) - 1) / p.stride + 1),
          out_width_((static_cast<int>(p.width) - 1) / p.stride + 1),
          kernel_(p.kernel),
          stride_(p.stride),
          x_chunks_(static_cast<int>(ceil_divide(p.x.channels, chunk_bytes))),
          tap_chunks_(x_chunks_ + static_cast<int>(ceil_divide(p.second.channels, chunk_bytes))),
          small_(rows() < INT32_MAX - 1024),  // with those of the last block that do not exist
          by_image_(static_cast<uint32_t>(small_ ? out_height_ * out_width_ : 1)),
          by_line_(static_cast<uint32_t>(out_width_)) {}

    MVIT_BOTH int64_t rows() const { return batch_ * out_height_ * out_width_; }

    MVIT_DEVICE Row row(int64_t m, int = 0) const {
        const int64_t pixels = int64_t{out_height_} * out_width_;
        const int64_t image = small_ ? by_image_(static_cast<uint32_t>(m)) : m / pixels;
        const auto pixel = static_cast<uint32_t>(m - image * pixels);
        const int y = static_cast<int>(by_line_(pixel)), x = static_cast<int>(pixel) - y * out_width_;
        return {image, y * stride_ - kernel_ / 2, x * stride_ - kernel_ / 2, image < batch_};
    }

    MVIT_DEVICE void copy(uint8_t* to, const Row& row, int c) const { load_chunk(to, chunk(row, c), alignment); }

    // What the sums of a row begin with; null: what the channels say.
    static constexpr bool has_init = true, one_stage = false;
    MVIT_DEVICE const int32_t* init(int64_t m) const {
        if (!border_) return nullptr;
        const Row at = row(m);
        const int rows = (at.y < 0 ? 1 : 0) + (at.y + 2 >= height_ ? 2 : 0), columns = (at.x < 0 ? 1 : 0) + (at.x + 2 >= width_ ? 2 : 0);
        return border_ + (4 * rows + columns) * border_stride_;
    }

    int alignment;  // of the chunks: 16, 4 or 1

  private:
    MVIT_DEVICE Chunk chunk(const Row& row, int c) const {
        const int tap = c / tap_chunks_, inside = c % tap_chunks_;
        const int y = row.y + tap / kernel_, x = row.x + tap % kernel_;
        const bool of_x = inside < x_chunks_;
        const QMap& map = of_x ? x_ : second_;
        const int first = (of_x ? inside : inside - x_chunks_) * chunk_bytes;
        // Also false behind the last tap.
        if (!row.exists || tap >= kernel_ * kernel_ || y < 0 || y >= height_ || x < 0 || x >= width_) return {x_.data, 0};
        const int64_t left = map.channels - first;
        return {map.data + row.image * map.image + y * map.row + x * map.pixel + first,
                static_cast<int>(left < chunk_bytes ? left : chunk_bytes)};
    }

    QMap x_, second_;
    const int32_t* border_;
    int64_t border_stride_, batch_;
    int height_, width_, out_height_, out_width_, kernel_, stride_, x_chunks_, tap_chunks_;
    bool small_;
    Divisor by_image_, by_line_;
};

}  // namespace mvit::cuda
