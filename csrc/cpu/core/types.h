// Element types and status codes shared by every kernel.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mvit {

// bfloat16 is also what products of its maps multiply (tile.h); otherwise 16-bit floats are storage.
struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

template <class T>
inline constexpr bool is_bf16 = false;
template <>
inline constexpr bool is_bf16<bf16> = true;

enum class DType : int { f32 = 0, bf16 = 1, f16 = 2 };

inline constexpr bool known(DType dtype) { return dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16; }
inline constexpr int64_t element_size(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

// dynamic: of each image and channel, by slopes beside it (dynamic_relu.h of ops); never said by a caller, who gives the slopes.
enum class Activation : int { none = 0, relu = 1, silu = 2, gelu = 3, relu6 = 4, hard_swish = 5, dynamic = 6 };

// What every entry point returns; no exception crosses into or out of the kernels.
enum class Status : int { ok = 0, bad_dtype = 1, bad_shape = 2, bad_layout = 3, out_of_memory = 4, bad_weight = 5, overflow = 6 };

}  // namespace mvit
