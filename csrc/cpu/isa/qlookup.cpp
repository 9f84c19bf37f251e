// A table of bytes over a run of bytes; see core/byte_table.h. Compiled once an ISA.
#include "cpu/ops/qlookup.h"

#include "cpu/core/byte_table.h"
#include "cpu/core/isa.h"

namespace mvit {
namespace {

void run(const uint8_t* table, const uint8_t* x, uint8_t* y, int64_t count) { look_up(table, x, y, count); }

}  // namespace

extern const QLookupKernels MVIT_ISA_SYMBOL(qlookup);
const QLookupKernels MVIT_ISA_SYMBOL(qlookup) = {run};

}  // namespace mvit
