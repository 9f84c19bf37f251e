// The loops of dynamic_relu; formula in ops/dynamic_relu.h. Compiled once an ISA.
#include "cpu/ops/dynamic_relu.h"

#include "cpu/core/activation.h"
#include "cpu/core/isa.h"
#include "cpu/core/qvector.h"

namespace mvit {
namespace {

template <class T>
void slopes_of(const void* u, int64_t channels, float* to) {
    const T* from = static_cast<const T*>(u);
    const F32 one = F32::all(1.0f), minus = F32::all(-1.0f);
    const auto clipped = [&](int64_t i, int n) { return min(one, max(minus, load(from + i, n, 0.0f))); };  // NaN stays
    each_vector(channels, [&](int64_t i, int n) {
        const F32 a = one + clipped(i, n);
        store(a, to + i, n);
        store(beside(a, clipped(channels + i, n)), to + channels + i, n);
    });
}

template <class T>
void pixels(const DynamicReluProblem& p, const float* slopes, int64_t first, int64_t count) {
    const T* x = static_cast<const T*>(p.x) + first * p.channels;
    T* y = static_cast<T*>(p.y) + first * p.channels;
    each_vector(p.channels, [&](int64_t c, int n) {
        const Slopes slope(slopes, p.channels, c, n);
        for (int64_t i = c; i < count * p.channels; i += p.channels) store(slope(load(x + i, n, 0.0f)), y + i, n);
    });
}

}  // namespace

extern const DynamicReluKernels MVIT_ISA_SYMBOL(dynamic_relu);
const DynamicReluKernels MVIT_ISA_SYMBOL(dynamic_relu) = {{slopes_of<float>, slopes_of<bf16>, slopes_of<f16>},
                                                          {pixels<float>, pixels<bf16>, pixels<f16>}};

}  // namespace mvit
