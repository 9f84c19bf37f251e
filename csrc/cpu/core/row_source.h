// Where the rows of a left operand come from and what happens to them on the way; rows.h loads them.
#pragma once

#include <cstdint>

#include "cpu/core/moments.h"

namespace mvit {

struct RowSource {
    const void* a;
    int64_t stride, depth;  // elements from row to row, elements of a row
    bool centred;           // (a - mean) * scale
    Centre mean;
    float scale;
    bool layer_norm;  // each row by its own mean and variance
    float eps;
    const void* second;  // more columns, or null with a depth of 0
    int64_t second_stride, second_depth;
};

// Rows as they are (moments null), or through a norm by the moments of their group.
RowSource row_source(const void* a, int64_t stride, int64_t depth, const Moments* moments, float eps);

}  // namespace mvit
