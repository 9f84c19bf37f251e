// A block of ops/qdepthwise_conv2d.h.
#pragma once

#include "cuda/ops/qdepthwise_conv2d.h"
#include "cuda/primitives/channels.cuh"
#include "cuda/primitives/dot4.cuh"
#include "cuda/primitives/qepilogue.cuh"
#include "cuda/primitives/read_only.cuh"

namespace mvit::cuda {

inline constexpr int depthwise_threads = 128;                                    // of a block, at most
inline constexpr int64_t depthwise_block_values = 1 << 14, depthwise_waves = 4;  // values of a block, at most; blocks after one another

MVIT_BOTH constexpr int64_t whole_panels(int64_t channels) { return ceil_divide(channels, 16) * 16; }

// Whether four channels of any pixel are a word, of y and of a residual too.
MVIT_BOTH bool depthwise_is_aligned(const QDepthwiseConv2dProblem& p) {
    const auto bits =
        reinterpret_cast<uintptr_t>(p.x) | static_cast<uintptr_t>(p.image_stride | p.row_stride | p.pixel_stride | p.channels);
    const QEpilogue& e = p.epilogue;
    return bits % four == 0 && quads_are_aligned(e.y, e.y_stride, element_size(e.type)) &&
           (!e.residual || quads_are_aligned(e.residual, e.residual_stride, element_size(e.residual_type)));
}

// How a call is cut into blocks. A line, which is a row of y, has a thread for every four channels of `run` pixels: neighbours have
// neighbouring channels, then runs; the last run ends where the line does, though others have begun its pixels. A block has `threads` of
// them, or all, of some lines one after another: what it does for a row of the map is the same for all its threads.
struct QDepthwiseCut {
    int quads, runs, run, width, rows;
    int threads, splits, lines;  // of a block; blocks beside each other on a line; lines of a block
    int64_t all_lines;
    FinishForm form;  // any, too, where four channels are no word

