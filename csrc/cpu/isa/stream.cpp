// The loops of to_stream and from_stream; formulas in ops/stream.h. Compiled once an ISA.
#include "cpu/ops/stream.h"

#include "cpu/core/isa.h"
#include "cpu/core/qvector.h"

namespace mvit {
namespace {

void to_stream(const float* from, int16_t* to, int64_t count, float inverse) {
    const F32 factor = F32::all(inverse), low = F32::all(INT16_MIN), high = F32::all(INT16_MAX);
    each_vector(count, [&](int64_t i, int n) {
        const F32 t = load(from + i, n, 0.0f) * factor;
        store(to_int(min(max(t, low), high)), to + i, n);  // the larger of NaN and another is the other, the second argument
    });
}

void from_stream(const int16_t* from, float* to, int64_t count, float scale) {
    const F32 factor = F32::all(scale);
    each_vector(count, [&](int64_t i, int n) { store(to_float(load_ints(from + i, n)) * factor, to + i, n); });
}

}  // namespace

extern const StreamKernels MVIT_ISA_SYMBOL(stream);
const StreamKernels MVIT_ISA_SYMBOL(stream) = {to_stream, from_stream};

}  // namespace mvit
