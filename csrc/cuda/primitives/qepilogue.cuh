// From exact int32 sums to what the network goes on with: the sequences of cpu/core/qepilogue.h, operation by operation, for one row and
// four neighbouring columns of it. A thread that goes down the rows loads what belongs to its columns once.
#pragma once

#include "cpu/core/qepilogue_types.h"
#include "cuda/primitives/qcurve.cuh"

namespace mvit::cuda {

// max(x, 0) + e(|x|), see activate_segments of cpu/core/qepilogue.h. NaN takes the last segment and stays NaN.
MVIT_DEVICE float activate_segments(float x, const float* table) {
    const float size = fabsf(x);
    const float line = fminf(fminf(fminf(size * 4.0f, size * 2.0f + 8.0f), size + 16.0f), 31.0f);
    const int i = static_cast<int>(line);
    const float e = (table[64 + i] * size + table[32 + i]) * size + table[i];
    return (x > 0.0f ? x : 0.0f) + (size > 16.0f ? 0.0f : e);
}

MVIT_DEVICE float activate(float x, QActivation activation, const float* segments) {
    if (activation == QActivation::relu) return x < 0.0f ? 0.0f : x;  // NaN stays NaN
    if (activation == QActivation::segments) return activate_segments(x, segments);
    return x;
}

// rint(x) + rint_of_zero of |x| <= 2^22, by a sum whose last place is 1: conversions are instructions of a slow pipe.
MVIT_DEVICE int32_t rint_bits(float x) { return static_cast<int32_t>(float_bits(x + 0x1.8p23f)); }
inline constexpr int32_t rint_of_zero = 0x4B400000;
MVIT_DEVICE int32_t round_to_int(float x) { return rint_bits(x) - rint_of_zero; }

// rint(min(max(x, low), high)) + zero_point; NaN becomes low. Ends and zero-points are at most 2^20 and a byte.
MVIT_DEVICE int32_t to_byte(float x, float low, float high, int32_t zero_point) {
    return round_to_int(fminf(fmaxf(x, low), high)) + zero_point;
}

// rint(min(max(x, -2^17), 2^17)), which int16 still saturates.
MVIT_DEVICE int32_t to_stream(float x) { return round_to_int(fminf(fmaxf(x, -0x1p17f), 0x1p17f)); }
MVIT_DEVICE int32_t saturate16(int32_t x) { return x < INT16_MIN ? INT16_MIN : x > INT16_MAX ? INT16_MAX : x; }

// Modulo 2^32, as tensor cores add.
MVIT_DEVICE int32_t add(int32_t a, int32_t b) { return static_cast<int32_t>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b)); }
MVIT_DEVICE int32_t subtract_product(int32_t sum, int32_t a, int32_t b) {
    return static_cast<int32_t>(static_cast<uint32_t>(sum) - static_cast<uint32_t>(a) * static_cast<uint32_t>(b));
}

template <class T>
MVIT_DEVICE Quad<T> load_quad(const T* p, int lanes, bool aligned) {
    if (aligned) return *reinterpret_cast<const Quad<T>*>(p);
    Quad<T> q{};
    MVIT_UNROLL
    for (int i = 0; i < four; ++i)
        if (i < lanes) q.v[i] = p[i];
    return q;
}

template <class T>
MVIT_DEVICE void store_quad(const Quad<T>& q, T* p, int lanes, bool aligned) {
    if (aligned) {
        *reinterpret_cast<Quad<T>*>(p) = q;
        return;
    }
    MVIT_UNROLL
    for (int i = 0; i < four; ++i)
        if (i < lanes) p[i] = q.v[i];
}

MVIT_DEVICE Quad<float> scaled(const Quad<int32_t>& sums, const Quad<float>& scale) {
    Quad<float> x;
    MVIT_UNROLL
    for (int i = 0; i < four; ++i) x.v[i] = static_cast<float>(sums.v[i]) * scale.v[i];
    return x;
}

// Whether rows of elements of `size` bytes, `stride` elements apart, are aligned at every fourth column.
MVIT_BOTH bool quads_are_aligned(const void* p, int64_t stride, int64_t size) {
    return stride % four == 0 && reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(four * size) == 0;
}

// What results are, where a kernel knows: then nothing else is asked or loaded for every row.
enum class FinishForm { any, curve, steps, bytes, stream };  // of u8: a curve, or one that has steps; plain, without a table. Of i16

MVIT_BOTH constexpr FinishForm finish_form(const QEpilogue& e) {
    if (e.row_scale || e.row_zero_point) return FinishForm::any;
    if (e.type == QType::i16) return FinishForm::stream;
    if (e.type != QType::u8 || !e.plain) return FinishForm::any;
    return e.curve ? FinishForm::curve : e.table ? FinishForm::any : FinishForm::bytes;
}

