// Packed integer weights. mvit_kernels/ops/pack_weight.py writes them; this is how kernels read them.
//
//     | QWeightHeader, 64 bytes | sum[n], int32 | sum_abs[n], int32 | panels |        n: the columns, rounded up to 16
//
// sum[n] is the sum of w[n, k] over k, which zero-points need; sum_abs[n] that of |w[n, k]|. A weight of N columns (output channels) and
// depth K is cut into panels of 16 columns, and these into blocks of 4 values of k, zeros beyond N and K. 8 bits:
//
//       block 0 (64 bytes: one vector)        block 1
//     | n0:k0 k1 k2 k3 | n1:k0 k1 k2 k3 | .. n15 | n0:k4 k5 k6 k7 | ..      ceil(K / 4) blocks a panel
//
// so that one vector has, in each lane of 32 bits, the four values of a column that meet the same four bytes of a row. 6 bits: 4 values in
// 3 bytes. Every four blocks become three vectors ("planes"), whose low six bits are blocks 0, 1 and 2; the fourth block is in the two
// bits above them:
//
//       bits  7 6           5 .. 0
//     plane 0 | bits 1 0 of block 3 | block 0 |
//     plane 1 | bits 3 2 of block 3 | block 1 |                              ceil(K / 16) times three planes a panel
//     plane 2 | bits 5 4 of block 3 | block 2 |
#pragma once

#include <cstdint>

namespace mvit {

inline constexpr int qpanel = 16;  // columns
inline constexpr int qblock = 64;  // bytes: 16 columns x 4 k
inline constexpr uint32_t qweight_version = 1;
inline constexpr char qweight_magic[9] = "MVITQMAT";

struct QWeightHeader {
    char magic[8];
    uint32_t version, bits;
    int64_t columns, depth, bytes;  // bytes: of everything, this header included
    int32_t largest;                // the largest sum_abs
    uint32_t checksum;              // CRC-32 of what follows the header
    char reserved[16];
};
static_assert(sizeof(QWeightHeader) == 64);

struct QWeight {
    const int8_t* panels;
    int64_t columns, depth;
    int bits;
    const int32_t* sum;
    int32_t largest;
};

inline constexpr int64_t qpanels(int64_t columns) { return (columns + qpanel - 1) / qpanel; }
inline constexpr int64_t qblocks(int64_t depth) { return (depth + 3) / 4; }
inline constexpr int64_t qpanel_bytes(int64_t depth, int bits) {
    return bits == 6 ? (depth + 15) / 16 * 3 * qblock : qblocks(depth) * qblock;
}
inline constexpr int64_t qweight_bytes(int64_t columns, int64_t depth, int bits) {
    return int64_t{sizeof(QWeightHeader)} + qpanels(columns) * (2 * qpanel * int64_t{sizeof(int32_t)} + qpanel_bytes(depth, bits));
}

// False where `data` (`bytes` of them, 4-byte aligned) is no packed weight of this version. Whether it is damaged is asked once, when it is
// loaded, by its checksum.
bool read_qweight(const void* data, int64_t bytes, QWeight* weight);

}  // namespace mvit
