// Packed integer weights and the channels of an epilogue, for the tests of integer ops. Written from the layout that core/qweight.h
// describes, value by value.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <memory>

#include "cpu/core/qepilogue_types.h"
#include "tests/check.h"

namespace mvit::tests {

// A matrix of `columns` x `depth` values, a quarter of them at the ends (all where `extreme`), packed behind a guard page.
class PackedMatrix {
  public:
    PackedMatrix(int64_t columns, int64_t depth, int bits, bool extreme = false)
        : depth_(depth), values_(static_cast<size_t>(columns * depth)), packed_(qweight_bytes(columns, depth, bits)) {
        const int most = bits == 6 ? 31 : 127;
        for (int8_t& v : values_) {
            const bool at_end = extreme || random_int(0, 3) == 0;
            v = static_cast<int8_t>(!at_end ? random_int(-most, most) : random_int(0, extreme ? 7 : 1) ? -most : most);
        }
        std::memset(packed_.data(), 0, static_cast<size_t>(packed_.size()));
        QWeightHeader header{};
        std::memcpy(header.magic, qweight_magic, sizeof header.magic);
        header.version = qweight_version, header.bits = static_cast<uint32_t>(bits);
        header.columns = columns, header.depth = depth, header.bytes = packed_.size();
        auto* sums = reinterpret_cast<int32_t*>(packed_.data() + sizeof header);
        uint8_t* panels = packed_.data() + sizeof header + 2 * qpanel * qpanels(columns) * int64_t{sizeof(int32_t)};
        for (int64_t n = 0; n < columns; ++n) {
            int32_t sum = 0, size = 0;
            for (int64_t k = 0; k < depth; ++k) {
                const int v = at(n, k);
                sum += v, size += v < 0 ? -v : v;
                uint8_t* panel = panels + n / qpanel * qpanel_bytes(depth, bits);
                const int64_t inside = n % qpanel * 4 + k % 4;
                if (bits == 8) {
                    panel[k / 4 * qblock + inside] = static_cast<uint8_t>(v);
                    continue;
                }
                uint8_t* planes = panel + k / 16 * 3 * qblock + inside;
                const int block = static_cast<int>(k / 4 % 4);
                if (block < 3) {
                    planes[block * qblock] = static_cast<uint8_t>(planes[block * qblock] | (v & 63));
                } else {
                    for (int i = 0; i < 3; ++i) planes[i * qblock] = static_cast<uint8_t>(planes[i * qblock] | (v >> (2 * i) & 3) << 6);
                }
            }
            sums[n] = sum, sums[qpanel * qpanels(columns) + n] = size;
            header.largest = size > header.largest ? size : header.largest;
        }
        std::memcpy(packed_.data(), &header, sizeof header);
        CHECK(read_qweight(packed_.data(), packed_.size(), &weight));
    }
    int at(int64_t n, int64_t k) const { return values_[static_cast<size_t>(n * depth_ + k)]; }
    uint8_t* data() { return packed_.data(); }
    int64_t size() const { return packed_.size(); }

    QWeight weight;

  private:
    int64_t depth_;
    std::vector<int8_t> values_;
    Guarded<uint8_t> packed_;
};

// Random channels: bytes 0 .. most around zero-points of any size.
struct RandomChannels {
    explicit RandomChannels(int64_t columns, float scale, int most = 255)
        : init(round_up(columns, qpanel)), zero_point(init.size()), values{make(), make(), make(), make(), make()} {
        for (int64_t n = 0; n < init.size(); ++n) {
            init[n] = random_int(-100000, 100000);
            zero_point[n] = random_int(-300, 300);
            (*values[0])[n] = scale * static_cast<float>(random_int(1, 1000)) / 1000.0f;
            (*values[1])[n] = random_float();
            (*values[2])[n] = static_cast<float>(random_int(1, 1000)) / 100.0f;
            (*values[3])[n] = static_cast<float>(-zero_point[n]);
            (*values[4])[n] = static_cast<float>(most - zero_point[n]);
        }
    }
    QChannels channels() {
        return {init.data(),       values[0]->data(), values[1]->data(), values[2]->data(),
                values[3]->data(), values[4]->data(), zero_point.data()};
    }

    Guarded<int32_t> init, zero_point;
    std::array<std::unique_ptr<Guarded<float>>, 5> values;