// body<form>()
template <class Body>
void with_finish_form(FinishForm form, const Body& body) {
    switch (form) {
        case FinishForm::curve:
            return body.template operator()<FinishForm::curve>();
        case FinishForm::bytes:
            return body.template operator()<FinishForm::bytes>();
        case FinishForm::stream:
            return body.template operator()<FinishForm::stream>();
        default:
            return body.template operator()<FinishForm::any>();
    }
}

// whole: every four columns exist, and are aligned in y and the residual.
template <FinishForm form = FinishForm::any, bool whole = false>
class Finish {
  public:
    // Columns `column` (a multiple of four) and those behind it that exist: the arrays of the channels have whole panels. curve: shared
    // memory in which `SharedCurve::load` has put that of e, if there is one. Rows are counted from first_row on.
    MVIT_DEVICE Finish(const QEpilogue& e, int64_t columns, int64_t column, const uint8_t* curve, int64_t first_row = 0)
        : e_(e),
          curve_(curve),
          column_(column),
          first_row_(first_row),
          y_(static_cast<uint8_t*>(e.y) + (first_row * e.y_stride + column) * element_size(e.type)),
          y_step_(e.y_stride * element_size(e.type)),
          lanes_(static_cast<int>(columns - column < four ? columns - column : four)),
          y_aligned_(whole || (lanes_ == four && quads_are_aligned(e.y, e.y_stride, element_size(e.type)))),
          residual_aligned_(whole || (lanes_ == four && quads_are_aligned(e.residual, e.residual_stride, element_size(e.residual_type)))),
          by_steps_(form == FinishForm::steps || (form == FinishForm::any && e.curve && SharedCurve::has_steps(curve))) {
        const QChannels c = e.channels.from(column);
        init_ = load_quad(c.init, four, true);
        scale_ = load_quad(c.scale, four, true);
        if (by_steps_) steps_ = CurveSteps(curve);
        if constexpr (form == FinishForm::any) {
            if (e.row_scale) bias_ = load_quad(c.bias, four, true);
            if (e.row_zero_point) column_sum_ = load_quad(e.column_sum + column, four, true);
        }
        if (form == FinishForm::bytes || (form == FinishForm::any && e.type == QType::u8 && !e.curve)) {
            low_ = load_quad(c.low, four, true), high_ = load_quad(c.high, four, true);
            zero_point_ = load_quad(c.zero_point, four, true);
            if (form == FinishForm::any) inverse_ = load_quad(c.inverse, four, true);
        }
    }

    // Sums without what they begin with; that is of the channels.
    MVIT_DEVICE void operator()(const Quad<int32_t>& sums, int64_t row) const { finish(with(sums, init_), row); }
    // That is of `init`, (columns,) of this row.
    MVIT_DEVICE void operator()(const Quad<int32_t>& sums, const int32_t* init, int64_t row) const {
        finish(with(sums, load_quad(init + column_, four, true)), row);
    }

    // Whole sums.
    MVIT_DEVICE void finish(const Quad<int32_t>& sums, int64_t row) const {
        if (by_steps_) return store_steps(scaled(sums, scale_), row);
        if constexpr (form == FinishForm::curve) return store_curve(scaled(sums, scale_), row);
        if constexpr (form == FinishForm::bytes) return store_bytes(scaled(sums, scale_), row);
        if constexpr (form == FinishForm::stream) return store_stream(scaled(sums, scale_), row);
        if constexpr (form == FinishForm::any) finish_any(sums, row);
    }

  private:
    MVIT_DEVICE static Quad<int32_t> with(Quad<int32_t> sums, const Quad<int32_t>& init) {
        MVIT_UNROLL
        for (int i = 0; i < four; ++i) sums.v[i] = add(sums.v[i], init.v[i]);
        return sums;
    }

    MVIT_DEVICE void finish_any(Quad<int32_t> sums, int64_t row) const {
        if (e_.row_zero_point) {
            const int32_t z = e_.row_zero_point[first_row_ + row];
            MVIT_UNROLL
            for (int i = 0; i < four; ++i) sums.v[i] = subtract_product(sums.v[i], z, column_sum_.v[i]);
        }
        if (e_.type == QType::i32) return store(sums, row);
        Quad<float> x;
        if (e_.row_scale) {
            const float s = e_.row_scale[first_row_ + row];
            MVIT_UNROLL
            for (int i = 0; i < four; ++i) x.v[i] = static_cast<float>(sums.v[i]) * (s * scale_.v[i]) + bias_.v[i];
        } else {
            x = scaled(sums, scale_);
        }
        if (e_.type == QType::i16) return store_stream(x, row);
        if (e_.curve) return store_curve(x, row);
        if (!e_.plain) {
            if (e_.residual) add_residual(x, row);
            MVIT_UNROLL
            for (int i = 0; i < four; ++i) x.v[i] = activate(x.v[i], e_.activation, e_.segments);
        }
        switch (e_.type) {
            case QType::u8:
                return store_bytes(x, row);
            case QType::bf16:
                return store_floats<bf16>(x, row);
            case QType::f16:
                return store_floats<f16>(x, row);
            default:
                return store_floats<float>(x, row);
        }
    }

