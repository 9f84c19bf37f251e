#include "cpu/ops/repeat_channels.h"

#include "cpu/core/isa.h"

namespace mvit {

MVIT_FLOAT_TABLE(RepeatChannelsKernels, repeat_channels)

RepeatChannels::RepeatChannels(int64_t channels, int64_t times, int64_t element)
    : from_bytes_(channels / times * element), to_bytes_(channels * element), chunks_((to_bytes_ + 15) / 16) {
    const auto source = [&](int64_t byte) { return byte / element / times * element + byte % element; };
    for (int64_t i = 0; 16 * i < to_bytes_; ++i) {
        RepeatChunk& chunk = chunks_[i];
        chunk.offset = source(16 * i);
        for (int64_t b = 0; b < 16; ++b) {
            const int64_t byte = 16 * i + b;
            chunk.order[b] = static_cast<uint8_t>(byte < to_bytes_ ? source(byte) - chunk.offset : 0);
        }
    }
}

void RepeatChannels::operator()(const void* from, int64_t from_stride, int64_t pixels, void* to) const {
    repeat_channels_table.active().row({static_cast<const uint8_t*>(from), from_stride, from_bytes_, chunks_.data(), (to_bytes_ + 15) / 16,
                                        static_cast<uint8_t*>(to), to_bytes_, pixels});
}

}  // namespace mvit
