// Softmax attention of random bytes against plain loops over the formulas in 64 bits, every value exact, with guard pages behind each
// tensor: what the tests of every kernel of qpatch_attention share.
#pragma once

#include <algorithm>
#include <cmath>

#include "cpu/ops/qpatch_attention.h"
#include "tests/attention.h"
#include "tests/check.h"

namespace mvit::tests {

struct QPatchAttentionCase {
    int64_t batch, depth, heads, rows, columns, patch_h, patch_w;  // rows and columns of a phase
    int64_t gap = 0;                                               // between pixels, and as many pixels between rows
    float score_steps = 3e-3f;
    int32_t q_zero_point = 117, v_zero_point = 140;
    bool dense = false;  // y has no gaps
    int most = 255;      // of the bytes
};

// Dense but for the gaps; returns how many bytes there are, none beyond the last that is used.
inline int64_t set_strides(const QPatchAttentionProblem& p, int64_t channels, int64_t gap, int64_t* stride) {
    stride[2] = channels + gap;
    stride[1] = (p.width + gap) * stride[2];
    stride[0] = p.height * stride[1];
    return (p.batch - 1) * stride[0] + (p.height - 1) * stride[1] + (p.width - 1) * stride[2] + channels;
}

// run(problem) computes y.
template <class Run>
void compare(const QPatchAttentionCase& c, const Run& run) {
    QPatchAttentionProblem p{};
    p.batch = c.batch, p.dim = c.depth * c.heads, p.heads = c.heads;
    p.height = c.rows * c.patch_h, p.width = c.columns * c.patch_w, p.patch_h = c.patch_h, p.patch_w = c.patch_w;
    p.q_zero_point = c.q_zero_point, p.v_zero_point = c.v_zero_point;
    p.score_steps = c.score_steps, p.ratio = 1.7f;
    p.table = exponential_table(), p.byte = qbyte_of_inverse(1.0f, 90, 8);
    Guarded<uint8_t> qkv(set_strides(p, 3 * p.dim, c.gap, p.qkv_stride)), y(set_strides(p, p.dim, c.dense ? 0 : c.gap, p.y_stride));
    for (int64_t i = 0; i < qkv.size(); ++i) qkv[i] = static_cast<uint8_t>(random_int(0, c.most));
    const uint8_t untouched = 7;
    std::fill(y.data(), y.data() + y.size(), untouched);
    p.qkv = qkv.data(), p.y = y.data();
    run(p);
    CHECK(y.canary_intact());

    const int64_t pixels = c.rows * c.columns;
    const auto place = [&](const int64_t* stride, int64_t image, int64_t phase, int64_t pixel) {
        const int64_t row = pixel / c.columns * c.patch_h + phase / c.patch_w, column = pixel % c.columns * c.patch_w + phase % c.patch_w;
        return image * stride[0] + row * stride[1] + column * stride[2];
    };
    std::vector<int64_t> scores(static_cast<size_t>(pixels)), e(static_cast<size_t>(pixels));
    for (int64_t image = 0; image < p.batch; ++image)
        for (int64_t phase = 0; phase < c.patch_h * c.patch_w; ++phase)
            for (int64_t head = 0; head < c.heads; ++head)
                for (int64_t n = 0; n < pixels; ++n) {
                    const auto at = [&](int64_t pixel, int64_t part) {
                        return qkv.data() + place(p.qkv_stride, image, phase, pixel) + part * p.dim + head * c.depth;
                    };
                    int64_t top = INT64_MIN, sum = 0;
                    for (int64_t m = 0; m < pixels; ++m) {
                        int64_t& score = scores[static_cast<size_t>(m)] = 0;
                        for (int64_t k = 0; k < c.depth; ++k) score += (int64_t{at(n, 0)[k]} - p.q_zero_point) * at(m, 1)[k];
                        top = std::max(top, score);
                    }
                    for (int64_t m = 0; m < pixels; ++m) {
                        const float below = static_cast<float>(top - scores[static_cast<size_t>(m)]) * p.score_steps;
                        const auto i = static_cast<int>(std::nearbyint(std::fmin(below, 255.0f)));
                        sum += e[static_cast<size_t>(m)] = p.table[i];
                    }
                    const float times = p.ratio / static_cast<float>(sum);
                    for (int64_t k = 0; k < c.depth; ++k) {
                        int64_t weighted = 0;
                        for (int64_t m = 0; m < pixels; ++m)
                            weighted += e[static_cast<size_t>(m)] * (int64_t{at(m, 2)[k]} - p.v_zero_point);
                        const float t = static_cast<float>(weighted) * times;
                        uint8_t& actual = y[place(p.y_stride, image, phase, n) + head * c.depth + k];
                        CHECK(actual == static_cast<int>(std::nearbyint(std::fmin(std::fmax(t, -90.0f), 165.0f))) + 90);
                        actual = untouched;  // so that the gaps can be looked at in the end
                    }
                }
    for (int64_t i = 0; i < y.size(); ++i) CHECK(y[i] == untouched);
}

}  // namespace mvit::tests
