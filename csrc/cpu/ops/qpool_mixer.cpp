#include "cpu/ops/qpool_mixer.h"

#include "cpu/core/isa.h"
#include "cpu/core/parallel.h"

namespace mvit {

MVIT_INTEGER_TABLE(QPoolMixerKernels, qpool_mixer)

Status qpool_mixer(const QPoolMixerProblem& p, int threads) {
    if (p.batch < 0 || p.channels < 0 || p.height < 0 || p.width < 0) return Status::bad_shape;
    if (!writable(p.zero_point) || !writable(p.out.zero_point)) return Status::overflow;
    const auto kernel = qpool_mixer_table.active().row;
    const int64_t line = p.width * p.channels, rows = p.batch * p.height;
    if (line == 0) return Status::ok;
    parallel_for(rows, threads_for(4 * rows * line, rows, threads), [&](int64_t row) {
        const auto* here = p.x + row * line;
        const int64_t y = row % p.height;
        kernel(p, y > 0 ? here - line : nullptr, here, y + 1 < p.height ? here + line : nullptr, p.y + row * line);
    });
    return Status::ok;
}

}  // namespace mvit
