// A block of rows of bytes times a range of packed panels; formula in ops/qgemm.h. Compiled once an ISA.
#include "cpu/ops/qgemm.h"

#include "cpu/core/isa.h"
#include "cpu/core/qepilogue.h"

namespace mvit {

extern const QTileKernels MVIT_ISA_SYMBOL(qtile);

namespace {

int64_t scratch(int64_t rows, int64_t depth, int bits) { return qmultiply_scratch(rows, depth, bits) + qrows_scratch(rows, depth, bits); }

void block(const QGemmBlock& b) {
    const QGemmProblem& p = *b.problem;
    const QWeight& w = p.weight;
    char* after = static_cast<char*>(b.scratch) + qmultiply_scratch(b.rows, w.depth, w.bits);
    const QOperand a = load_qrows(p.a + b.row * p.a_stride, p.a_stride, b.rows, w.depth, w.bits, after);
    multiply_qpanels(MVIT_ISA_SYMBOL(qtile), a, b.row, b.rows, w, b.panel_begin, b.panel_end, p.epilogue, p.epilogue.channels.init, 0,
                     b.scratch);
}

}  // namespace

extern const QGemmKernels MVIT_ISA_SYMBOL(qgemm);
const QGemmKernels MVIT_ISA_SYMBOL(qgemm) = {block, scratch, 24};

}  // namespace mvit
