// Integer weights as the tensor cores take them; mvit_kernels/ops/qfragments.py makes them of packed weights, on the device.
//
// A weight of N columns (output channels) and depth K is cut into tiles of 16 columns and 32 values of k, zeros beyond N and K. In a tile
// lies, one after the other for the 32 lanes of a warp, what each lane holds of two products of 8 columns (mma_s8.cuh); lane l, g = l / 4,
// t = l % 4:
//
//     word    column    k and the next three
//     0       g         4 t
//     1       g         4 t + 16
//     2       g + 8     4 t
//     3       g + 8     4 t + 16
//
// Which column lies at place g is the op's matter: of qgemm and qconv2d see `product_column` in ops/qproduct.cuh.
//
// 8 bits: | lane 0: words 0 1 2 3 | lane 1 | ..          512 bytes a tile: a lane reads its 16 at once
// 6 bits: | words 0 of all lanes | words 1 | words 2 |   384 bytes a tile: the planes of int6.cuh
//
// Tiles lie in the order [N / 16][K / 32]. N is rounded up to 64 and K to 64, what a block multiplies at a time, so that no product needs
// to know where the weight ends.
#pragma once

#include <cstdint>

namespace mvit::cuda {

inline constexpr int tile_columns = 16, tile_depth = 32;
inline constexpr int fragment_columns = 64, fragment_depth = 64;  // what sizes are rounded up to

struct QFragments {
    const uint8_t* tiles;
    int64_t columns, depth;  // depth: in bytes of a row, with the padding of its parts
    int bits;
};

inline constexpr int tile_bytes(int bits) { return tile_columns * tile_depth * bits / 8; }

}  // namespace mvit::cuda
