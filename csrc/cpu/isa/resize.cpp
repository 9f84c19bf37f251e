// The loop of resize; formula in ops/resize.h. Compiled once an ISA.
#include "cpu/ops/resize.h"

#include "cpu/core/isa.h"
#include "cpu/core/qvector.h"

namespace mvit {
namespace {

template <class T>
void row(const void* top, const void* bottom, double weight, const Between* columns, int64_t width, int64_t channels, void* y) {
    const auto all = [](double w) { return F32::all(static_cast<float>(w)); };
    for (int64_t i = 0; i < width; ++i) {
        const Between& at = columns[i];
        const F32 w00 = all((1.0 - weight) * (1.0 - at.weight)), w01 = all((1.0 - weight) * at.weight);
        const F32 w10 = all(weight * (1.0 - at.weight)), w11 = all(weight * at.weight);
        const T *x00 = static_cast<const T*>(top) + at.first * channels, *x01 = static_cast<const T*>(top) + at.second * channels;
        const T *x10 = static_cast<const T*>(bottom) + at.first * channels, *x11 = static_cast<const T*>(bottom) + at.second * channels;
        T* to = static_cast<T*>(y) + i * channels;
        each_vector(channels, [&](int64_t c, int n) {
            // No fused multiply-add, which not every set has: quantized networks resize their streams by this, to the same bits anywhere.
            F32 sum = load(x00 + c, n, 0.0f) * w00;
            sum = sum + load(x01 + c, n, 0.0f) * w01;
            sum = sum + load(x10 + c, n, 0.0f) * w10;
            sum = sum + load(x11 + c, n, 0.0f) * w11;
            store(sum, to + c, n);
        });
    }
}

}  // namespace

extern const ResizeKernels MVIT_ISA_SYMBOL(resize);
const ResizeKernels MVIT_ISA_SYMBOL(resize) = {{row<float>, row<bf16>, row<f16>}};

}  // namespace mvit
