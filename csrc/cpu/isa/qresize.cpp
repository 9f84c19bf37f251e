// The loop of qresize; formula in ops/qresize.h. Compiled once an ISA.
#include "cpu/ops/qresize.h"

#include "cpu/core/isa.h"
#include "cpu/core/qvector.h"

namespace mvit {
namespace {

void row(const uint8_t* top, const uint8_t* bottom, int32_t weight, const QResizeTap* columns, int64_t width, int64_t channels,
         uint8_t* y) {
    for (int64_t i = 0; i < width; ++i) {
        const QResizeTap& tap = columns[i];
        const int32_t w = tap.weight;
        const I32 w00 = I32::all((resize_one - weight) * (resize_one - w)), w01 = I32::all((resize_one - weight) * w);
        const I32 w10 = I32::all(weight * (resize_one - w)), w11 = I32::all(weight * w);
        const int64_t first = tap.first * channels, second = tap.second * channels;
        each_vector(channels, [&](int64_t c, int n) {
            const I32 above = load_ints(top + first + c, n) * w00 + load_ints(top + second + c, n) * w01;
            const I32 below = load_ints(bottom + first + c, n) * w10 + load_ints(bottom + second + c, n) * w11;
            store(to_int(to_float(above + below) * F32::all(0x1p-22f)), y + i * channels + c, n);
        });
    }
}

}  // namespace

extern const QResizeKernels MVIT_ISA_SYMBOL(qresize);
const QResizeKernels MVIT_ISA_SYMBOL(qresize) = {row};

}  // namespace mvit
