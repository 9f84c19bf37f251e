// The integer matrix multiplication: rows of bytes times a few panels of a packed weight (qweight.h), exact in int32.
//
//     c[r, n] = init[r, n] + sum_k a[r, k] w[n, k]          modulo 2^32: what must not overflow is checked before
//
// Rows and panels are first brought into the form that an instruction set multiplies (qrows.h), which is their own on AVX512-VNNI with 8
// bits.
//
// Floor: a 512-bit vpdpbusd does 64 products. R rows and V panels take R V of them for R broadcasts and V loads, 6 x 4 or 12 x 2, or half
// as many rows.
#pragma once

#include <cstdint>

#include "cpu/core/qweight.h"
#include "cpu/core/tile.h"
#include "cpu/core/windows.h"

namespace mvit {

inline constexpr int qgroup = 4;            // panels at once, at most
inline constexpr int64_t summed_rows = 64;  // whose sums stay in the first cache

// What each output channel needs to become a byte again; see qepilogue.h. Whole panels can be read.
struct QChannels {
    const int32_t* init;  // what sums begin with: the bias and minus the zero-point's part
    const float *scale, *bias, *inverse, *low, *high;
    const int32_t* zero_point;

    constexpr QChannels from(int64_t column) const {
        return {init + column, scale + column, bias + column, inverse + column, low + column, high + column, zero_point + column};
    }
};

// Rows and panels as qrows.h gives them.
struct QTile {
    const void* a;
    int64_t a_stride, rows, depth;
    const void* w;
    int64_t w_stride;  // bytes from panel to panel
    int panels, bits;
    bool planes;  // w is planes of 6 bits, for a single row
    const int32_t* init;
    int64_t init_stride;  // from row to row, or 0
    Windows windows = {};
};

// Is told of rows whose sums are there. Refers to a function that outlives it.
class RowsDone {
  public:
    template <class Body>
    explicit RowsDone(const Body& body)
        : call_([](const void* data, int64_t row, int64_t rows) { (*static_cast<const Body*>(data))(row, rows); }), data_(&body) {}
    void operator()(int64_t row, int64_t rows) const { call_(data_, row, rows); }

  private:
    void (*call_)(const void*, int64_t, int64_t);
    const void* data_;
};

struct QTileKernels {
    // Writes whole panels of c, which has room for summed_rows rows: after each so many, or the last ones, done(first of them, rows).
    void (*accumulate)(const QTile&, int32_t* c, int64_t c_stride, const RowsDone& done);
    // y[r, n] = clamp(rint(c[r, n] scale[n]), low[n], high[n]) + zero_point[n] of the first `columns` columns, without int32 sums in
    // memory; or by a curve (qcurve.h); null where an instruction set gains nothing by that.
    void (*requantize)(const QTile&, const QChannels&, int columns, uint8_t* y, int64_t y_stride, const int16_t* curve);
};

}  // namespace mvit
