// A number that changes when memory does, for memory whose changes nobody counts. Four chains side by side: a multiplication's latency is
// what one would wait for.
#pragma once

#include <cstdint>
#include <cstring>

namespace mvit {

inline uint64_t fingerprint(const void* data, int64_t bytes) {
    constexpr uint64_t odd = 0xFF51AFD7ED558CCDu;  // no bit is lost in a product
    const char* p = static_cast<const char*>(data);
    uint64_t hash[4] = {1, 2, 3, static_cast<uint64_t>(bytes)};
    int64_t i = 0;
    for (; i + 32 <= bytes; i += 32) {
        uint64_t word[4];
        std::memcpy(word, p + i, sizeof word);
        for (int j = 0; j < 4; ++j) {
            hash[j] = (hash[j] ^ word[j]) * odd;
            hash[j] ^= hash[j] >> 32;
        }
    }
    uint64_t rest[4] = {};
    std::memcpy(rest, p + i, static_cast<size_t>(bytes - i));
    uint64_t all = 0;
    for (int j = 0; j < 4; ++j) {
        all = (all ^ hash[j] ^ rest[j]) * odd;
        all ^= all >> 32;
    }
    return all;
}

}  // namespace mvit
