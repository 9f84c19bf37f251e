// Rows of channels-last pixels in which every channel stands several times: to[i, c] = from[i, c / times], whatever an element is. What a
// depthwise convolution with several filters for each channel reads (MobileNet's channel multiplier), a few rows at a time.
//
// 16 bytes of a pixel of `to` come from less than 16 of `from` that lie side by side, by one byte shuffle: a load, a shuffle and a store.
#pragma once

#include "cpu/core/borrowed.h"
#include "cpu/core/scratch.h"
#include "cpu/core/types.h"

namespace mvit {

struct RepeatChunk {
    int64_t offset;     // bytes from the beginning of a pixel of `from`
    uint8_t order[16];  // which of the bytes there
};

// Throws std::bad_alloc.
class RepeatChannels {
  public:
    // channels: of `to`, a multiple of times; element: bytes of one.
    RepeatChannels(int64_t channels, int64_t times, int64_t element);

    // A row of `pixels`; from one pixel of `from` to the next are from_stride bytes, and `to` is dense, with 16 bytes to spare behind it.
    void operator()(const void* from, int64_t from_stride, int64_t pixels, void* to) const;

  private:
    const int64_t from_bytes_, to_bytes_;  // of a pixel
    const Borrowed<RepeatChunk> chunks_;
};

// Of output rows whose `stride` times as many input rows are `row_bytes` each, once repeated: as many as leave them in the second cache.
inline int64_t rows_of_band(int64_t row_bytes, int64_t stride) {
    constexpr int64_t bytes = 160 * 1024;
    const int64_t rows = (bytes / (row_bytes > 0 ? row_bytes : 1) - 2) / stride;
    return rows < 1 ? 1 : rows < 16 ? rows : 16;
}

// How a convolution with several filters for each channel reads: body(image, row, rows) for every output row of every image of `height`
// input rows, a band of them a task; rows: those above, at and below its centre, repeated, or null outside of the map. from(image, y): an
// input row. Throws std::bad_alloc.
template <class From, class Body>
void each_repeated_row(const RepeatChannels& repeat, int64_t batch, int64_t height, int64_t width, int64_t stride, int64_t from_stride,
                       int64_t row_bytes, int threads, const From& from, const Body& body) {
    const int64_t out_height = (height - 1) / stride + 1, band = rows_of_band(row_bytes, stride);
    const int64_t bands = (out_height + band - 1) / band, scratch_bytes = (band * stride + 2) * row_bytes + 64;
    parallel_tasks(batch * bands, 4 * batch * height * row_bytes, scratch_bytes / 4 + 1, threads, [&](int64_t task, float* scratch) {
        const int64_t image = task / bands, begin = task % bands * band, end = begin + band < out_height ? begin + band : out_height;
        const int64_t first = begin * stride > 0 ? begin * stride - 1 : 0;
        const int64_t last = (end - 1) * stride + 2 < height ? (end - 1) * stride + 2 : height;
        char* rows = reinterpret_cast<char*>(scratch);
        for (int64_t y = first; y < last; ++y) repeat(from(image, y), from_stride, width, rows + (y - first) * row_bytes);
        for (int64_t row = begin; row < end; ++row) {
            const void* taps[3];
            for (int64_t ky = 0; ky < 3; ++ky) {
                const int64_t y = row * stride + ky - 1;
                taps[ky] = y >= 0 && y < height ? rows + (y - first) * row_bytes : nullptr;
            }
            body(image, row, taps);
        }
    });
}

// --- what isa/repeat_channels.cpp implements ---

struct RepeatRow {
    const uint8_t* from;
    int64_t from_stride, from_bytes;
    const RepeatChunk* chunks;
    int64_t count;  // of chunks
    uint8_t* to;
    int64_t to_bytes, pixels;
};

struct RepeatChannelsKernels {
    void (*row)(const RepeatRow&);
};

}  // namespace mvit
