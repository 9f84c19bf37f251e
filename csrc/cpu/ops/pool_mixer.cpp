#include "cpu/ops/pool_mixer.h"

#include "cpu/core/isa.h"
#include "cpu/core/parallel.h"

namespace mvit {

MVIT_FLOAT_TABLE(PoolMixerKernels, pool_mixer)

Status pool_mixer(const PoolMixerProblem& p, int threads) {
    if (p.batch < 0 || p.channels < 0 || p.height < 0 || p.width < 0) return Status::bad_shape;
    if (!known(p.dtype)) return Status::bad_dtype;
    const auto kernel = pool_mixer_table.active().row[static_cast<int>(p.dtype)];
    const int64_t line = p.width * p.channels * element_size(p.dtype), rows = p.batch * p.height;
    if (line == 0) return Status::ok;
    parallel_for(rows, threads_for(4 * rows * line, rows, threads), [&](int64_t row) {
        const auto* here = static_cast<const char*>(p.x) + row * line;
        const int64_t y = row % p.height;
        kernel(p, y > 0 ? here - line : nullptr, here, y + 1 < p.height ? here + line : nullptr, static_cast<char*>(p.y) + row * line);
    });
    return Status::ok;
}

}  // namespace mvit
