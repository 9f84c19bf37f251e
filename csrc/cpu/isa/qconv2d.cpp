// Blocks of rows of a convolution of bytes; formula in ops/qconv2d.h. Compiled once an ISA.
#include "cpu/ops/qconv2d.h"

#include <cstring>

#include "cpu/core/isa.h"
#include "cpu/core/qepilogue.h"
#include "cpu/core/qtile_amx.h"

namespace mvit {

extern const QTileKernels MVIT_ISA_SYMBOL(qtile);

namespace {

constexpr int64_t most_pixels = 96, whole_tiles = 12;  // gathered at once; what tiles of the usual weights divide
constexpr int64_t gathered_bytes = 96 * 1024;          // of them: a part of the second cache
constexpr int64_t chunk = 64;                          // bytes: see gather_windows

// Where everything is in the scratch memory of a block.
struct Layout {
    int64_t channels, depth;         // depth: a multiple of 4, with weights of 0 beyond the true one
    int64_t line, lines;             // bytes from line to line of the padded map, and of all lines
    int64_t pixels, gathered, init;  // at once, bytes of their rows and of their initial sums
    bool windows;                    // rows are read where they lie in the lines, and nothing is gathered
};

inline Layout layout(const QConv2dProblem& p, int64_t rows) {
    const int64_t channels = p.x.channels + p.second.channels, depth = round_up(p.weight.depth, 4);
    const int64_t width = qconv2d_size(p, p.width), all = rows * width;
    const int64_t line = p.kernel == 3 ? round_up((p.width + 2) * channels, 64) : 0, count = (rows - 1) * p.stride + 3;
    const int64_t fitting = gathered_bytes / (depth + 1) / whole_tiles * whole_tiles;
    const int64_t most = fitting < 2 * whole_tiles ? 2 * whole_tiles : fitting < most_pixels ? fitting : most_pixels;
    const bool windows = p.kernel == 3 && tiles_take_windows(width, 3 * channels);
    const int64_t parts = (all + most - 1) / most, pixels = windows ? all : round_up((all + parts - 1) / parts, whole_tiles);
    const int64_t init = p.border ? pixels * qpanels(p.weight.columns) * qpanel * int64_t{sizeof(int32_t)} : 0;
    const int64_t gathered = windows ? 0 : round_up(pixels * depth + chunk, 64);
    return {channels, depth, line, line * count + chunk, pixels, gathered, init, windows};
}

int64_t scratch(const QConv2dProblem& p, int64_t rows) {
    const Layout l = layout(p, rows);
    return round_up(l.channels, 64) + round_up(l.lines, 64) + l.gathered + l.init + qmultiply_scratch(l.pixels, l.depth, p.weight.bits) +
           qrows_scratch(l.pixels, l.depth, p.weight.bits);
}

// Every step-th of `count` pixels of row y of the map, with its channels of both inputs side by side, `stride` bytes apart.
inline void load_pixels(const QConv2dProblem& p, int64_t image, int64_t y, int64_t column, int64_t count, int64_t step, uint8_t* to,
                        int64_t stride) {
    const auto at = [&](const QMap& map) { return map.data + image * map.image + y * map.row + column * map.pixel; };
    const uint8_t* x = at(p.x);
    if (p.second.channels == 0 && step == 1 && p.x.pixel == p.x.channels && stride == p.x.channels) {
        std::memcpy(to, x, static_cast<size_t>(count * stride));
        return;
    }
    const uint8_t* second = p.second.channels > 0 ? at(p.second) : nullptr;
    for (int64_t j = 0; j < count; ++j, to += stride, x += step * p.x.pixel) {
        std::memcpy(to, x, static_cast<size_t>(p.x.channels));
        if (!second) continue;
        std::memcpy(to + p.x.channels, second, static_cast<size_t>(p.second.channels));
        second += step * p.second.pixel;
    }
}

// Lines top, top + 1, .. of the map with a pixel of padding to the left and to the right.
inline void load_lines(const QConv2dProblem& p, const Layout& l, int64_t image, int64_t top, int64_t count, const uint8_t* padding,
                       uint8_t* to) {
    const auto pad = [&](uint8_t* pixel) { std::memcpy(pixel, padding, static_cast<size_t>(l.channels)); };
    for (int64_t y = top; y < top + count; ++y, to += l.line) {
        if (y < 0 || y >= p.height) {
            for (int64_t j = 0; j < p.width + 2; ++j) pad(to + j * l.channels);
        } else {
            pad(to);
            load_pixels(p, image, y, 0, p.width, 1, to + l.channels, l.channels);
            pad(to + (p.width + 1) * l.channels);
        }
    }
}

// Three runs of three pixels each make a row. Runs are copied in chunks, a short one as a single chunk. They may write beyond their run,
// into what the next run overwrites, and read beyond it, into the next pixel or the next line.
template <int64_t bytes, bool single>
inline void gather_windows(const uint8_t* lines, int64_t line, int64_t step, int64_t run, int64_t count, uint8_t* to, int64_t stride) {
    for (int64_t j = 0; j < count; ++j, lines += step, to += stride) {
#pragma GCC unroll 3
        for (int ky = 0; ky < 3; ++ky)
            for (int64_t i = 0; i < (single ? bytes : run); i += bytes) std::memcpy(to + ky * run + i, lines + ky * line + i, bytes);
    }
}

// Which taps of a row of three, the first one at position `at`, are outside of [0, size).
inline int64_t taps_outside(int64_t at, int64_t size) { return (at < 0 ? 1 : 0) | (at + 2 >= size ? 2 : 0); }

// What the sums of pixels [first, first + count) of a block begin with; false where it is the same of all.
inline bool initial_sums(const QConv2dBlock& b, int64_t first, int64_t count, int32_t* to) {
    const QConv2dProblem& p = *b.problem;
    const int64_t width = qconv2d_size(p, p.width), columns = qpanels(p.weight.columns) * qpanel;
    int64_t any = 0;
    for (int64_t pixel = first; pixel < first + count; ++pixel, to += columns) {
        const int64_t i = b.row + pixel / width, j = pixel % width;
        const int64_t outside = 4 * taps_outside(i * p.stride - 1, p.height) + taps_outside(j * p.stride - 1, p.width);
        std::memcpy(to, p.border + outside * columns, static_cast<size_t>(columns) * sizeof(int32_t));
        any |= outside;
    }
    return any != 0;
}

void block(const QConv2dBlock& b) {
    const QConv2dProblem& p = *b.problem;
    const Layout l = layout(p, b.rows);
    const int64_t width = qconv2d_size(p, p.width), all = b.rows * width, columns = qpanels(p.weight.columns) * qpanel;
    const int64_t first_row = (b.image * qconv2d_size(p, p.height) + b.row) * width;
    auto* padding = static_cast<uint8_t*>(b.scratch);
    uint8_t* lines = padding + round_up(l.channels, 64);
    uint8_t* gathered = lines + round_up(l.lines, 64);
    auto* init = reinterpret_cast<int32_t*>(gathered + l.gathered);
    char* after = reinterpret_cast<char*>(init) + l.init;
    char* rows_scratch = after + qmultiply_scratch(l.pixels, l.depth, p.weight.bits);
    QWeight weight = p.weight;
    weight.depth = l.depth;  // the bytes beyond the true depth are multiplied by 0, whatever they are

    if (p.kernel == 3) {
        for (int64_t c = 0; c < l.channels; ++c) padding[c] = p.border ? uint8_t{0} : static_cast<uint8_t>(p.zero_point[c]);
        load_lines(p, l, b.image, b.row * p.stride - 1, (b.rows - 1) * p.stride + 3, padding, lines);
    }
    for (int64_t first = 0; first < all; first += l.pixels) {
        const int64_t count = all - first < l.pixels ? all - first : l.pixels;
        for (int64_t done = 0; done < count && !l.windows;) {  // a stretch of one row of y at a time
            const int64_t i = (first + done) / width, j = (first + done) % width;
            const int64_t some = width - j < count - done ? width - j : count - done;
            uint8_t* to = gathered + done * l.depth;
            if (p.kernel == 1) {
                load_pixels(p, b.image, (b.row + i) * p.stride, j * p.stride, some, p.stride, to, l.depth);
            } else {
                const auto gather = 3 * l.channels <= 16 ? gather_windows<16, true> : gather_windows<chunk, false>;
                gather(lines + i * p.stride * l.line + j * p.stride * l.channels, l.line, p.stride * l.channels, 3 * l.channels, some, to,
                       l.depth);
            }
            done += some;
        }
        const bool own = p.border && initial_sums(b, first, count, init);
        const Windows windows{.line = width, .line_step = p.stride * l.line, .run = 3 * l.channels, .run_step = l.line};
        const QOperand a = l.windows ? QOperand{.data = lines, .stride = p.stride * l.channels, .windows = windows}
                                     : load_qrows(gathered, l.depth, count, l.depth, weight.bits, rows_scratch);
        multiply_qpanels(MVIT_ISA_SYMBOL(qtile), a, first_row + first, count, weight, b.panel_begin, b.panel_end, p.epilogue,
                         own ? init : p.epilogue.channels.init, own ? columns : 0, after);
    }
}

}  // namespace

extern const QConv2dKernels MVIT_ISA_SYMBOL(qconv2d);
const QConv2dKernels MVIT_ISA_SYMBOL(qconv2d) = {block, scratch};

}  // namespace mvit
