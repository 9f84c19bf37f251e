// Moments of groups of dense rows: as a pass of its own, or tile by tile as the rows are written.
#pragma once

#include "cpu/core/cut.h"
#include "cpu/core/moments.h"
#include "cpu/core/types.h"

namespace mvit {

// Of `groups` groups of `rows` dense rows of `depth` values.
void row_moments(DType dtype, const void* x, int64_t groups, int64_t rows, int64_t depth, Moments* moments, int threads);

// The statistics of a task's rows, which begin at `x`, into their tiles of tiles[groups * cut.tiles()].
void gather_statistics(DType dtype, const void* x, const Cut& cut, int64_t task, int64_t depth, Statistics* tiles);

// The moments of each group from all its tiles.
void combine_groups(const Statistics* tiles, const Cut& cut, Moments* moments);

}  // namespace mvit
