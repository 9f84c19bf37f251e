// The loop of add; formula in ops/add.h. Compiled once an ISA.
#include "cpu/ops/add.h"

#include "cpu/core/activation.h"
#include "cpu/core/isa.h"
#include "cpu/core/qvector.h"

namespace mvit {
namespace {

template <class T>
void run(const AddProblem& p, int64_t first, int64_t count) {
    const T* a = static_cast<const T*>(p.a) + first;
    const T* b = p.b ? static_cast<const T*>(p.b) + first : nullptr;
    T* y = static_cast<T*>(p.y) + first;
    with_activation(p.activation, [&]<Activation activation>() {
        if (b) {
            each_vector(count,
                        [&](int64_t i, int n) { store(activate<activation, T>(load(a + i, n, 0.0f) + load(b + i, n, 0.0f)), y + i, n); });
        } else {
            each_vector(count, [&](int64_t i, int n) { store(activate<activation, T>(load(a + i, n, 0.0f)), y + i, n); });
        }
    });
}

}  // namespace

extern const AddKernels MVIT_ISA_SYMBOL(add);
const AddKernels MVIT_ISA_SYMBOL(add) = {{run<float>, run<bf16>, run<f16>}};

}  // namespace mvit
