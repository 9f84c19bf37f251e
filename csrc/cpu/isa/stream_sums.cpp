// The sums of an int16 stream; the loop is in core/qsums.h. Compiled once an ISA.
#include "cpu/ops/stream_sums.h"

#include "cpu/core/isa.h"
#include "cpu/core/qsums.h"

namespace mvit {
namespace {

void run(const int16_t* x, int64_t count, int64_t* sums) {
    const QSums found = sums_of(x, count);
    sums[0] = found.sum;
    sums[1] = found.squares;
}

}  // namespace

extern const StreamSumsKernels MVIT_ISA_SYMBOL(stream_sums);
const StreamSumsKernels MVIT_ISA_SYMBOL(stream_sums) = {run};

}  // namespace mvit
