// A block of ops/qfeed_forward.h.
#pragma once

#include "cuda/ops/qfeed_forward.h"
#include "cuda/ops/qpair.cuh"

namespace mvit::cuda {

// Rows of the numbers of a slice.
enum QFeedForwardRow { feed_forward_scale = pair_init_rows, feed_forward_rows };

template <class Shape>
struct QFeedForwardShared {
    static constexpr int slice = Shape::slice_bytes(feed_forward_rows), curve = Shape::stages_bytes(feed_forward_rows);
    static constexpr int bytes = curve + SharedCurve::bytes;
};

// shared: QFeedForwardShared::bytes, aligned to 16.
template <class Shape>
MVIT_DEVICE void qfeed_forward_block(const QFeedForwardProblem& p, uint8_t* shared) {
    using At = QFeedForwardShared<Shape>;
    using Place = QPairPixels<Shape>;
    using Warp = QPairWarp<Shape>;
    const QPairSlices<Shape> slices{p.slices, shared, At::slice, (p.hidden + pair_slice - 1) / pair_slice};
    slices.begin();
    SharedCurve::load(p.curve, shared + At::curve, Shape::threads);

    const auto thread = static_cast<uint32_t>(thread_index());
    const Warp warp(static_cast<int>(thread % warp_size));
    const auto piece = static_cast<uint32_t>(block_x()) * Shape::warps + thread / warp_size;  // with those of all blocks below 2^31
    const bool there = piece < p.batch * Place::pieces(p.pixels);                             // else the warp only copies weights
    typename Warp::Operand bytes;
    typename Warp::Sums sums;
    if (there) {
        const QPairStream x{p.x, p.channels, pair_is_aligned(p.x, p.channels)};
        warp.normalise(p.norm, x, Place(piece, p.pixels), int64_t{p.pixels} * p.channels, bytes);
        warp.begin(p.second, p.channels, sums);
    }
    slices.each([&](const uint8_t* slice) {
        if (!there) return;
        const auto between = [&](const typename Warp::Hidden& hidden, uint32_t (&to)[Shape::rounds][4]) {
            const CurveSteps curve(shared + At::curve);  // here, as registers are rare while a product is made
            MVIT_UNROLL
            for (int pair = 0; pair < 2; ++pair) {
                const auto scale = warp.template hidden_quad<float>(slice, feed_forward_scale, pair);
                MVIT_UNROLL
                for (int i = 0; i < Shape::rounds; ++i) {
                    MVIT_UNROLL
                    for (int half = 0; half < 2; ++half) {
                        const auto own = [&](int c) { return hidden[i][2 * pair + c / 2][2 * half + c % 2]; };
                        to[i][half + 2 * pair] = curve(scaled({{own(0), own(1), own(2), own(3)}}, scale).v);
                    }
                }
            }
        };
        warp.multiply(slice, feed_forward_rows, bytes, between, sums);
    });
    if (there) warp.finish(sums, p.second, p.channels, Place(piece, p.pixels), p.parts ? p.parts + 2 * int64_t{piece} : nullptr);
}

}  // namespace mvit::cuda
