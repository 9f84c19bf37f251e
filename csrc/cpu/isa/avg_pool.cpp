// The loop of avg_pool; formula in ops/avg_pool.h. Compiled once an ISA.
#include "cpu/ops/avg_pool.h"

#include "cpu/core/isa.h"
#include "cpu/core/simd.h"

namespace mvit {
namespace {

constexpr int W = F32::width, vectors = 4, levels = 60;
constexpr int64_t pixels_a_run = 16;

// Of n vectors of channels side by side; the last one has so many lanes.
template <class T, int n>
inline void means(const T* x, int64_t pixels, int64_t channels, int lanes, T* y) {
    const auto lanes_of = [&](int j) { return j + 1 < n ? W : lanes; };
    F32 sum[n], waiting[levels][n];  // at level k the sum of 2^k runs, where bit k of the number of runs is set
    for (int64_t first = 0, runs = 0; first < pixels; first += pixels_a_run, ++runs) {
        const int64_t last = pixels - first < pixels_a_run ? pixels : first + pixels_a_run;
#pragma GCC unroll 4
        for (int j = 0; j < n; ++j) sum[j] = load(x + first * channels + j * W, lanes_of(j), 0.0f);
        for (int64_t i = first + 1; i < last; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < n; ++j) sum[j] = sum[j] + load(x + i * channels + j * W, lanes_of(j), 0.0f);
        // The last run takes all that waits, others what is as long as they are.
        for (int level = 0; last == pixels ? runs >> level : runs >> level & 1; ++level)
            if (runs >> level & 1)
                for (int j = 0; j < n; ++j) sum[j] = waiting[level][j] + sum[j];
        if (last < pixels)
            for (int j = 0; j < n; ++j) waiting[__builtin_ctzll(static_cast<uint64_t>(~runs))][j] = sum[j];
    }
    const F32 count = F32::all(static_cast<float>(pixels));
#pragma GCC unroll 4
    for (int j = 0; j < n; ++j) store(sum[j] / count, y + j * W, lanes_of(j));
}

template <class T>
void run(const AvgPoolProblem& p, int64_t image, int64_t first, int64_t last) {
    const T* x = static_cast<const T*>(p.x) + image * p.pixels * p.channels;
    T* y = static_cast<T*>(p.y) + image * p.channels;
    int64_t c = first;
    for (; c + vectors * W <= last; c += vectors * W) means<T, vectors>(x + c, p.pixels, p.channels, W, y + c);
    for (; c < last; c += W) means<T, 1>(x + c, p.pixels, p.channels, lanes_left(last, c), y + c);
}

}  // namespace

extern const AvgPoolKernels MVIT_ISA_SYMBOL(avg_pool);
const AvgPoolKernels MVIT_ISA_SYMBOL(avg_pool) = {{run<float>, run<bf16>, run<f16>}};

}  // namespace mvit