  private:
    std::unique_ptr<Guarded<float>> make() const { return std::make_unique<Guarded<float>>(init.size()); }
};

// A byte of x by a curve of core/qcurve.h.
inline int curve_byte(const int16_t* curve, float x) {
    const auto times = [](int a, int b) { return (a * b + (1 << 14)) >> 15; };
    const auto whole = static_cast<int>(std::lrint(std::fmin(std::fmax(x, -32768.0f), 32767.0f)));
    const int size = std::abs(whole) > 32767 ? 32767 : std::abs(whole), i = size >> 9, r = (size & 511) << 6;
    const int e = curve[i] + times(r, curve[64 + i] + times(r, curve[128 + i]));
    const int sum = (whole > 0 ? whole : 0) + times(e, 1024) + curve[193], y = (sum < 32767 ? sum : 32767) >> curve[192];
    return y < 0 ? 0 : y < curve[194] ? y : curve[194];
}

// How a curve is made.
enum class CurveKind {
    random,   // coefficients like those of activations
    extreme,  // or as large as int16
    silu      // of bytes of some scale, zero-point and most, so that it has steps
};

// A curve with what a GPU looks up behind it, where it has steps (cuda/primitives/qcurve.cuh): found with a loop over all numbers.
class Curve {
  public:
    explicit Curve(CurveKind kind = CurveKind::random) : numbers_(curve_entries + most_entries) {
        std::memset(numbers_.data(), 0, static_cast<size_t>(numbers_.size()) * 2);
        kind == CurveKind::silu ? fill_silu() : fill_random(kind == CurveKind::extreme);
        for (int shift = 7; kind == CurveKind::silu && shift > 0 && entries_ == 0; --shift) find_steps(shift);
    }
    // Few curves have none.
    static std::unique_ptr<Curve> with_steps() {
        for (;;) {
            auto curve = std::make_unique<Curve>(CurveKind::silu);
            if (curve->entries() > 0) return curve;
        }
    }
    const int16_t* data() { return numbers_.data(); }
    int entries() const { return entries_; }

  private:
    static constexpr int curve_head = 200, curve_entries = 216, most_entries = 4096;

    void fill_random(bool extreme) {
        for (int i = 0; i < 192; ++i)
            numbers_[i] = static_cast<int16_t>(extreme ? (random_int(0, 1) ? 32767 : -32768) : random_int(-4000, 4000));
        numbers_[192] = static_cast<int16_t>(random_int(0, 7));
        numbers_[193] = static_cast<int16_t>(random_int(0, 32767)), numbers_[194] = random_int(0, 1) ? 255 : 63;
    }

    // As mvit_kernels/reference/activation_curve.py does.
    void fill_silu() {
        const double scale = 0.02 + random_int(0, 100) * 0.001;
        const int shift = std::min(7, static_cast<int>(std::floor(std::log2(32768 * scale / 12)))), most = random_int(0, 1) ? 255 : 63;
        const double step = scale / (1 << shift);
        const auto e = [&](double segment) {
            const double u = segment * 512 * step;
            return -u / (1 + std::exp(u)) * 32 / step;
        };
        for (int i = 0; i < 64; ++i) {
            const double left = e(i), middle = e(i + 0.5), right = e(i + 1);
            numbers_[i] = rounded(left), numbers_[64 + i] = rounded(4 * middle - 3 * left - right);
            numbers_[128 + i] = rounded(2 * left + 2 * right - 4 * middle);
        }
        numbers_[192] = static_cast<int16_t>(shift);
        numbers_[193] = static_cast<int16_t>((random_int(0, most) << shift) + (1 << shift >> 1)),
        numbers_[194] = static_cast<int16_t>(most);
    }
    static int16_t rounded(double x) { return static_cast<int16_t>(std::lrint(x)); }

    int at(int x) { return curve_byte(numbers_.data(), static_cast<float>(std::clamp(x, -32768, 32767))); }

