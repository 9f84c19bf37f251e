#include "cpu/core/qweight.h"

#include <cstring>

namespace mvit {

bool read_qweight(const void* data, int64_t bytes, QWeight* weight) {
    QWeightHeader header;
    if (!data || bytes < int64_t{sizeof header}) return false;
    std::memcpy(&header, data, sizeof header);
    constexpr int64_t most = int64_t{1} << 31;
    if (std::memcmp(header.magic, qweight_magic, sizeof header.magic) != 0 || header.version != qweight_version) return false;
    if ((header.bits != 8 && header.bits != 6) || header.columns < 0 || header.depth < 0) return false;
    if (header.columns > most || header.depth > most || header.bytes != bytes) return false;
    const int bits = static_cast<int>(header.bits);
    if (qweight_bytes(header.columns, header.depth, bits) != bytes) return false;
    const auto* sums = reinterpret_cast<const int32_t*>(static_cast<const char*>(data) + sizeof header);
    const auto* panels = reinterpret_cast<const int8_t*>(sums + 2 * qpanel * qpanels(header.columns));
    *weight = {panels, header.columns, header.depth, bits, sums, header.largest};
    return true;
}

}  // namespace mvit
