// How rows of several groups (images) are cut into tasks and into the tiles of their statistics.
#pragma once

#include <cstdint>

#include "cpu/core/tile.h"

namespace mvit {

// A task is at most 64 rows, enough for the weights to be worth loading, and fewer where that leaves threads without work. Values of rows
// do not depend on the cut. Their statistics are gathered in tiles of `statistics_rows`, whatever the task: neither do those.
inline constexpr int64_t statistics_rows = 16;

struct Cut {
    int64_t groups, rows, height, blocks;  // rows: of a group; height: of a block; blocks: of a group
    int64_t tasks() const { return groups * blocks; }
    int64_t group(int64_t task) const { return task / blocks; }
    int64_t first(int64_t task) const { return task % blocks * height; }
    int64_t count(int64_t task) const { return rows - first(task) < height ? rows - first(task) : height; }
    int64_t tiles() const { return (rows + statistics_rows - 1) / statistics_rows; }  // of a group
};

inline Cut cut_rows(int64_t groups, int64_t rows, int threads) {
    const int64_t share = round_up((groups * rows + threads - 1) / (threads > 0 ? threads : 1), statistics_rows);
    const int64_t height = share < statistics_rows ? statistics_rows : share > 64 ? 64 : share;
    return {groups, rows, height, (rows + height - 1) / height};
}

}  // namespace mvit
