// What the tests of attention share: where its rows lie, what of its mixtures there is, and the table of exponentials of those on bytes.
#pragma once

#include <cmath>
#include <cstdint>

namespace mvit::tests {

// Which parts of the formula (ops/attention.h) there are.
struct Mixed {
    bool bias, scores, weights, shift;
};

inline constexpr Mixed mixtures[] = {
    {false, false, false, false}, {true, false, false, false}, {false, true, false, false},
    {true, false, true, false},   {true, true, true, true},
};

// Rows of `channels` elements with `gap` more between them, and a row more between images; returns how many elements there are, none beyond
// the last that is used.
inline int64_t set_row_strides(int64_t batch, int64_t rows, int64_t channels, int64_t gap, int64_t (&stride)[2]) {
    stride[1] = channels + gap;
    stride[0] = (rows + 1) * stride[1];
    return (batch - 1) * stride[0] + (rows - 1) * stride[1] + channels;
}

inline const uint8_t* exponential_table() {
    static uint8_t values[256];
    for (int i = 0; i < 256; ++i) values[i] = static_cast<uint8_t>(std::nearbyint(255 * std::exp(-i / 40.0)));
    return values;
}

}  // namespace mvit::tests
