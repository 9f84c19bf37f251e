#include "cpu/core/byte_table.h"

namespace mvit {
namespace {

bool cpu_has_vbmi() {
#if defined(MVIT_BUILD_X86)
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512vbmi");
#else
    return false;
#endif
}

}  // namespace

bool byte_table_vbmi = cpu_has_vbmi();

}  // namespace mvit
