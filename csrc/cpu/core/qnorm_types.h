// Rows of an int16 residual stream that a norm makes bytes again, as data; qnorm.h does it.
#pragma once

#include <cstdint>

namespace mvit {

struct QNorm {
    const int16_t* x;
    int64_t x_stride, depth;
    const int64_t* sums;  // sum and sum of squares of each group of rows, or null: each row by its own, taken on the way
    int64_t group_rows;   // rows of a group
    double scale, eps;    // of x; added to the variance
    double y_scale;       // of the bytes; 1 with a gain
    float low, high;      // what the bytes' range leaves once their zero-point is subtracted
    int32_t zero_point;
    const float *gain = nullptr, *offset = nullptr;  // of each channel: gamma / s_y and beta / s_y, or none
};

}  // namespace mvit
