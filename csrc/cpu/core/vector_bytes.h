// How wide the integer vectors of an instruction set are, for what is written on vectors of the compiler. Internal linkage.
#pragma once

namespace mvit {
namespace {

#if defined(MVIT_ISA_AVX512VNNI)
constexpr int vector_bytes = 64;
#elif defined(MVIT_ISA_AVX2)
constexpr int vector_bytes = 32;
#else
constexpr int vector_bytes = 16;
#endif

}  // namespace
}  // namespace mvit
