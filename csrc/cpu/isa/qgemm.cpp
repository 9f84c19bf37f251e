// A block of rows of bytes times a range of packed panels; formula in ops/qgemm.h. Compiled once an ISA.
#include "cpu/ops/qgemm.h"

#include "cpu/core/isa.h"
#include "cpu/core/qepilogue.h"
#include "cpu/core/qnorm.h"
#include "cpu/core/qsums.h"

namespace mvit {

extern const QTileKernels MVIT_ISA_SYMBOL(qtile);

namespace {

// Normalised rows begin at cache lines.
int64_t normal_stride(int64_t depth) { return round_up(depth, 64); }

int64_t scratch(const QGemmProblem& p, int64_t rows) {
    const QWeight& w = p.weight;
    const int64_t normal = p.norm ? rows * normal_stride(w.depth) : 0;
    return qmultiply_scratch(rows, w.depth, w.bits) + normal + qrows_scratch(rows, w.depth, w.bits);
}

void block(const QGemmBlock& b) {
    const QGemmProblem& p = *b.problem;
    const QWeight& w = p.weight;
    char* after = static_cast<char*>(b.scratch) + qmultiply_scratch(b.rows, w.depth, w.bits);
    const uint8_t* rows = p.a;
    int64_t stride = p.a_stride;
    if (p.norm) {
        auto* normal = reinterpret_cast<uint8_t*>(after);
        stride = normal_stride(w.depth);
        normalize_rows(*p.norm, b.row, b.rows, normal, stride);
        rows = normal;
        after += b.rows * stride;
    } else {
        rows += b.row * stride;
    }
    const QOperand a = load_qrows(rows, stride, b.rows, w.depth, w.bits, after);
    multiply_qpanels(MVIT_ISA_SYMBOL(qtile), a, b.row, b.rows, w, b.panel_begin, b.panel_end, p.epilogue, p.epilogue.channels.init, 0,
                     b.scratch);
}

void sums_into(const int16_t* y, int64_t stride, int64_t rows, int64_t columns, int64_t* sums) {
    const QSums total = sums_of_rows(y, stride, rows, columns);
    sums[0] = total.sum, sums[1] = total.squares;
}

}  // namespace

extern const QGemmKernels MVIT_ISA_SYMBOL(qgemm);
const QGemmKernels MVIT_ISA_SYMBOL(qgemm) = {block, sums_into, scratch, 24};

}  // namespace mvit
