// What becomes of an int32 sum, as data; qepilogue.h does it.
#pragma once

#include "cpu/core/qtile.h"

namespace mvit {

enum class QType : int { i32 = 0, u8 = 1, i16 = 2, f32 = 3, bf16 = 4, f16 = 5 };
enum class QActivation : int { none = 0, relu = 1, segments = 2 };

inline constexpr bool known(QType type) { return type >= QType::i32 && type <= QType::f16; }
inline constexpr int64_t element_size(QType type) { return type == QType::u8 ? 1 : type == QType::i32 || type == QType::f32 ? 4 : 2; }

struct QEpilogue {
    QChannels channels;
    QType type;  // of y
    bool plain;  // see above; the activation none or, by way of `low` and `high`, relu or relu6
    QActivation activation;
    const float* segments;              // [3][32], see activate_segments
    const uint8_t* table;               // 256 bytes through which every byte of y goes last, or null
    const int16_t* curve;               // an activation that makes bytes of its own (qcurve.h), of plain results; or null
    const float* slopes;                // (images, 2 slope_columns): a dynamic ReLU (ops/dynamic_relu.h) before bytes or floats; or null
    int64_t slope_columns, slope_rows;  // of y: all its columns, and the rows of an image, or 0 where there is one
    const void* residual;               // rows of residual_type, or null
    QType residual_type;                // u8; i16; or, where y is a float, its type
    int64_t residual_stride;
    float residual_scale;
    int32_t residual_zero_point;
    const float* row_scale;         // of each row, or null: dynamic
    const int32_t* row_zero_point;  // likewise; for sums (i32) without a row_scale
    const int32_t* column_sum;      // sum_w
    void* y;
    int64_t y_stride;
};

// Whether there are no slopes, or kernels know what to do with them.
inline constexpr bool slopes_fit(const QEpilogue& e) {
    if (!e.slopes) return true;
    const bool type = (e.type == QType::u8 || e.type == QType::f32) && !e.plain;
    return type && e.activation == QActivation::none && !e.table && !e.curve && !e.residual && !e.row_scale && !e.row_zero_point;
}

}  // namespace mvit