    void find_steps(int shift) {
        int low = -32768, high = 32767;
        while (low < high && at(low + 1) == at(low)) ++low;
        while (high > low && at(high - 1) == at(high)) --high;
        const int width = 1 << shift, first = (low + (1 << 16)) / width * width - (1 << 16), count = (high - first) / width + 1;
        if (count > most_entries) return;
        int turn = first;  // buckets below fall
        for (int begin = first; begin <= high; begin += width)
            for (int i = 1; i < width; ++i)
                if (at(begin + i) < at(begin + i - 1)) turn = begin + width;
        for (int bucket = 0; bucket < count; ++bucket) {
            const int begin = first + bucket * width, way = begin < turn ? -1 : 1, nearest = way > 0 ? begin : begin + width - 1;
            int before = 256;
            for (int i = 1; i < width; ++i) {
                const int up = at(nearest + way * i) - at(nearest);
                if (up < 0 || up > 1 || (before < i && up == 0)) return;
                if (up == 1 && before == 256) before = i;
            }
            const int entry = 256 * at(nearest) + 256 - before - std::abs(nearest - turn);
            numbers_[curve_entries + bucket] = static_cast<int16_t>(static_cast<uint16_t>(entry));
        }
        entries_ = count;
        const uint32_t whole = 0x4B400000;  // the bits of 1.5 * 2^23
        const float ends[2] = {static_cast<float>(low), static_cast<float>(high)};
        const uint32_t rest[4] = {whole + static_cast<uint32_t>(turn), 0u - 2 * ((whole + static_cast<uint32_t>(first)) >> shift),
                                  static_cast<uint32_t>(count), static_cast<uint32_t>(shift)};
        std::memcpy(numbers_.data() + curve_head, ends, sizeof ends), std::memcpy(numbers_.data() + curve_head + 4, rest, sizeof rest);
    }

    Guarded<int16_t> numbers_;
    int entries_ = 0;
};

// One value by the sequences of core/qepilogue.h, in plain float arithmetic.
inline double finish_one(const QEpilogue& e, int64_t sum, int64_t row, int64_t n) {
    if (e.row_zero_point) sum -= int64_t{e.row_zero_point[row]} * e.column_sum[n];
    const auto exact = static_cast<int32_t>(sum);
    if (e.type == QType::i32) return exact;
    float x = static_cast<float>(exact);
    if (e.row_scale) {
        const float scale = e.row_scale[row] * e.channels.scale[n];
        x = x * scale;
        x = x + e.channels.bias[n];
    } else {
        x = x * e.channels.scale[n];
    }
    const int64_t at = row * e.residual_stride + n;
    if (e.type == QType::i16) {
        const float far = std::fmin(std::fmax(x, -131072.0f), 131072.0f);
        const long q = std::lrint(far) + (e.residual ? static_cast<const int16_t*>(e.residual)[at] : 0);
        return static_cast<double>(q < -32768 ? -32768 : q > 32767 ? 32767 : q);
    }
    if (e.curve) return curve_byte(e.curve, x);
    if (!e.plain) {
        if (e.residual) {
            float r = 0.0f;
            if (e.residual_type == QType::u8) r = static_cast<float>(static_cast<const uint8_t*>(e.residual)[at] - e.residual_zero_point);
            if (e.residual_type == QType::i16) r = static_cast<float>(static_cast<const int16_t*>(e.residual)[at] - e.residual_zero_point);
            if (e.residual_type == QType::f32) r = static_cast<const float*>(e.residual)[at];
            if (e.residual_type != QType::f32) r = r * e.residual_scale;
            x = x + r;
        }
        if (e.slopes) {
            const float* u = e.slopes + (e.slope_rows > 0 ? row / e.slope_rows : 0) * 2 * e.slope_columns + n;
            const float a = 1.0f + std::fmin(std::fmax(u[0], -1.0f), 1.0f), d = std::fmin(std::fmax(u[e.slope_columns], -1.0f), 1.0f);
            x = std::fmax(a * x, d * x);
        }
        if (e.activation == QActivation::relu) x = x > 0.0f ? x : 0.0f;
        if (e.activation == QActivation::segments) {
            const float size = std::fabs(x), line = std::fmin(std::fmin(size * 4.0f, size * 2.0f + 8.0f), size + 16.0f);
            const int i = line >= 31.0f ? 31 : static_cast<int>(line);
            const float* t = e.segments;
            float curve = t[64 + i] * size;
            curve = curve + t[32 + i];
            curve = curve * size;
            curve = curve + t[i];
            x = (x > 0.0f ? x : 0.0f) + (size > 16.0f ? 0.0f : curve);
        }
    }
    if (e.type != QType::u8) return x;
    if (!e.plain) x = x * e.channels.inverse[n];
    const float inside = std::fmin(std::fmax(x, e.channels.low[n]), e.channels.high[n]);
    const long q = std::lrint(inside) + e.channels.zero_point[n];
    return e.table ? e.table[q] : static_cast<double>(q);
}

}  // namespace mvit::tests
