// Normalising and quantizing rows of int16; the loops are in core/qnorm.h. Compiled once an ISA.
#include "cpu/ops/qnorm.h"

#include "cpu/core/isa.h"
#include "cpu/core/qnorm.h"

namespace mvit {
namespace {

void rows_of(const QNormProblem& p, int64_t row, int64_t rows) { normalize_rows(p.norm, row, rows, p.y + row * p.y_stride, p.y_stride); }

}  // namespace

extern const QNormKernels MVIT_ISA_SYMBOL(qnorm);
const QNormKernels MVIT_ISA_SYMBOL(qnorm) = {rows_of};

}  // namespace mvit
