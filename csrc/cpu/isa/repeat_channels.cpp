// A row of repeat_channels; see ops/repeat_channels.h. Compiled once an ISA.
#include "cpu/ops/repeat_channels.h"

#include "cpu/core/isa.h"

#if defined(MVIT_ISA_AVX512VNNI) || defined(MVIT_ISA_AVX2)
#include <immintrin.h>
#endif

namespace mvit {
namespace {

inline void shuffle(const uint8_t* from, const uint8_t* order, uint8_t* to) {
#if defined(MVIT_ISA_AVX512VNNI) || defined(MVIT_ISA_AVX2)
    const auto at = [](const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); };
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_shuffle_epi8(at(from), at(order)));
#else
    for (int i = 0; i < 16; ++i) to[i] = from[order[i]];
#endif
}

// What a chunk writes beyond its pixel, the next one overwrites. Where 16 bytes from its offset on would end outside of the row, they are
// put together first: in its last pixels.
void row(const RepeatRow& r) {
    const int64_t from_stride = r.from_stride, to_bytes = r.to_bytes, count = r.count;  // a byte stored could be one of r's
    const RepeatChunk* chunks = r.chunks;
    const int64_t bytes = r.pixels > 0 ? (r.pixels - 1) * from_stride + r.from_bytes : 0;
    int64_t pixel = 0;
    for (; pixel < r.pixels && pixel * from_stride + r.from_bytes + 16 <= bytes; ++pixel) {
        const uint8_t* from = r.from + pixel * from_stride;
        uint8_t* to = r.to + pixel * to_bytes;
        for (int64_t i = 0; i < count; ++i) shuffle(from + chunks[i].offset, chunks[i].order, to + 16 * i);
    }
    for (; pixel < r.pixels; ++pixel) {
        const uint8_t* from = r.from + pixel * from_stride;
        uint8_t* to = r.to + pixel * to_bytes;
        for (int64_t i = 0; i < count; ++i) {
            const int64_t left = bytes - pixel * from_stride - chunks[i].offset;
            uint8_t some[16] = {};
            __builtin_memcpy(some, from + chunks[i].offset, static_cast<size_t>(left < 16 ? left : 16));
            shuffle(some, chunks[i].order, to + 16 * i);
        }
    }
}

}  // namespace

extern const RepeatChannelsKernels MVIT_ISA_SYMBOL(repeat_channels);
const RepeatChannelsKernels MVIT_ISA_SYMBOL(repeat_channels) = {row};

}  // namespace mvit