    template <class T>
    MVIT_DEVICE void store(const Quad<T>& q, int64_t row) const {
        store_quad(q, reinterpret_cast<T*>(y_ + row * y_step_), lanes_, y_aligned_);
    }

    template <class T>
    MVIT_DEVICE void store_floats(const Quad<float>& x, int64_t row) const {
        Quad<T> y;
        MVIT_UNROLL
        for (int i = 0; i < four; ++i) from_float(x.v[i], &y.v[i]);
        store(y, row);
    }

    MVIT_DEVICE void store_bytes(const Quad<float>& x, int64_t row) const {
        Quad<uint8_t> y;
        MVIT_UNROLL
        for (int i = 0; i < four; ++i) {
            const float steps = form == FinishForm::bytes || e_.plain ? x.v[i] : x.v[i] * inverse_.v[i];
            const int32_t q = to_byte(steps, low_.v[i], high_.v[i], zero_point_.v[i]);
            // Lanes beyond the columns hold what the padding of the channels makes of them: no index.
            y.v[i] = form != FinishForm::bytes && e_.table ? e_.table[q & 255] : static_cast<uint8_t>(q);
        }
        store(y, row);
    }

    MVIT_DEVICE void store_steps(const Quad<float>& x, int64_t row) const {
        const uint32_t word = steps_(x.v);
        if (y_aligned_) {
            *reinterpret_cast<uint32_t*>(y_ + row * y_step_) = word;
            return;
        }
        MVIT_UNROLL
        for (int i = 0; i < four; ++i)
            if (i < lanes_) y_[row * y_step_ + i] = static_cast<uint8_t>(word >> (8 * i));
    }

    MVIT_DEVICE void store_curve(const Quad<float>& x, int64_t row) const {
        const SharedCurve curve(curve_);
        Quad<uint8_t> y;
        MVIT_UNROLL
        for (int i = 0; i < four; ++i) y.v[i] = static_cast<uint8_t>(curve(x.v[i]));
        store(y, row);
    }

    MVIT_DEVICE void store_stream(const Quad<float>& x, int64_t row) const {
        Quad<int16_t> more{};
        if (e_.residual) more = residual<int16_t>(row);
        MVIT_UNROLL
        for (int i = 0; i < four; ++i) more.v[i] = static_cast<int16_t>(saturate16(to_stream(x.v[i]) + more.v[i]));
        store(more, row);
    }

    template <class T>
    MVIT_DEVICE Quad<T> residual(int64_t row) const {
        return load_quad(static_cast<const T*>(e_.residual) + (first_row_ + row) * e_.residual_stride + column_, lanes_, residual_aligned_);
    }

    template <class T>
    MVIT_DEVICE void add_integers(Quad<float>& x, int64_t row) const {
        const Quad<T> r = residual<T>(row);
        MVIT_UNROLL
        for (int i = 0; i < four; ++i) x.v[i] += static_cast<float>(r.v[i] - e_.residual_zero_point) * e_.residual_scale;
    }

    template <class T>
    MVIT_DEVICE void add_floats(Quad<float>& x, int64_t row) const {
        const Quad<T> r = residual<T>(row);
        MVIT_UNROLL
        for (int i = 0; i < four; ++i) x.v[i] += to_float(r.v[i]);
    }

    MVIT_DEVICE void add_residual(Quad<float>& x, int64_t row) const {
        switch (e_.residual_type) {
            case QType::u8:
                return add_integers<uint8_t>(x, row);
            case QType::i16:
                return add_integers<int16_t>(x, row);
            case QType::bf16:
                return add_floats<bf16>(x, row);
            case QType::f16:
                return add_floats<f16>(x, row);
            default:
                return add_floats<float>(x, row);
        }
    }

    const QEpilogue& e_;
    const uint8_t* curve_;
    int64_t column_, first_row_;
    uint8_t* y_;
    int64_t y_step_;  // in bytes
    int lanes_;
    bool y_aligned_, residual_aligned_, by_steps_;
    CurveSteps steps_;
    Quad<int32_t> init_, column_sum_, zero_point_;
    Quad<float> scale_, bias_, low_, high_, inverse_;
};

// body(finish) with the Finish of the form that e has, whose arguments follow: for a thread that goes down many rows.
template <class Body>
MVIT_DEVICE void with_finish(const Body& body, const QEpilogue& e, int64_t columns, int64_t column, const uint8_t* curve,
                             int64_t first_row = 0) {
    const auto as = [&]<FinishForm form>() { body(Finish<form>(e, columns, column, curve, first_row)); };
    switch (finish_form(e)) {
        case FinishForm::curve:
            return SharedCurve::has_steps(curve) ? as.template operator()<FinishForm::steps>()
                                                 : as.template operator()<FinishForm::curve>();
        case FinishForm::bytes:
            return as.template operator()<FinishForm::bytes>();
        case FinishForm::stream:
            return as.template operator()<FinishForm::stream>();
        default:
            return as.template operator()<FinishForm::any>();
    }
}

}  // namespace mvit::cuda
