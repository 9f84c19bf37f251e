// Separable attention on bytes; formulas in ops/qseparable_attention.h. Compiled once an ISA. The lanes hold channels, and the pixels of a
// phase are walked one by one.
#include "cpu/ops/qseparable_attention.h"

#include "cpu/core/isa.h"
#include "cpu/core/qepilogue.h"

namespace mvit {
namespace {

constexpr int W = F32::width;
constexpr int64_t chunk = 4 * W;  // channels at once
constexpr int64_t terms = 256;    // e x is at most 2^16 * 255, and so many of them are less than 2^32

// Calls body(pixel of the map) for each pixel of a phase, row by row.
template <class Body>
inline void each_pixel(const QPhases& s, const QPhaseMap& map, int64_t image, int64_t phase, const Body& body) {
    for (int64_t y = phase / s.patch_w; y < s.height; y += s.patch_h) {
        const uint8_t* pixel = map.at(image, y, phase % s.patch_w);
        for (int64_t x = 0; x < s.width; x += s.patch_w, pixel += s.patch_w * map.pixel) body(pixel);
    }
}

// e of every pixel of a phase; returns their sum.
inline int64_t exponentials(const QSeparableContextProblem& p, int64_t image, int64_t phase, int32_t* e) {
    int most = 0;
    each_pixel(p.size, p.scores, image, phase, [&](const uint8_t* score) { most = *score > most ? *score : most; });
    int64_t sum = 0;
    each_pixel(p.size, p.scores, image, phase, [&](const uint8_t* score) { sum += * e++ = p.table[most - *score]; });
    return sum;
}

// sums[c] = sum_n e_n x[n, c] of `vectors` vectors of channels from `first` on, of the last `lanes`.
template <int vectors>
inline void weighted_sums(const QSeparableContextProblem& p, int64_t image, int64_t phase, const int32_t* e, int64_t first, int lanes,
                          int64_t* sums) {
    I32 part[vectors];
    const auto carry = [&] {
        for (int v = 0; v < vectors; ++v) {
            int32_t values[W];
            part[v].store(values);
            for (int i = 0; i < W; ++i) sums[v * W + i] += static_cast<uint32_t>(values[i]);
            part[v] = I32::all(0);
        }
    };
    for (int v = 0; v < vectors; ++v) part[v] = I32::all(0);
    for (int i = 0; i < vectors * W; ++i) sums[i] = 0;
    const QPhases& s = p.size;
    const int64_t step = s.patch_w * p.x.pixel, columns = s.width / s.patch_w;
    int64_t left = terms;
    for (int64_t y = phase / s.patch_w; y < s.height; y += s.patch_h) {
        const uint8_t* pixel = p.x.at(image, y, phase % s.patch_w) + first;
        for (int64_t x = 0; x < columns;) {
            const int64_t end = columns - x < left ? columns : x + left;
            left -= end - x;
            for (; x < end; ++x, pixel += step) {
                const I32 weight = I32::all(*e++);
#pragma GCC unroll 8
                for (int v = 0; v < vectors; ++v) part[v] = part[v] + weight * load_ints(pixel + v * W, v + 1 < vectors ? W : lanes);
            }
            if (left == 0) {
                carry();
                left = terms;
            }
        }
    }
    carry();
}

// The contexts of `count` channels from their sums.
inline void finish(const QSeparableContextProblem& p, const int64_t* sums, int64_t count, int64_t total, int64_t at) {
    const double whole = static_cast<double>(total), zero = p.x_zero_point, scale = p.scale;
    const double low = double{p.byte.low}, high = double{p.byte.high};
    double t[chunk];
    for (int64_t c = 0; c < count; ++c) t[c] = (static_cast<double>(sums[c]) / whole - zero) * scale;
    if (!p.bytes) {
        for (int64_t c = 0; c < count; ++c) static_cast<float*>(p.y)[at + c] = static_cast<float>(t[c]);
        return;
    }
    int32_t q[chunk];
    for (int64_t c = 0; c < count; ++c) {
        const double above = t[c] > low ? t[c] : low;
        q[c] = static_cast<int32_t>(__builtin_rint(above < high ? above : high)) + p.byte.zero_point;
    }
    for (int64_t c = 0; c < count; ++c) static_cast<uint8_t*>(p.y)[at + c] = static_cast<uint8_t>(q[c]);
}

void context(const QSeparableContextProblem& p, int64_t image, int64_t phase, int64_t begin, int64_t end, void* scratch) {
    auto* sums = static_cast<int64_t*>(scratch);
    auto* e = reinterpret_cast<int32_t*>(sums + chunk);
    const int64_t total = exponentials(p, image, phase, e), to = (image * p.size.phases() + phase) * p.size.dim;
    int64_t c = begin;
    for (; c + chunk <= end; c += chunk) {
        weighted_sums<4>(p, image, phase, e, c, W, sums);
        finish(p, sums, chunk, total, to + c);
    }
    for (; c < end; c += W) {
        const int lanes = lanes_left(end, c);
        weighted_sums<1>(p, image, phase, e, c, lanes, sums);
        finish(p, sums, lanes, total, to + c);
    }
}

void gate(const QSeparableGateProblem& p, int64_t image, int64_t begin, int64_t end, float* scratch) {
    const QPhases& s = p.size;
    const float* k = p.context + image * s.phases() * s.dim;
    for (int64_t i = 0; i < s.phases() * s.dim; ++i) scratch[i] = k[i] * p.scale;
    const I32 v_zero = I32::all(p.v_zero_point), none = I32::all(0), zero = I32::all(p.byte.zero_point);
    const F32 low = F32::all(p.byte.low), high = F32::all(p.byte.high);
    uint8_t* y = p.y + (image * s.height + begin) * s.width * s.dim;
    for (int64_t row = begin; row < end; ++row)
        for (int64_t x = 0, column = 0; x < s.width; ++x, y += s.dim, column = column + 1 < s.patch_w ? column + 1 : 0) {
            const uint8_t* v = p.v.at(image, row, x);
            const float* m = scratch + (row % s.patch_h * s.patch_w + column) * s.dim;
            const auto gated = [&](int64_t c, int lanes) {
                const F32 value = to_float(max(load_ints(v + c, lanes) - v_zero, none));
                store(to_byte(value * load(m + c, lanes, 0.0f), low, high, zero), y + c, lanes);
            };
            int64_t c = 0;
            for (; c + W <= s.dim; c += W) gated(c, W);
            if (c < s.dim) gated(c, lanes_left(s.dim, c));
        }
}

}  // namespace

extern const QSeparableAttentionKernels MVIT_ISA_SYMBOL(qseparable_attention);
const QSeparableAttentionKernels MVIT_ISA_SYMBOL(qseparable_attention) = {context, gate};

}  // namespace mvit
