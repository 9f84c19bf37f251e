// Every tail against a double-precision loop over the formula, with guard pages behind each tensor.
#include "cpu/ops/patch_attention.h"

#include <algorithm>
#include <cmath>

#include "tests/floats.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

struct Case {
    int64_t batch, depth, heads, rows, columns, patch_h, patch_w;  // rows and columns of a phase
    int64_t gap = 0;                                               // between pixels, and as many pixels between rows
};

// Dense but for the gaps; returns how many elements there are, none beyond the last that is used.
int64_t set_strides(const PatchAttentionProblem& p, int64_t channels, int64_t gap, int64_t* stride) {
    stride[2] = channels + gap;
    stride[1] = (p.width + gap) * stride[2];
    stride[0] = p.height * stride[1];
    return (p.batch - 1) * stride[0] + (p.height - 1) * stride[1] + (p.width - 1) * stride[2] + channels;
}

void compare(const Case& c) {
    PatchAttentionProblem p{};
    p.dtype = DType::f32;
    p.batch = c.batch, p.dim = c.depth * c.heads, p.heads = c.heads;
    p.height = c.rows * c.patch_h, p.width = c.columns * c.patch_w, p.patch_h = c.patch_h, p.patch_w = c.patch_w;
    p.scale = 1.0f / std::sqrt(static_cast<float>(c.depth));
    Guarded<float> qkv(set_strides(p, 3 * p.dim, c.gap, p.qkv_stride)), y(set_strides(p, p.dim, c.gap, p.y_stride));
    Guarded<float> dy(y.size()), dqkv(set_strides(p, 3 * p.dim, c.gap, p.dqkv_stride));
    for (int64_t i = 0; i < qkv.size(); ++i) qkv[i] = random_float();
    for (int64_t i = 0; i < dy.size(); ++i) dy[i] = random_float();
    const float untouched = 7.0f;
    std::fill(y.data(), y.data() + y.size(), untouched);
    std::fill(dqkv.data(), dqkv.data() + dqkv.size(), untouched);
    p.qkv = qkv.data(), p.y = y.data();
    CHECK(patch_attention(p, 2) == Status::ok);
    p.y = dy.data(), p.dqkv = dqkv.data();
    CHECK(patch_attention_backward(p, 2) == Status::ok);
    CHECK(y.canary_intact() && dqkv.canary_intact());

    const int64_t pixels = c.rows * c.columns, depth = c.depth;
    const auto place = [&](const int64_t* stride, int64_t image, int64_t phase, int64_t pixel) {
        const int64_t row = pixel / c.columns * c.patch_h + phase / c.patch_w, column = pixel % c.columns * c.patch_w + phase % c.patch_w;
        return image * stride[0] + row * stride[1] + column * stride[2];
    };
    // Marks what was computed, so that the gaps can be looked at in the end.
    const auto check = [&](float* actual, double expected) {
        CHECK(std::fabs(double{*actual} - expected) < 2e-5 * (1 + std::fabs(expected)));
        *actual = untouched;
    };
    for (int64_t image = 0; image < p.batch; ++image)
        for (int64_t phase = 0; phase < c.patch_h * c.patch_w; ++phase)
            for (int64_t channel = 0; channel < p.dim; channel += depth) {
                const auto pixel = [&](float* data, const int64_t* stride, int64_t n) {
                    return data + place(stride, image, phase, n) + channel;
                };
                std::vector<double> dq(static_cast<size_t>(pixels * depth)), dk(dq), dv(dq), p_row(static_cast<size_t>(pixels)), dp(p_row);
                const auto dot = [&](const float* a, const float* b) {
                    double sum = 0;
                    for (int64_t i = 0; i < depth; ++i) sum += double{a[i]} * double{b[i]};
                    return sum;
                };
                for (int64_t n = 0; n < pixels; ++n) {
                    const float* q = pixel(qkv.data(), p.qkv_stride, n);
                    const float* g = pixel(dy.data(), p.y_stride, n);
                    double top = -INFINITY, sum = 0, mean = 0;
                    for (size_t m = 0; m < p_row.size(); ++m) {
                        const float* k = pixel(qkv.data(), p.qkv_stride, static_cast<int64_t>(m)) + p.dim;
                        p_row[m] = double{p.scale} * dot(q, k);
                        dp[m] = dot(g, k + p.dim);
                        top = std::max(top, p_row[m]);
                    }
                    for (double& each : p_row) sum += each = std::exp(each - top);
                    for (size_t m = 0; m < p_row.size(); ++m) mean += (p_row[m] /= sum) * dp[m];
                    for (int64_t i = 0; i < depth; ++i) {
                        double expected = 0;
                        for (size_t m = 0; m < p_row.size(); ++m) {
                            const float* k = pixel(qkv.data(), p.qkv_stride, static_cast<int64_t>(m)) + p.dim + i;
                            const double ds = double{p.scale} * p_row[m] * (dp[m] - mean);
                            const size_t at = m * static_cast<size_t>(depth) + static_cast<size_t>(i);
                            expected += p_row[m] * double{k[p.dim]};
                            dq[static_cast<size_t>(n * depth + i)] += ds * double{k[0]};
                            dk[at] += ds * double{q[i]};
                            dv[at] += p_row[m] * double{g[i]};
                        }
                        check(pixel(y.data(), p.y_stride, n) + i, expected);
                    }
                }
                for (int64_t n = 0; n < pixels; ++n)
                    for (int64_t i = 0; i < depth; ++i) {
                        float* actual = pixel(dqkv.data(), p.dqkv_stride, n) + i;
                        check(actual, dq[static_cast<size_t>(n * depth + i)]);
                        check(actual + p.dim, dk[static_cast<size_t>(n * depth + i)]);
                        check(actual + 2 * p.dim, dv[static_cast<size_t>(n * depth + i)]);
                    }
            }
    for (Guarded<float>* each : {&y, &dqkv})
        CHECK(std::all_of(each->data(), each->data() + each->size(), [&](float x) { return x == untouched; }));
}

}  // namespace

