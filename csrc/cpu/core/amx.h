// Tiles of AMX: eight registers of up to 16 rows of 64 bytes, which the processor multiplies whole. Internal linkage.
//
//     dot_bytes<c, a, w>:   c[r, n] += sum of a[r, 4 k + i] w[k, 4 n + i] over k and i < 4    a unsigned, w signed bytes, c int32
//     dot_bf16<c, a, w>:    c[r, n] += sum of a[r, 2 k + i] w[k, 2 n + i] over k and i < 2    bfloat16, c float32
//
// which are 16 rows as they are and 16 blocks of a packed panel (qweight.h, tile.h) as they are. Of bytes modulo 2^32, as vpdpbusd, at up
// to 8 times its rate: a product of whole tiles takes 16 cycles. Of bfloat16 rounded to nearest, subnormal numbers taken for 0.
//
// As assembly, not intrinsics: those of g++ 12 do not tell the compiler which memory they read and write.
#pragma once

#include <cstdint>

#if defined(MVIT_ISA_AMX)

namespace mvit {
namespace {

inline constexpr int tile_rows = 16, tile_bytes = 64, tile_registers = 8;

// Rows, and bytes of a row, of each register.
class alignas(64) TileShapes {
  public:
    void set(int tile, int64_t rows, int64_t bytes) {
        rows_[tile] = static_cast<uint8_t>(rows);
        bytes_[tile] = static_cast<uint16_t>(bytes);
    }
    // From here on; every register becomes 0.
    void take() const { asm volatile("ldtilecfg %0" : : "m"(*this)); }

  private:
    [[maybe_unused]] uint8_t palette_ = 1, start_ = 0, reserved_[14] = {};  // only the processor reads them
    uint16_t bytes_[16] = {};
    uint8_t rows_[16] = {};
};
static_assert(sizeof(TileShapes) == 64);

// To be called once done: registers in use slow down every change of threads.
inline void release_tiles() { asm volatile("tilerelease"); }

template <int tile>
inline void zero_tile() {
    asm volatile("tilezero %%tmm%c0" : : "i"(tile));
}
// Rows `stride` bytes apart; with a stride of 0, the same row each time.
template <int tile>
inline void load_tile(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(tile) : "memory");
}
template <int tile>
inline void store_tile(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(tile) : "memory");
}
template <int c, int a, int w>
inline void dot_bytes() {
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(c), "i"(a), "i"(w));
}
template <int c, int a, int w>
inline void dot_bf16() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(c), "i"(a), "i"(w));
}

}  // namespace
}  // namespace mvit

#endif