    // blocks: at least, where there is work for so many.
    MVIT_BOTH static QDepthwiseCut of(const QDepthwiseConv2dProblem& p, int64_t blocks) {
        QDepthwiseCut cut{};
        cut.quads = static_cast<int>(ceil_divide(p.channels, four));
        cut.width = static_cast<int>((p.width - 1) / p.stride + 1), cut.rows = static_cast<int>((p.height - 1) / p.stride + 1);
        cut.form = depthwise_is_aligned(p) ? finish_form(p.epilogue) : FinishForm::any;
        cut.run = cut.width >= 8 && cut.form != FinishForm::any ? 8 : cut.width >= 4 ? 4 : 1;
        cut.runs = static_cast<int>(ceil_divide(cut.width, cut.run));
        cut.lines = 1;
        const int64_t needed = ceil_divide(int64_t{cut.quads} * cut.runs, 32) * 32;
        if (needed == 0) return cut;
        cut.splits = static_cast<int>(ceil_divide(needed, depthwise_threads));
        cut.threads = static_cast<int>(ceil_divide(needed / 32, cut.splits) * 32);
        cut.all_lines = p.batch * cut.rows;
        // Few blocks load a curve more seldom, and its load is a wait.
        const int64_t by_values = depthwise_block_values / (int64_t{cut.threads} * cut.run * four);
        const int64_t by_blocks = cut.all_lines * cut.splits / (blocks > 0 ? blocks : 1);
        cut.lines = static_cast<int>(by_values < by_blocks ? by_values : by_blocks);
        if (cut.lines < 1) cut.lines = 1;
        return cut;
    }
    MVIT_BOTH int64_t blocks() const { return ceil_divide(all_lines, lines) * splits; }
};

// body<run, form>() of a cut.
template <class Body>
void with_depthwise_run(const QDepthwiseCut& cut, const Body& body) {
    with_finish_form(cut.form, [&]<FinishForm form>() {
        if constexpr (form != FinishForm::any) {
            if (cut.run == 8) return body.template operator()<8, form>();
        }
        cut.run == 4 ? body.template operator()<4, form>() : body.template operator()<1, form>();
    });
}

// Rows 0, 1, 2 of four channels to the three taps of each channel.
MVIT_DEVICE void turn(const uint32_t (&rows)[3], uint32_t (&taps)[four]) {
    const uint32_t low = permute(rows[0], rows[1], 0x5140), high = permute(rows[0], rows[1], 0x7362);  // 0: r0 r1, 1: r0 r1; 2, 3 likewise
    // The fourth byte meets a weight of 0.
    taps[0] = permute(low, rows[2], 0x4410), taps[1] = permute(low, rows[2], 0x5532);
    taps[2] = permute(high, rows[2], 0x6610), taps[3] = permute(high, rows[2], 0x7732);
}

// What a thread does, behind a curve in shared memory: a run in parts of `part` pixels, of which all is known but at the ends of a row of
// the map. What takes many instructions or registers to finish has parts of one pixel, which read the map more often.
template <int stride, int run, int part, FinishForm form>
MVIT_DEVICE void qdepthwise_lines(const QDepthwiseConv2dProblem& p, const QDepthwiseCut& cut, const uint8_t* shared) {
    constexpr int seen = (part - 1) * stride + 3;  // columns of the map
    const auto block = static_cast<uint32_t>(block_x()), splits = static_cast<uint32_t>(cut.splits), group = block / splits;
    const uint32_t at = (block - group * splits) * static_cast<uint32_t>(cut.threads) + static_cast<uint32_t>(thread_index());
    const auto quads = static_cast<uint32_t>(cut.quads), rows_of_map = static_cast<uint32_t>(cut.rows), of_run = at / quads;
    if (of_run >= static_cast<uint32_t>(cut.runs)) return;
    const int channel = static_cast<int>(at - of_run * quads) * four, lanes = static_cast<int>(p.channels) - channel;
    const int begin = static_cast<int>(of_run) * run, first = begin < cut.width - run ? begin : cut.width - run;
    const int map_width = static_cast<int>(p.width), map_height = static_cast<int>(p.height);
    const int panels = static_cast<int>(whole_panels(p.channels));
    const bool aligned = form != FinishForm::any || depthwise_is_aligned(p);
    const auto pixel = static_cast<uint32_t>(p.pixel_stride);

    const int64_t first_line = int64_t{group} * cut.lines, more = cut.all_lines - first_line;
    const int lines = more < cut.lines ? static_cast<int>(more) : cut.lines;
    MVIT_ROLLED
    for (int i = 0; i < lines; ++i) {
        const auto line = static_cast<uint32_t>(first_line) + static_cast<uint32_t>(i), image = line / rows_of_map;
        const int top = static_cast<int>(line - image * rows_of_map) * stride - 1;
        // Of a row that is not there any other is read, and meets weights of 0.
        const bool above = top < 0, below = top + 2 >= map_height;
        const uint32_t mask = (above ? 0u : 0xFFu) | 0xFF00u | (below ? 0u : 0xFF0000u);
        const uint8_t* const middle = p.x + image * p.image_stride + (top + 1) * p.row_stride;
        const uint8_t* const rows[3] = {above ? middle : middle - p.row_stride, middle, below ? middle : middle + p.row_stride};

        Quad<uint32_t> weights[3];
        MVIT_UNROLL
        for (int kx = 0; kx < 3; ++kx) {
            weights[kx] = read_sixteen<Quad<uint32_t>>(p.taps + kx * panels + channel);
            MVIT_UNROLL
            for (int c = 0; c < four; ++c) weights[kx].v[c] &= mask;
        }
        const int32_t* border = p.border + (above ? 4 * panels : 0) + (below ? 8 * panels : 0) + channel;
        const Finish<form, form != FinishForm::any> finish(p.epilogue, p.channels, channel, shared, int64_t{line} * cut.width + first);

        MVIT_ROLLED
        for (int done = 0; done < run; done += part) {
            const int left = (first + done) * stride - 1;
            const auto from = static_cast<uint32_t>(left) * pixel + static_cast<uint32_t>(channel);
            uint32_t words[seen][3], columns[seen][four];
            const auto load_column = [&](int x) {
                const bool there = (x > 0 || left >= 0) && (x < seen - 1 || left + x < map_width);
                MVIT_UNROLL
                for (int ky = 0; ky < 3; ++ky)
                    words[x][ky] = there ? load_channels(rows[ky] + (from + static_cast<uint32_t>(x) * pixel), lanes, aligned) : 0;
            };
            MVIT_UNROLL
            for (int x = 0; x < 3; ++x) load_column(x);
            MVIT_UNROLL
            for (int j = 0; j < part; ++j) {
                // The next pixel's words are on their way while this one is finished.
                if (j + 1 < part) {
                    MVIT_UNROLL
                    for (int x = 0; x < stride; ++x) load_column(j * stride + 3 + x);
                }
                MVIT_UNROLL
                for (int x = j == 0 ? 0 : 3 - stride; x < 3; ++x) turn(words[j * stride + x], columns[j * stride + x]);
                const bool at_left = j == 0 && left < 0, at_right = j == part - 1 && left + seen > map_width;
                auto sums = read_sixteen<Quad<int32_t>>(border + (at_left ? panels : 0) + (at_right ? 2 * panels : 0));
                MVIT_UNROLL
                for (int kx = 0; kx < 3; ++kx) {
                    MVIT_UNROLL
                    for (int c = 0; c < four; ++c) sums.v[c] = dot4(columns[j * stride + kx][c], weights[kx].v[c], sums.v[c]);
                }
                finish.finish(sums, done + j);
            }
        }
    }
}

// shared: SharedCurve::bytes, aligned to 16; or null of a form without a curve.
template <int stride, int run, FinishForm form>
MVIT_DEVICE void qdepthwise(const QDepthwiseConv2dProblem& p, const QDepthwiseCut& cut, uint8_t* shared) {
    if constexpr (form == FinishForm::curve || form == FinishForm::any) {
        if (p.epilogue.curve) {
            SharedCurve::load(p.epilogue.curve, shared, cut.threads);
            block_barrier();
            if (form == FinishForm::curve && SharedCurve::has_steps(shared))
                return qdepthwise_lines<stride, run, run, FinishForm::steps>(p, cut, shared);
        }
        qdepthwise_lines<stride, run, 1, form>(p, cut, shared);
    } else {
        qdepthwise_lines<stride, run, run, form>(p, cut, shared);
    }
}

}  // namespace mvit::cuda
