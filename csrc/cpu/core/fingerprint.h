// A number that changes when memory does, for memory whose changes nobody counts: one word of every 256 bytes, and all of the first 4 KB,
// so that it costs a fraction of reading. What replaces a weight by another changes it; a change of single values beyond 4 KB may not.
#pragma once

#include <cstdint>
#include <cstring>

namespace mvit {

inline uint64_t fingerprint(const void* data, int64_t bytes) {
    const char* p = static_cast<const char*>(data);
    uint64_t hash = 0x9E3779B97F4A7C15u ^ static_cast<uint64_t>(bytes);
    const auto take = [&](int64_t at, int64_t count) {
        uint64_t word = 0;
        std::memcpy(&word, p + at, static_cast<size_t>(count));
        hash = (hash ^ word) * 0xFF51AFD7ED558CCDu;  // odd: no bit is lost
        hash ^= hash >> 32;
    };
    const int64_t whole = bytes < 4096 ? bytes : 4096;
    int64_t i = 0;
    for (; i + 8 <= whole; i += 8) take(i, 8);
    for (i = bytes > whole ? whole : i; i + 8 <= bytes; i += 256) take(i, 8);
    if (const int64_t rest = bytes % 8) take(bytes - rest, rest);
    return hash;
}

}  // namespace mvit
