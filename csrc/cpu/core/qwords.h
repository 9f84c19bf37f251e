// int16 numbers of rows of sixteen channels, on their way to bytes on AVX2. Internal linkage.
//
// Whatever makes the numbers needs all registers, and so does a curve (qcurve.h): in one loop they push each other to memory. So numbers of
// some rows wait here, in the first cache, and become bytes in a loop of their own, two rows at once.
#pragma once

#include <cstring>

#include "cpu/core/qcurve.h"

namespace mvit {
namespace {

struct QWords {
    static constexpr int64_t most = 128;  // rows
    alignas(32) int16_t word[most][16];

    void put(int64_t row, __m256i words) { _mm256_store_si256(reinterpret_cast<__m256i*>(word[row]), words); }

    // The first `columns` bytes of `rows` rows: to_bytes packs two rows with saturation, `order` says where their fours of channels are
    // then.
    template <class ToBytes>
    void leave(int64_t rows, int64_t columns, __m256i order, uint8_t* y, int64_t y_stride, const ToBytes& to_bytes) const {
        const auto bytes_of = [&](int64_t i, int64_t next) { return _mm256_permutevar8x32_epi32(to_bytes(get(i), get(next)), order); };
        int64_t i = 0;
        if (columns == 16)  // a loop of its own: a call in it would take the registers of all constants
            for (; i + 1 < rows; i += 2, y += 2 * y_stride) {
                const __m256i bytes = bytes_of(i, i + 1);
                _mm_storeu_si128(reinterpret_cast<__m128i*>(y), _mm256_castsi256_si128(bytes));
                _mm_storeu_si128(reinterpret_cast<__m128i*>(y + y_stride), _mm256_extracti128_si256(bytes, 1));
            }
        for (; i < rows; i += 2, y += 2 * y_stride) {
            const bool two = i + 1 < rows;
            const __m256i bytes = bytes_of(i, two ? i + 1 : i);
            store(_mm256_castsi256_si128(bytes), columns, y);
            if (two) store(_mm256_extracti128_si256(bytes, 1), columns, y + y_stride);
        }
    }

  private:
    __m256i get(int64_t row) const { return _mm256_load_si256(reinterpret_cast<const __m256i*>(word[row])); }
    static void store(__m128i bytes, int64_t columns, uint8_t* y) {
        alignas(16) uint8_t all[16];
        _mm_store_si128(reinterpret_cast<__m128i*>(all), bytes);
        std::memcpy(y, all, static_cast<size_t>(columns));
    }
};

}  // namespace
}  // namespace mvit
