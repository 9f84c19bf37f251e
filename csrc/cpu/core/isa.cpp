#include "cpu/core/isa.h"

#include <atomic>

#if defined(MVIT_BUILD_X86)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace mvit {

// Filled by isa/probe.cpp: true only where the compiler really had the ISA's flags on.
extern const bool probe_scalar;
#if defined(MVIT_BUILD_X86)
extern const bool probe_avx2;
extern const bool probe_avx512vnni;
#endif

namespace {

#if defined(MVIT_BUILD_X86)
// Older compilers have no name for F16C in __builtin_cpu_supports. AVX2, checked beside it, vouches for the operating system.
bool cpu_has_f16c() {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

// The processor has tiles and multiplies bytes in them, and the system lets this process keep them: 8 KiB a thread, which it has to ask
// for.
bool cpu_has_amx() {
#if defined(__linux__)
    unsigned a, b, c, d;
    constexpr unsigned tile = 1u << 24, int8 = 1u << 25;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & tile) == 0 || (d & int8) == 0) return false;
    constexpr long ask = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    static const bool granted = syscall(SYS_arch_prctl, ask, tile_data) == 0;
    return granted;
#else
    return false;
#endif
}
#endif

bool cpu_has(Isa isa) {
#if defined(MVIT_BUILD_X86)
    // The builtin also checks that the operating system saves the wide registers.
    __builtin_cpu_init();
    switch (isa) {
        case Isa::scalar:
            return true;
        case Isa::avx2:
            return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && cpu_has_f16c();
        case Isa::avx512vnni:
            return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx2") &&
                   __builtin_cpu_supports("fma") && cpu_has_f16c();
        case Isa::amx:
            return cpu_has(Isa::avx512vnni) && cpu_has_amx();
    }
    return false;
#else
    return isa == Isa::scalar;
#endif
}

Isa best() {
    for (int level = isa_count - 1; level > 0; --level)
        if (isa_supported(static_cast<Isa>(level))) return static_cast<Isa>(level);
    return Isa::scalar;
}

std::atomic<int>& active_level() {
    static std::atomic<int> level{static_cast<int>(best())};
    return level;
}

}  // namespace

const char* isa_name(Isa isa) {
    switch (isa) {
        case Isa::scalar:
            return "scalar";
        case Isa::avx2:
            return "avx2";
        case Isa::avx512vnni:
            return "avx512vnni";
        case Isa::amx:
            return "amx";
    }
    return "unknown";
}

bool isa_built(Isa isa) {
    switch (isa) {
        case Isa::scalar:
            return probe_scalar;
#if defined(MVIT_BUILD_X86)
        case Isa::avx2:
            return probe_avx2;
        case Isa::avx512vnni:
        case Isa::amx:
            return probe_avx512vnni;
#else
        default:
            break;
#endif
    }
    return false;
}

bool isa_supported(Isa isa) { return isa_built(isa) && cpu_has(isa); }

Isa isa_active() { return static_cast<Isa>(active_level().load(std::memory_order_relaxed)); }

bool isa_set(Isa isa) {
    if (!isa_supported(isa)) return false;
    active_level().store(static_cast<int>(isa), std::memory_order_relaxed);
    return true;
}

}  // namespace mvit
