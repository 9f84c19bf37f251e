// A block of ops/qnorm_gemm.h.
#pragma once

#include "cuda/ops/qnorm_gemm.h"
#include "cuda/ops/qpair.cuh"

namespace mvit::cuda {

template <int depth>
struct QNormGemmFewShape;

// As QPairShape, of a warp that keeps no sums from slice to slice.
template <int depth_>
struct QNormGemmShape {
    using Few = QNormGemmFewShape<depth_>;
    static constexpr int depth = depth_, rounds = depth <= 8 ? 2 : 1, pixels = 16 * rounds;
    static constexpr int warps = 4, threads = warps * warp_size;
    static constexpr int blocks = depth <= 4 ? 4 : 3;
    static constexpr int slice = pair_init_rows * pair_slice * 4 + 2 * depth * tile_bytes(8), curve = 2 * pair_together * slice;
    static constexpr int shared_bytes = curve + SharedCurve::bytes;
};

// The same of warps with 16 rows: for few.
template <int depth_>
struct QNormGemmFewShape : QNormGemmShape<depth_> {
    static constexpr int rounds = 1, pixels = 16;
};

// together: slices of a block, of which block_y is the place. shared: Shape::shared_bytes, aligned to 16.
template <class Shape>
MVIT_DEVICE void qnorm_gemm_block(const QNormGemmProblem& p, int together, uint8_t* shared) {
    using Place = QPairPixels<Shape>;
    using Warp = QPairWarp<Shape>;
    const int first = block_y() * together, left = norm_gemm_slices(p.columns) - first;
    const QPairSlices<Shape> slices{p.slices + int64_t{first} * Shape::slice, shared, Shape::slice, left < together ? left : together};
    slices.begin();
    const QEpilogue& e = p.epilogue;
    if (e.curve) SharedCurve::load(e.curve, shared + Shape::curve, Shape::threads);

    const auto thread = static_cast<uint32_t>(thread_index());
    const int lane = static_cast<int>(thread % warp_size);
    const Warp warp(lane);
    const auto piece = static_cast<uint32_t>(block_x()) * Shape::warps + thread / warp_size;  // with those of all blocks below 2^31
    const bool there = piece < p.groups * Place::pieces(p.rows);                              // else the warp only copies weights
    const Place place(piece, p.rows);
    typename Warp::Operand bytes;
    if (there) {
        const QPairStream x{p.x, p.channels, pair_is_aligned(p.x, p.channels)};
        warp.normalise(p.norm, x, place, int64_t{p.rows} * p.channels, bytes);
    }
    auto* const y = static_cast<uint8_t*>(e.y);
    const bool aligned = p.columns % eight == 0 && reinterpret_cast<uintptr_t>(y) % eight == 0;
    int column = first * pair_slice + eight * (lane % 4);  // of a slice, the first of the eight that are this thread's
    const auto each_slice = [&]<class Of>(Of*) {
        slices.each([&](const uint8_t* slice) {
            if (!there) return;
            typename Warp::Hidden sums;
            warp.expand(slice, pair_init_rows, bytes, sums);
            if (column < p.columns) {
                Words<2> words[Shape::rounds][2];
                MVIT_UNROLL
                for (int quad = 0; quad < 2; ++quad) {
                    const Of of(e, column + four * quad, shared + Shape::curve);
                    const Quad<float> scale = load_quad(e.channels.scale + column + four * quad, four, true);
                    MVIT_UNROLL
                    for (int i = 0; i < 2 * Shape::rounds; ++i) {
                        const auto sum = [&](int c) { return sums[i / 2][2 * quad + c / 2][i % 2 * 2 + c % 2]; };
                        of(scaled({{sum(0), sum(1), sum(2), sum(3)}}, scale), words[i / 2][i % 2].v + quad);
                    }
                }
                warp.each_row(place, [&](int i, int half, int64_t row) {
                    if (row >= 0) store_eight(words[i][half], y + row * p.columns + column, p.columns - column, aligned);
                });
            }
            column += pair_slice;
        });
    };
    if (e.curve) {
        each_slice(static_cast<CurveBytes<CurveSteps>*>(nullptr));
    } else {
        each_slice(static_cast<PlainBytes<false>*>(nullptr));
    }
}

}  // namespace mvit::cuda
