// Where a product waits, in scratch memory, for what is still to be done to it before it is written (epilogue.h).
#pragma once

#include "cpu/core/tile.h"

namespace mvit {

// Columns that are finished together: the second cache holds a block of rows of them.
inline constexpr int64_t columns_at_once = 16 * panel;
// Floats from row to row.
inline constexpr int64_t product_stride(int64_t columns) { return scratch_stride(columns < columns_at_once ? columns : columns_at_once); }
// Of what becomes bfloat16 again a piece at a time.
inline constexpr int piece_stride = 2 * panel;
// Room for either, of each row.
inline constexpr int64_t product_floats(int64_t columns) {
    return product_stride(columns) < piece_stride ? piece_stride : product_stride(columns);
}

}  // namespace mvit
