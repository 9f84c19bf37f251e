// The loop of qpool_mixer; formula in ops/qpool_mixer.h. Compiled once an ISA.
#include "cpu/ops/qpool_mixer.h"

#include "cpu/core/isa.h"
#include "cpu/core/qepilogue.h"
#include "cpu/core/qvector.h"

namespace mvit {
namespace {

// Channels in the lanes: a vector of them goes along the row, and carries the sums of the columns before, at and behind a pixel.
void row(const QPoolMixerProblem& p, const uint8_t* above, const uint8_t* here, const uint8_t* below, uint8_t* y) {
    const int rows = 1 + (above != nullptr) + (below != nullptr);
    const I32 zero = I32::all(0), zero_point = I32::all(p.zero_point), out = I32::all(p.out.zero_point);
    const F32 low = F32::all(p.out.low), high = F32::all(p.out.high);
    each_vector(p.channels, [&](int64_t c, int n) {
        const auto column = [&](int64_t i, I32 x) {
            const int64_t at = i * p.channels + c;
            if (above) x = x + load_ints(above + at, n);
            return below ? x + load_ints(below + at, n) : x;
        };
        const F32 keep = load(p.keep + c, n, 0.0f), move = load(p.move + c, n, 0.0f);
        I32 x = load_ints(here + c, n), before = zero, at = column(0, x);
        for (int64_t i = 0; i < p.width; ++i) {
            const bool last = i + 1 == p.width;
            const I32 next = last ? zero : load_ints(here + (i + 1) * p.channels + c, n);
            const I32 behind = last ? zero : column(i + 1, next);
            const int count = rows * (1 + (i > 0) + !last);
            const F32 sum = to_float(before + at + behind - I32::all(count * p.zero_point));
            const F32 mean = sum * F32::all(1.0f / static_cast<float>(count));
            store(to_byte(to_float(x - zero_point) * keep + mean * move, low, high, out), y + i * p.channels + c, n);
            before = at, at = behind, x = next;
        }
    });
}

}  // namespace

extern const QPoolMixerKernels MVIT_ISA_SYMBOL(qpool_mixer);
const QPoolMixerKernels MVIT_ISA_SYMBOL(qpool_mixer) = {row};

}  // namespace mvit
