// Blocks of pixels of a convolution; formula in ops/conv2d.h. Compiled once an ISA.
#include "cpu/ops/conv2d.h"

#include "cpu/core/epilogue.h"
#include "cpu/core/isa.h"
#include "cpu/core/rows.h"

namespace mvit {

extern const TileKernels MVIT_ISA_SYMBOL(tile);

namespace {

inline void clear(int64_t n, bf16* to) { __builtin_memset(to, 0, static_cast<size_t>(n) * sizeof(bf16)); }
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
inline void gather_taps(const Conv2dProblem& p, int64_t image, int64_t i, int64_t j, Operand<T>* to) {
    const int64_t top = i * p.stride - p.kernel / 2, left = j * p.stride - p.kernel / 2, channels = p.x.channels + p.second.channels;
    const Taps across = taps_inside(left, p.kernel, p.width);
    const bool runs = p.second.channels == 0 && p.x.pixel == channels;  // neighbouring pixels are one run of memory
    const auto load_map = [&](const InputMap& map, int64_t y, int64_t x, int64_t n, Operand<T>* into) {
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

// One vector of channels of `count` output pixels by planes: `from` is where the first one's taps begin in the first of the padded rows.
template <int stride, Activation activation, int count, class T>
inline void planes_vector(const float* from, int64_t rows, int64_t row_stride, const float* weight, F32 bias, int lanes, const T* residual,
                          T* y, int64_t columns) {
    F32 sum[count];
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i) sum[i] = bias;
    for (int64_t row = 0; row < rows; ++row, from += row_stride)
#pragma GCC unroll 3
        for (int kx = 0; kx < 3; ++kx, weight += panel) {
            const F32 w = F32::load(weight);
#pragma GCC unroll 8
            for (int i = 0; i < count; ++i) sum[i] = fma(F32::all(from[i * stride + kx]), w, sum[i]);
        }
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i) {
        F32 value = activate<activation, T>(sum[i]);
        if (residual) value = value + load(residual + i * columns, lanes, 0.0f);
        store(value, y + i * columns, lanes);
    }
}

// One output row of a 3x3 convolution of planes. Pixels are broadcast from where they lie, so nothing is gathered: the rows are copied
// once, as float32 with their padding.
template <class T, int stride>
void planes_row(const Conv2dRow& r) {
    const Conv2dProblem& p = r.problem;
    const int64_t width = (p.width - 1) / stride + 1, row_stride = conv2d_padded(p), rows = 3 * p.x.channels;
    float* to = r.scratch;
    for (int64_t c = 0; c < p.x.channels; ++c)
        for (int64_t ky = 0; ky < 3; ++ky, to += row_stride) {
            const int64_t y = r.row * stride + ky - 1;
            to[0] = to[p.width + 1] = 0.0f;
            if (y < 0 || y >= p.height) {
                clear(p.width, to + 1);
            } else {
                load_row(static_cast<const T*>(p.x.data) + r.image * p.x.image + c * p.x.channel + y * p.x.row, p.width, to + 1);
            }
        }
    const int64_t first = (r.image * ((p.height - 1) / stride + 1) + r.row) * width * p.columns;
    T* y = static_cast<T*>(p.y) + first;
    const T* residual = p.residual ? static_cast<const T*>(p.residual) + first : nullptr;
    with_activation(p.activation, [&]<Activation act>() {
        for (int64_t x = 0; x < width;) {
            const int64_t count = width - x < 8 ? 1 : 8;
            for (int64_t n = 0; n < p.columns; n += F32::width) {
                const float* weight = static_cast<const float*>(p.weight) + n / panel * panel * 3 * rows + n % panel;
                const auto run = [&]<int pixels>() {
                    const int64_t at = x * p.columns + n;
                    planes_vector<stride, act, pixels>(r.scratch + x * stride, rows, row_stride, weight, F32::load(p.bias + n),
                                                       lanes_left(p.columns, n), residual ? residual + at : nullptr, y + at, p.columns);
                };
                count == 8 ? run.template operator()<8>() : run.template operator()<1>();
            }
            x += count;
        }
    });
}

template <class T>
void block(const Conv2dBlock& b) {
    const Conv2dProblem& p = b.problem;
    using O = Operand<T>;
    const int64_t depth = conv2d_depth(p), stride = scratch_stride<O>(depth);
    O* const gathered = reinterpret_cast<O*>(b.scratch);
    const int64_t height = (p.height - 1) / p.stride + 1, width = (p.width - 1) / p.stride + 1;
    for (int64_t done = 0; done < b.pixels;) {  // a stretch of one output row at a time
        const int64_t pixel = b.first + done, row = pixel / width, begin = pixel % width;
        const int64_t end = width - begin < b.pixels - done ? width : begin + b.pixels - done;
        O* to = gathered + done * stride;
        for (int64_t j = begin; j < end; ++j, to += stride) {
            gather_taps<T>(p, row / height, row % height, j, to);
            if (packed_depth<O>(depth) > depth) to[depth] = O{};
        }
        done += end - begin;
    }
    const T* residual = static_cast<const T*>(p.residual);
    multiply_panels<T>(MVIT_ISA_SYMBOL(tile), gathered, stride, b.pixels, depth, static_cast<const O*>(p.weight), p.bias, p.columns,
                       b.panel_begin, b.panel_end, p.activation, residual ? residual + b.first * p.columns : nullptr, p.columns,
                       static_cast<T*>(p.y) + b.first * p.columns, p.columns, b.scratch + b.pixels * scratch_stride(depth));
}

}  // namespace

extern const Conv2dKernels MVIT_ISA_SYMBOL(conv2d);
const Conv2dKernels MVIT_ISA_SYMBOL(conv2d) = {
    {block<float>, block<bf16>, block<f16>},
    {{planes_row<float, 1>, planes_row<float, 2>}, {planes_row<bf16, 1>, planes_row<bf16, 2>}, {planes_row<f16, 1>, planes_row<f16, 2>}},
};

}  // namespace mvit
