// The loop of qadd; formula in ops/qadd.h. Compiled once an ISA.
#include "cpu/ops/qadd.h"

#include "cpu/core/isa.h"
#include "cpu/core/qepilogue.h"
#include "cpu/core/qvector.h"

namespace mvit {
namespace {

template <QActivation activation, class Real>
inline void add(const QAddProblem& p, int64_t first, int64_t count) {
    const Real a_real(p.a_real), b_real(p.b_real);
    const F32 inverse = F32::all(p.out.inverse), low = F32::all(p.out.low), high = F32::all(p.out.high);
    const I32 zero_point = I32::all(p.out.zero_point);
    const uint8_t *a = p.a + first, *b = p.b + first;
    // Of its own, as stores of bytes may reach any memory that others see: these stay in registers.
    float segments[96];
    if constexpr (activation == QActivation::segments)
        for (int i = 0; i < 96; ++i) segments[i] = p.segments[i];
    write_bytes(p.y + first, count, [&](int64_t i, int n) {
        const F32 sum = a_real(load_ints(a + i, n)) + b_real(load_ints(b + i, n));
        return to_byte(activate(sum, activation, segments) * inverse, low, high, zero_point);
    });
}

template <QActivation activation>
void run(const QAddProblem& p, int64_t first, int64_t count) {
    if (p.a_real.low == 0 && p.b_real.low == 0) return add<activation, QNearRealVector>(p, first, count);
    add<activation, QRealVector>(p, first, count);
}

}  // namespace

extern const QAddKernels MVIT_ISA_SYMBOL(qadd);
const QAddKernels MVIT_ISA_SYMBOL(qadd) = {{run<QActivation::none>, run<QActivation::relu>, run<QActivation::segments>}};

}  // namespace mvit