TEST(patch_attention_on_every_tail) {
    on_every_isa([] {
        for (int64_t columns : {1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47})
            for (int64_t depth : {1, 3, 7, 8, 9, 15, 16, 17, 20, 36}) compare({1, depth, 1, 1, columns, 1, 1});
        for (int64_t rows : {1, 2, 5})
            for (int64_t columns : {1, 3, 4, 7})
                for (int64_t gap : {0, 3}) compare({2, 5, 3, rows, columns, 2, 2, gap});
        compare({1, 36, 4, 8, 8, 2, 2, 1});
        compare({1, 4, 2, 3, 5, 4, 3});
        compare({1, 3, 1, 4, 4, 8, 8});
        compare({1, 512, 1, 2, 9, 1, 2});                                                        // rows of a power of two
        for (int64_t columns : {127, 128, 129, 257, 300}) compare({1, 5, 1, 1, columns, 1, 1});  // blocks of keys
        compare({1, 6, 1, 20, 30, 1, 1});                                                        // and tasks of queries
    });
}

TEST(patch_attention_of_bfloat16) {
    on_every_isa([] {
        for (const Case& c :
             {Case{2, 36, 4, 8, 8, 2, 2, 1}, {1, 48, 2, 3, 11, 2, 1}, {1, 60, 1, 16, 17, 1, 2, 5}, {1, 3, 3, 20, 30, 1, 1}}) {
            PatchAttentionProblem p{};
            p.batch = c.batch, p.dim = c.depth * c.heads, p.heads = c.heads;
            p.height = c.rows * c.patch_h, p.width = c.columns * c.patch_w, p.patch_h = c.patch_h, p.patch_w = c.patch_w;
            p.scale = 1.0f / std::sqrt(static_cast<float>(c.depth));
            Guarded<bf16> qkv(set_strides(p, 3 * p.dim, c.gap, p.qkv_stride)), y(set_strides(p, p.dim, c.gap, p.y_stride)), again(y.size());
            Guarded<float> wide(qkv.size()), exact(y.size());
            fill(qkv), fill_with(y, 7.0f), fill_with(again, 7.0f), fill_with(exact, 7.0f);
            for (int64_t i = 0; i < wide.size(); ++i) wide[i] = to_float(qkv[i]);
            p.dtype = DType::bf16, p.qkv = qkv.data(), p.y = y.data();
            CHECK(patch_attention(p, 2) == Status::ok);
            p.y = again.data();
            spoil_scratch();
            CHECK(patch_attention(p, 1) == Status::ok);
            p.dtype = DType::f32, p.qkv = wide.data(), p.y = exact.data();
            CHECK(patch_attention(p, 1) == Status::ok);
            CHECK(y.canary_intact() && same_bits(y, again));
            for (int64_t i = 0; i < y.size(); ++i)  // |v| is a few at most
                CHECK(std::fabs(value(y[i]) - double{exact[i]}) <= 2 * rounding<bf16> * std::fmax(1.0, std::fabs(double{exact[i]})));
        }
    });
}

TEST(patch_attention_of_many_pixels_in_bounded_scratch) {
    // Equal keys: every y is the mean of v, however many blocks there are.
    const int64_t side = 256, pixels = side * side;
    Guarded<float> qkv(3 * pixels), y(pixels);
    double mean = 0;
    for (int64_t i = 0; i < pixels; ++i) {
        qkv[3 * i] = random_float();
        qkv[3 * i + 1] = 2.0f;
        qkv[3 * i + 2] = random_float() + 1.0f;
        mean += double{qkv[3 * i + 2]} / static_cast<double>(pixels);
    }
    PatchAttentionProblem p{};
    p.batch = p.dim = p.heads = p.patch_h = p.patch_w = 1, p.height = p.width = side;
    p.scale = 1.0f;
    p.qkv = qkv.data(), p.y = y.data();
    set_strides(p, 3, 0, p.qkv_stride);
    set_strides(p, 1, 0, p.y_stride);
    CHECK(patch_attention(p, 2) == Status::ok);
    for (int64_t i = 0; i < pixels; ++i) CHECK(std::fabs(double{y[i]} - mean) < 1e-6);
}

TEST(patch_attention_refuses_impossible_shapes) {
    PatchAttentionProblem p{};
    p.batch = 1, p.dim = 6, p.heads = 4, p.height = p.width = 4, p.patch_h = p.patch_w = 2;
    CHECK(patch_attention(p, 1) == Status::bad_shape);
    p.heads = 0;
    CHECK(patch_attention(p, 1) == Status::bad_shape);
    p.heads = 3, p.patch_w = 3;
    CHECK(patch_attention(p, 1) == Status::bad_shape);
    p.patch_w = 2, p.batch = 0;
    CHECK(patch_attention(p, 1) == Status::ok);
}
