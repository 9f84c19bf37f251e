// Says whether this object was really compiled with the flags of its ISA, so that a missing flag cannot pass as support.
#include "cpu/core/isa.h"

namespace mvit {

extern const bool MVIT_ISA_SYMBOL(probe);
const bool MVIT_ISA_SYMBOL(probe) =
#if defined(MVIT_ISA_AVX512VNNI) && \
    !(defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__) && defined(__AVX512VNNI__))
    false;
#elif defined(MVIT_ISA_AVX512BF16) && !defined(__AVX512BF16__)
    false;
#elif defined(MVIT_ISA_AVX2) && !(defined(__AVX2__) && defined(__FMA__) && defined(__F16C__))
    false;
#else
    true;
#endif

}  // namespace mvit
