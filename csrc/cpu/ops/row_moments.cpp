#include "cpu/ops/row_moments.h"

#include "cpu/core/borrowed.h"
#include "cpu/core/isa.h"
#include "cpu/core/parallel.h"
#include "cpu/ops/group_norm.h"

namespace mvit {

MVIT_FLOAT_TABLE(GroupNormKernels, group_norm)

void row_moments(DType dtype, const void* x, int64_t groups, int64_t rows, int64_t depth, Moments* moments, int threads) {
    const Cut cut = cut_rows(groups, rows, threads);
    const int64_t row_bytes = depth * element_size(dtype);
    const Borrowed<Statistics> tiles(groups * cut.tiles());
    parallel_for(cut.tasks(), threads_for(groups * rows * row_bytes, cut.tasks(), threads), [&](int64_t task) {
        const char* from = static_cast<const char*>(x) + (cut.group(task) * rows + cut.first(task)) * row_bytes;
        gather_statistics(dtype, from, cut, task, depth, tiles.data());
    });
    combine_groups(tiles.data(), cut, moments);
}

void gather_statistics(DType dtype, const void* x, const Cut& cut, int64_t task, int64_t depth, Statistics* tiles) {
    const GroupNormKernels& kernels = group_norm_table.active();
    const int64_t rows = cut.count(task), step = statistics_rows * depth * element_size(dtype);
    Statistics* tile = tiles + cut.group(task) * cut.tiles() + cut.first(task) / statistics_rows;
    const char* from = static_cast<const char*>(x);
    for (int64_t row = 0; row < rows; row += statistics_rows, from += step)
        *tile++ = kernels.statistics[static_cast<int>(dtype)](from, (rows - row < statistics_rows ? rows - row : statistics_rows) * depth);
}

void combine_groups(const Statistics* tiles, const Cut& cut, Moments* moments) {
    for (int64_t group = 0; group < cut.groups; ++group) moments[group] = combine(tiles + group * cut.tiles(), cut.tiles());
}

}  // namespace mvit
