// The loop of avg_pool; formula in ops/avg_pool.h. Compiled once an ISA.
#include "cpu/ops/avg_pool.h"

#include "cpu/core/isa.h"
#include "cpu/core/simd.h"

namespace mvit {
namespace {

constexpr int W = F32::width, vectors = 4;
constexpr int64_t pixels_a_run = 16;

// Of n vectors of channels side by side; the last one has so many lanes.
template <class T, int n>
inline void means(const T* x, int64_t pixels, int64_t channels, int lanes, T* y) {
    LongSum<n> sum;
    for (int64_t first = 0; first < pixels; first += pixels_a_run) {
        const int64_t last = pixels - first < pixels_a_run ? pixels : first + pixels_a_run;
        for (int64_t i = first; i < last; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < n; ++j) sum.run[j] = sum.run[j] + load(x + i * channels + j * W, j + 1 < n ? W : lanes, 0.0f);
        sum.added(last - first);
    }
    const F32 count = F32::all(static_cast<float>(pixels));
#pragma GCC unroll 4
    for (int j = 0; j < n; ++j) store(sum.value(j) / count, y + j * W, j + 1 < n ? W : lanes);
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
