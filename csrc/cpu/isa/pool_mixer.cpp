// The loop of pool_mixer; formula in ops/pool_mixer.h. Compiled once an ISA.
#include "cpu/ops/pool_mixer.h"

#include "cpu/core/isa.h"
#include "cpu/core/qvector.h"

namespace mvit {
namespace {

// Channels in the lanes: a vector of them goes along the row, and carries the sums of the columns before, at and behind a pixel.
template <class T>
void row(const PoolMixerProblem& p, const void* above, const void* here, const void* below, void* y) {
    const T *middle = static_cast<const T*>(here), *top = static_cast<const T*>(above), *bottom = static_cast<const T*>(below);
    const int rows = 1 + (top != nullptr) + (bottom != nullptr);
    const F32 zero = F32::all(0.0f);
    each_vector(p.channels, [&](int64_t c, int n) {
        const auto column = [&](int64_t i, F32 x) {
            const int64_t at = i * p.channels + c;
            if (top) x = x + load(top + at, n, 0.0f);
            return bottom ? x + load(bottom + at, n, 0.0f) : x;
        };
        const F32 scale = load(p.scale + c, n, 0.0f);
        F32 x = load(middle + c, n, 0.0f), before = zero, at = column(0, x);
        for (int64_t i = 0; i < p.width; ++i) {
            const bool last = i + 1 == p.width;
            const F32 next = last ? zero : load(middle + (i + 1) * p.channels + c, n, 0.0f);
            const F32 behind = last ? zero : column(i + 1, next);
            const int columns = 1 + (i > 0) + !last;
            const F32 mean = (before + at + behind) * F32::all(1.0f / static_cast<float>(rows * columns));
            store(fma(scale, mean - x, x), static_cast<T*>(y) + i * p.channels + c, n);
            before = at, at = behind, x = next;
        }
    });
}

}  // namespace

extern const PoolMixerKernels MVIT_ISA_SYMBOL(pool_mixer);
const PoolMixerKernels MVIT_ISA_SYMBOL(pool_mixer) = {{row<float>, row<bf16>, row<f16>}};

}  // namespace mvit
