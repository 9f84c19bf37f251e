// The loops of qavg_pool; formula in ops/qavg_pool.h. Compiled once an ISA.
#include "cpu/ops/qavg_pool.h"

#include "cpu/core/isa.h"
#include "cpu/core/qepilogue.h"
#include "cpu/core/qvector.h"

namespace mvit {
namespace {

constexpr int W = F32::width, vectors = 4;

// H W z_a modulo 2^32.
int32_t before(const QAvgPoolProblem& p) {
    return static_cast<int32_t>(static_cast<uint32_t>(p.pixels) * static_cast<uint32_t>(p.zero_point));
}

inline void finish(const QAvgPoolProblem& p, I32 sum, int64_t at, int lanes) {
    const F32 t = to_float(sum) * F32::all(p.scale);
    if (p.floats) return store(t, static_cast<float*>(p.y) + at, lanes);
    store(to_byte(t, F32::all(p.out.low), F32::all(p.out.high), I32::all(p.out.zero_point)), static_cast<uint8_t*>(p.y) + at, lanes);
}

// Channels lie side by side: lanes are channels, four vectors of them at a time.
void channels_last(const QAvgPoolProblem& p, int64_t image, int64_t first, int64_t last) {
    const uint8_t* x = p.x + image * p.pixels * p.channels;
    const I32 zero = I32::all(before(p));
    int64_t c = first;
    for (; c + vectors * W <= last; c += vectors * W) {
        I32 sum[vectors];
#pragma GCC unroll 4
        for (int j = 0; j < vectors; ++j) sum[j] = I32::all(0);
        for (int64_t i = 0; i < p.pixels; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < vectors; ++j) sum[j] = sum[j] + I32::load(x + i * p.channels + c + j * W);
#pragma GCC unroll 4
        for (int j = 0; j < vectors; ++j) finish(p, sum[j] - zero, image * p.channels + c + j * W, W);
    }
    for (; c < last; c += W) {
        const int lanes = lanes_left(last, c);
        I32 sum = I32::all(0);
        for (int64_t i = 0; i < p.pixels; ++i) sum = sum + load_ints(x + i * p.channels + c, lanes);
        finish(p, sum - zero, image * p.channels + c, lanes);
    }
}

inline int32_t sum_of(const uint8_t* x, int64_t count) {
    I32 sum[vectors];
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) sum[j] = I32::all(0);
    int64_t i = 0;
    for (; i + vectors * W <= count; i += vectors * W)
#pragma GCC unroll 4
        for (int j = 0; j < vectors; ++j) sum[j] = sum[j] + I32::load(x + i + j * W);
    for (; i < count; i += W) sum[0] = sum[0] + load_ints(x + i, lanes_left(count, i));
    int32_t lanes[W];
    ((sum[0] + sum[1]) + (sum[2] + sum[3])).store(lanes);
    uint32_t total = 0;
    for (int j = 0; j < W; ++j) total += static_cast<uint32_t>(lanes[j]);
    return static_cast<int32_t>(total);
}

// A plane is a run: the sums of as many planes as a vector has lanes are finished together.
void channels_first(const QAvgPoolProblem& p, int64_t first, int64_t last) {
    const I32 zero = I32::all(before(p));
    for (int64_t plane = first; plane < last; plane += W) {
        const int lanes = lanes_left(last, plane);
        int32_t sums[W] = {};
        for (int j = 0; j < lanes; ++j) sums[j] = sum_of(p.x + (plane + j) * p.pixels, p.pixels);
        finish(p, I32::load(sums) - zero, plane, lanes);
    }
}

}  // namespace

extern const QAvgPoolKernels MVIT_ISA_SYMBOL(qavg_pool);
const QAvgPoolKernels MVIT_ISA_SYMBOL(qavg_pool) = {channels_last, channels_first};

}  // namespace mvit
