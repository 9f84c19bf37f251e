// The loop of hard_gate; formula in ops/hard_gate.h. Compiled once an ISA.
#include "cpu/ops/hard_gate.h"

#include "cpu/core/activation.h"
#include "cpu/core/isa.h"
#include "cpu/core/qvector.h"

namespace mvit {
namespace {

template <class T>
void run(const HardGateProblem& p, int64_t first, int64_t count) {
    const T *x = static_cast<const T*>(p.x) + first, *u = static_cast<const T*>(p.u) + first;
    T* y = static_cast<T*>(p.y) + first;
    each_vector(count, [&](int64_t i, int n) { store(load(x + i, n, 0.0f) * hard_sigmoid(load(u + i, n, 0.0f)), y + i, n); });
}

}  // namespace

extern const HardGateKernels MVIT_ISA_SYMBOL(hard_gate);
const HardGateKernels MVIT_ISA_SYMBOL(hard_gate) = {{run<float>, run<bf16>, run<f16>}};

}  // namespace mvit
