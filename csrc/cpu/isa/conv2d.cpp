// A block of pixels of a convolution times a range of panels; formula in ops/conv2d.h. Compiled once an ISA.
#include "cpu/ops/conv2d.h"

#include "cpu/core/epilogue.h"
#include "cpu/core/isa.h"
#include "cpu/core/rows.h"

namespace mvit {

extern const TileKernels MVIT_ISA_SYMBOL(tile);

namespace {

inline void clear(int64_t n, float* to) {
    each_vector_of(n, [&](int64_t i, int lanes) { store(F32::all(0.0f), to + i, lanes); });
}

// The taps [begin, end) of a row of `kernel` lie inside a map of `size` when the first is at `at`.
struct Taps {
    int64_t begin, end;
};
inline Taps taps_inside(int64_t at, int64_t kernel, int64_t size) { return {at < 0 ? -at : 0, at + kernel > size ? size - at : kernel}; }

// What the pixel (i, j) of an image sees, by taps: (ky, kx, c).
template <class T>
inline void gather_taps(const Conv2dProblem& p, int64_t image, int64_t i, int64_t j, float* to) {
    const int64_t top = i * p.stride - p.kernel / 2, left = j * p.stride - p.kernel / 2, channels = p.x.channels + p.second.channels;
    const Taps across = taps_inside(left, p.kernel, p.width);
    const bool runs = p.second.channels == 0 && p.x.pixel == channels;  // neighbouring pixels are one run of memory
    const auto load_map = [&](const InputMap& map, int64_t y, int64_t x, int64_t n, float* into) {
        load_row(static_cast<const T*>(map.data) + image * map.image + y * map.row + x * map.pixel, n, into);
    };
    for (int64_t ky = 0; ky < p.kernel; ++ky, to += p.kernel * channels) {
        const int64_t y = top + ky;
        if (y < 0 || y >= p.height) {
            clear(p.kernel * channels, to);
            continue;
        }
        clear(across.begin * channels, to);
        if (runs) {
            load_map(p.x, y, left + across.begin, (across.end - across.begin) * channels, to + across.begin * channels);
        } else {
            for (int64_t kx = across.begin; kx < across.end; ++kx) {
                load_map(p.x, y, left + kx, p.x.channels, to + kx * channels);
                if (p.second.channels > 0) load_map(p.second, y, left + kx, p.second.channels, to + kx * channels + p.x.channels);
            }
        }
        clear((p.kernel - across.end) * channels, to + across.end * channels);
    }
}

// The same by planes: (c, ky, kx), for pixels [j, end) of row i; rows of `to` are `stride` apart.
template <class T>
inline void gather_planes(const Conv2dProblem& p, int64_t image, int64_t i, int64_t j, int64_t end, float* to, int64_t stride) {
    const int64_t half = p.kernel / 2;
    const auto inside = [&](int64_t x) { return x * p.stride >= half && x * p.stride + half < p.width; };
    for (int64_t c = 0; c < p.x.channels; ++c)
        for (int64_t ky = 0; ky < p.kernel; ++ky, to += p.kernel) {
            const int64_t y = i * p.stride + ky - half;
            const T* row = static_cast<const T*>(p.x.data) + image * p.x.image + c * p.x.channel + y * p.x.row;
            float* at = to;
            for (int64_t x = j; x < end; ++x, at += stride) {
                const int64_t left = x * p.stride - half;
                if (y < 0 || y >= p.height) {
                    clear(p.kernel, at);
                } else if (inside(x)) {
                    load_row(row + left, p.kernel, at);
                } else {
                    const Taps taps = taps_inside(left, p.kernel, p.width);
                    clear(p.kernel, at);
                    load_row(row + left + taps.begin, taps.end - taps.begin, at + taps.begin);
                }
            }
        }
}

template <class T>
void block(const Conv2dBlock& b) {
    const Conv2dProblem& p = b.problem;
    const int64_t depth = conv2d_depth(p), stride = scratch_stride(depth);
    const int64_t height = (p.height - 1) / p.stride + 1, width = (p.width - 1) / p.stride + 1;
    for (int64_t done = 0; done < b.pixels;) {  // a stretch of one output row at a time
        const int64_t pixel = b.first + done, row = pixel / width, begin = pixel % width;
        const int64_t end = width - begin < b.pixels - done ? width : begin + b.pixels - done;
        float* to = b.scratch + done * stride;
        if (p.planes) {
            gather_planes<T>(p, row / height, row % height, begin, end, to, stride);
        } else {
            for (int64_t j = begin; j < end; ++j, to += stride) gather_taps<T>(p, row / height, row % height, j, to);
        }
        done += end - begin;
    }
    const T* residual = static_cast<const T*>(p.residual);
    multiply_panels<T>(MVIT_ISA_SYMBOL(tile), b.scratch, stride, b.pixels, depth, p.weight, p.bias, p.columns, b.panel_begin, b.panel_end,
                       p.activation, residual ? residual + b.first * p.columns : nullptr, p.columns,
                       static_cast<T*>(p.y) + b.first * p.columns, p.columns, b.scratch + b.pixels * stride);
}

}  // namespace

extern const Conv2dKernels MVIT_ISA_SYMBOL(conv2d);
const Conv2dKernels MVIT_ISA_SYMBOL(conv2d) = {{block<float>, block<bf16>, block<f16>}};

}  // namespace mvit
