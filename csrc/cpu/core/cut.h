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
    Cut best{groups, rows, statistics_rows, (rows + statistics_rows - 1) / statistics_rows};
    if (groups <= 0 || rows <= 0) return best;
    const int64_t team = threads > 0 ? threads : 1;
    int64_t least = 0;
    for (int64_t height = 64; height >= statistics_rows; height -= statistics_rows) {
        if (height - statistics_rows >= rows) continue;
        const Cut cut{groups, rows, height, (rows + height - 1) / height};
        int64_t longest = 0;  // rows of the thread that has most, where the tasks are dealt in even runs
        for (int64_t i = 0, begin = 0; i < team; ++i) {
            const int64_t task = cut.tasks() * (i + 1) / team, end = cut.group(task) * rows + cut.first(task);
            longest = end - begin > longest ? end - begin : longest;
            begin = end;
        }
        const int64_t time = longest + 2 * longest / height;  // to load the weights takes as long as two rows
        if (least == 0 || time < least) best = cut, least = time;
    }
    return best;
}

}  // namespace mvit
