// Bytes for real numbers and back (mvit_kernels/reference/quantize.py):
//
//     quantize      q = rint(min(max(x * float32(1 / s), -z), most - z)) + z     most = 2^bits - 1; NaN becomes 0
//     dequantize    x = s * float(q - z)                                         (core/qreal.h has both)
//     of rows       low = min(row, 0), high = max(row, 0), both without NaN
//                   s = max(high * float32(1 / most) - low * float32(1 / most), 2^-100), z = rint(-low / s), then as above
//
// s and z are one number for all, or one for each channel: elements lie as (outer, channels, inner), which describes the axis of any dense
// tensor. Of rows, the range times 1 / most is a difference of two products: high - low itself may be infinite.
//
// Floor: x and q once each, at the bandwidth of a copy. Rows are read twice, the second time from the first cache.
#pragma once

#include "cpu/core/qreal.h"
#include "cpu/core/types.h"

namespace mvit {

struct QuantizeProblem {
    DType dtype;  // of the floats
    int64_t outer, channels, inner;
    const float* scale;         // one, or `channels`
    const int32_t* zero_point;  // one, or `channels`
    bool scale_of_channel, zero_point_of_channel;
    int bits;          // of quantize
    const void* from;  // floats for quantize, bytes for dequantize
    void* to;
};

struct QuantizeRowsProblem {
    DType dtype;
    int64_t rows, depth, x_stride;
    int bits;
    const void* x;
    uint8_t* q;  // dense
    float* scale;
    int32_t* zero_point;
};

Status quantize(const QuantizeProblem& problem, int threads);
Status dequantize(const QuantizeProblem& problem, int threads);
Status quantize_rows(const QuantizeRowsProblem& problem, int threads);

// --- what isa/quantize.cpp implements ---

// QByte and QReal of many channels.
struct QByteChannels {
    const float *inverse, *low, *high;
    const int32_t* zero_point;
};
struct QRealChannels {
    const float *scale, *high;
    const int32_t* low;
};

// Indexed by DType.
struct QuantizeKernels {
    void (*quantize[3])(const void* x, uint8_t* q, int64_t count, const QByte&);
    void (*quantize_channels[3])(const void* x, uint8_t* q, int64_t rows, int64_t channels, const QByteChannels&);
    void (*dequantize[3])(const uint8_t* q, void* x, int64_t count, const QReal&);
    void (*dequantize_channels[3])(const uint8_t* q, void* x, int64_t rows, int64_t channels, const QRealChannels&);
    // Rows [first, last).
    void (*quantize_rows[3])(const QuantizeRowsProblem&, int64_t first, int64_t last);
};

}  // namespace mvit
