#include "cpu/core/isa.h"

#include <atomic>
#include <cstdint>

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
extern const bool probe_avxvnni;
extern const bool probe_avx512vnni;
extern const bool probe_avx512bf16;
extern const bool probe_amx;
#endif

namespace {

#if defined(MVIT_BUILD_X86)
// Older compilers have no name for F16C in __builtin_cpu_supports. AVX2, checked beside it, vouches for the operating system.
bool cpu_has_f16c() {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

// AVX-VNNI, or where that is tested (core/dots.h) the same instructions as AVX512-VNNI has them.
bool cpu_has_avxvnni() {
#if defined(MVIT_TEST_AVXVNNI)
    return __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#else
    unsigned a, b, c, d;
    constexpr unsigned vnni = 1u << 4;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & vnni) != 0;
#endif
}

#if defined(__linux__)
constexpr long supported_components = 0x1021, ask_for_component = 0x1023,
               tile_data = 18;  // ARCH_GET_XCOMP_SUPP, _REQ_XCOMP_PERM, XTILEDATA
#endif

// The processor has tiles and multiplies bytes and bfloat16 in them, and the system can save them.
bool cpu_has_amx() {
#if defined(__linux__)
    unsigned a, b, c, d;
    constexpr unsigned bf16 = 1u << 22, tile = 1u << 24, int8 = 1u << 25, all = bf16 | tile | int8;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & all) != all) return false;
    uint64_t components = 0;
    return syscall(SYS_arch_prctl, supported_components, &components) == 0 && (components >> tile_data & 1) != 0;
#else
    return false;
#endif
}

// What has to be asked for before a set is used: registers of 8 KiB a thread. Stacks of signal handlers have to be larger from then on, so
// nobody asks who does not use them.
bool granted(Isa isa) {
#if defined(__linux__)
    return isa != Isa::amx || syscall(SYS_arch_prctl, ask_for_component, tile_data) == 0;
#else
    return isa != Isa::amx;
#endif
}
#else
bool granted(Isa) { return true; }
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
        case Isa::avxvnni:
            return cpu_has(Isa::avx2) && cpu_has_avxvnni();
        case Isa::avx512vnni:
            return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx2") &&
                   __builtin_cpu_supports("fma") && cpu_has_f16c();
        case Isa::avx512bf16:
            return cpu_has(Isa::avx512vnni) && __builtin_cpu_supports("avx512bf16");
        case Isa::amx:
            return cpu_has(Isa::avx512bf16) && cpu_has_amx();
    }
    return false;
#else
    return isa == Isa::scalar;
#endif
}

Isa best() {
    for (int level = isa_count - 1; level > 0; --level)
        if (const Isa isa = static_cast<Isa>(level); isa_supported(isa) && granted(isa)) return isa;
    return Isa::scalar;
}

constexpr int undecided = -1;
std::atomic<int> active_level{undecided};

}  // namespace

const char* isa_name(Isa isa) {
    switch (isa) {
        case Isa::scalar:
            return "scalar";
        case Isa::avx2:
            return "avx2";
        case Isa::avxvnni:
            return "avxvnni";
        case Isa::avx512vnni:
            return "avx512vnni";
        case Isa::avx512bf16:
            return "avx512bf16";
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
        case Isa::avxvnni:
            return probe_avxvnni;
        case Isa::avx512vnni:
            return probe_avx512vnni;
        case Isa::avx512bf16:
            return probe_avx512bf16;
        case Isa::amx:
            return probe_amx;
#else
        default:
            break;
#endif
    }
    return false;
}

bool isa_supported(Isa isa) { return isa_built(isa) && cpu_has(isa); }

Isa isa_active() {
    int level = active_level.load(std::memory_order_relaxed);
    if (level == undecided) {
        const int found = static_cast<int>(best());
        if (active_level.compare_exchange_strong(level, found, std::memory_order_relaxed)) level = found;
    }
    return static_cast<Isa>(level);
}

bool isa_set(Isa isa) {
    if (!isa_supported(isa) || !granted(isa)) return false;
    active_level.store(static_cast<int>(isa), std::memory_order_relaxed);
    return true;
}

}  // namespace mvit
