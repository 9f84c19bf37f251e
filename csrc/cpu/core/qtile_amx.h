// Which sums of qtile.h AMX makes. Internal linkage.
#pragma once

#include "cpu/core/qtile.h"
#include "cpu/core/tiles_amx.h"

#if defined(MVIT_ISA_AMX)

namespace mvit {
namespace {

inline constexpr int64_t least_tile_depth = 32;  // below, half of each product or more would be padding
inline constexpr int64_t least_tile_rows = 4;    // fewer wait for their weights, not for products
// Rows of a panel, counted for each: fewer are fewer than four sums at a time, which is what hides the latency of products and pays for the
// shapes of tiles.
inline constexpr int64_t least_panel_rows = 64;

// A row's last one to three bytes are nothing that a tile could end at.
inline bool tiles_take(const QTile& t) {
    if (t.windows.line > 0) return true;  // which were asked about before
    return t.depth % 4 == 0 && t.depth >= least_tile_depth && t.rows >= least_tile_rows && t.rows * t.panels >= least_panel_rows;
}

inline TileOperands<OfBytes> tile_operands(const QTile& t) {
    return {t.a, t.a_stride, t.depth, t.w, t.w_stride, t.panels, t.init, t.init_stride, t.windows};
}

// Whether rows can be windows: tiles end where lines do.
inline bool tiles_take_windows(int64_t line, int64_t run) {
    return run % 4 == 0 && run >= least_tile_depth && run % tile_part(run) == 0 && 4 * line >= 3 * round_up(line, tile_rows);
}

}  // namespace
}  // namespace mvit

#else

namespace mvit {
namespace {

inline bool tiles_take_windows(int64_t, int64_t) { return false; }

}  // namespace
}  // namespace mvit

#endif
