// Where 16 bytes of a row lie in shared memory, so that the 8 rows of a matrix that ldmatrix reads at once fall into 32 different banks.
//
// Rows of 64 bytes: two rows fill the 32 banks, and eight rows of the same chunk would meet in 8 of them. Chunk j of row r lies at
// j ^ (r / 2 % 4): of eight rows, each pair has another place.
#pragma once

#include "cuda/primitives/device.cuh"

namespace mvit::cuda {

inline constexpr int row_bytes = 64, chunk_bytes = 16, row_chunks = row_bytes / chunk_bytes;

MVIT_BOTH constexpr int swizzled(int row, int chunk) { return row * row_bytes + (chunk ^ (row / 2 % row_chunks)) * chunk_bytes; }

}  // namespace mvit::cuda
