// Which instruction set runs. Every file of isa/ is compiled once an ISA (the build defines MVIT_ISA and the flags), and each
// object exports one table of kernels whose name ends in the ISA: separable_attention_scalar, separable_attention_avx2, ...
#pragma once

#include <cstdint>

namespace mvit {

// avxvnni: avx2, with products of bytes, as processors without AVX-512 have them. avx512bf16: avx512vnni, with instructions that multiply
// bfloat16 and round to it. amx: avx512bf16, with products of bytes and of bfloat16 by tiles (amx.h).
enum class Isa : int { scalar = 0, avx2 = 1, avxvnni = 2, avx512vnni = 3, avx512bf16 = 4, amx = 5 };
inline constexpr int isa_count = 6;

const char* isa_name(Isa isa);
bool isa_built(Isa isa);      // this library holds kernels compiled with that ISA's flags
bool isa_supported(Isa isa);  // built, and this processor and operating system run it
Isa isa_active();             // the best supported one, unless set lower
bool isa_set(Isa isa);        // false, and no change, where it is not supported

// How many times as fast as without it AMX makes products of bytes, with what is done to their sums: for who cuts them into tasks.
inline int64_t product_speed() { return isa_active() == Isa::amx ? 4 : 1; }

// A table of kernels an ISA; null where the ISA is not built.
template <class Kernels>
struct IsaTable {
    const Kernels* kernels[isa_count];
    const Kernels& active() const { return *kernels[static_cast<int>(isa_active())]; }
};

}  // namespace mvit

#define MVIT_JOIN_(a, b) a##_##b
#define MVIT_JOIN(a, b) MVIT_JOIN_(a, b)
// Inside isa/*.cpp: the symbol that holds this ISA's kernels of an op.
#define MVIT_ISA_SYMBOL(op) MVIT_JOIN(op, MVIT_ISA)

// Inside ops/*.cpp: declares the tables of an op and gathers them. A set takes what it changes nothing of from the set before: of ops on
// floats AVX-VNNI, and of those on bytes AVX512-BF16 (isa/flags.txt says which files are compiled for a set).
#define MVIT_FLOAT_TABLE(Kernels, op) MVIT_ISA_TABLE_OF(Kernels, op, avx2, avx512bf16)
#define MVIT_INTEGER_TABLE(Kernels, op) MVIT_ISA_TABLE_OF(Kernels, op, avxvnni, avx512vnni)
#define MVIT_ISA_TABLE(Kernels, op) MVIT_ISA_TABLE_OF(Kernels, op, avxvnni, avx512bf16)
#if defined(MVIT_BUILD_X86)
#define MVIT_ISA_TABLE_OF(Kernels, op, of_avxvnni, of_avx512bf16)                                            \
    extern const Kernels op##_scalar;                                                                        \
    extern const Kernels op##_avx2;                                                                          \
    extern const Kernels op##_##of_avxvnni;                                                                  \
    extern const Kernels op##_avx512vnni;                                                                    \
    extern const Kernels op##_##of_avx512bf16;                                                               \
    extern const Kernels op##_amx;                                                                           \
    namespace {                                                                                              \
    constexpr IsaTable<Kernels> op##_table{                                                                  \
        {&op##_scalar, &op##_avx2, &op##_##of_avxvnni, &op##_avx512vnni, &op##_##of_avx512bf16, &op##_amx}}; \
    }
#else
#define MVIT_ISA_TABLE_OF(Kernels, op, of_avxvnni, of_avx512bf16) \
    extern const Kernels op##_scalar;                             \
    namespace {                                                   \
    constexpr IsaTable<Kernels> op##_table{{&op##_scalar}};       \
    }
#endif
