// A block of rows times a range of packed panels; formula in ops/gemm.h. Compiled once an ISA.
#include "cpu/ops/gemm.h"

#include "cpu/core/epilogue.h"
#include "cpu/core/isa.h"
#include "cpu/core/rows.h"

namespace mvit {

extern const TileKernels MVIT_ISA_SYMBOL(tile);

namespace {

template <class T>
void block(const GemmBlock& p) {
    const int64_t depth = p.source.depth + p.source.second_depth;
    const Rows<Operand<T>> x = load_rows<T>(p.source, p.rows, p.scratch);
    multiply_panels<T>(MVIT_ISA_SYMBOL(tile), x.data, x.stride, p.rows, depth, static_cast<const Operand<T>*>(p.weight), p.bias, p.columns,
                       p.panel_begin, p.panel_end, p.activation, static_cast<const T*>(p.residual), p.residual_stride, static_cast<T*>(p.y),
                       p.y_stride, p.scratch + p.rows * scratch_stride(depth), p.slopes);
}

}  // namespace

extern const GemmKernels MVIT_ISA_SYMBOL(gemm);
const GemmKernels MVIT_ISA_SYMBOL(gemm) = {{block<float>, block<bf16>, block<f16>}};

}  // namespace mvit
