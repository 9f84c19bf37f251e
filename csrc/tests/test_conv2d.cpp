// Every method of a convolution against a double-precision loop over the formula, on odd sizes, with guard pages behind each tensor.
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "cpu/ops/conv2d.h"
#include "tests/floats.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

struct Case {
    int64_t batch, height, width, channels, second, columns, kernel, stride;
    Conv2dMethod method;
    bool residual;
};

constexpr double g[4][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};

template <class T = float, bool gathered = false>
void compare(const Case& t) {
    const int64_t channels = t.channels + t.second, pixels = t.height * t.width, taps = t.kernel * t.kernel;
    const int64_t height = (t.height - 1) / t.stride + 1, width = (t.width - 1) / t.stride + 1;
    const bool by_planes = t.method == Conv2dMethod::planes, winograd = t.method == Conv2dMethod::winograd;
    using O = std::conditional_t<gathered, Operand<T>, float>;
    Guarded<T> x(t.batch * pixels * t.channels), second(t.batch * pixels * t.second);
    Guarded<O> w(t.columns * taps * channels);
    Guarded<T> y(t.batch * height * width * t.columns), residual(y.size());
    Guarded<O> weight(panels(t.columns) * panel * (winograd ? 16 * channels : packed_depth<O>(taps * channels)));
    Guarded<float> bias(panels(t.columns) * panel);
    fill(x), fill(second), fill(w), fill(residual), fill(bias);
    fill_with(weight, 0.0f);
    for (int64_t n = 0; n < t.columns; ++n)
        for (int64_t c = 0; c < channels; ++c) {
            const O* tap = w.data() + (n * channels + c) * taps;
            if (winograd) {
                for (int64_t r = 0; r < 4; ++r)
                    for (int64_t s = 0; s < 4; ++s) {
                        double sum = 0;
                        for (int64_t k = 0; k < 9; ++k) sum += g[r][k / 3] * g[s][k % 3] * value(tap[k]);
                        from_float(static_cast<float>(sum),
                                   &weight[(4 * r + s) * panels(t.columns) * panel * channels + packed_index<O>(n, c, channels)]);
                    }
                continue;
            }
            for (int64_t k = 0; k < taps; ++k)
                weight[packed_index<O>(n, by_planes ? c * taps + k : k * channels + c, taps * channels)] = tap[k];
        }

    const InputMap last{x.data(), t.channels, pixels * t.channels, 1, t.width * t.channels, t.channels};
    const InputMap first{x.data(), t.channels, pixels * t.channels, pixels, t.width, 1};
    const InputMap other{second.data(), t.second, pixels * t.second, 1, t.width * t.second, t.second};
    Conv2dProblem p{};
    p.dtype = dtype_of<T>;
    p.batch = t.batch, p.height = t.height, p.width = t.width, p.columns = t.columns;
    p.kernel = t.kernel, p.stride = t.stride, p.method = t.method;
    p.x = by_planes ? first : last;
    p.second = other;
    p.weight = weight.data(), p.bias = bias.data();
    p.activation = Activation::relu;
    p.residual = t.residual ? residual.data() : nullptr;
    p.y = y.data();
    spoil_scratch();
    CHECK(conv2d(p, 2) == Status::ok);
    CHECK(y.canary_intact());

    const int64_t half = t.kernel / 2;
    for (int64_t i = 0; i < y.size(); ++i) {
        const int64_t n = i % t.columns, column = i / t.columns % width, row = i / t.columns / width % height;
        const int64_t image = i / t.columns / width / height;
        double sum = double{bias[n]};
        for (int64_t k = 0; k < taps; ++k) {
            const int64_t v = row * t.stride + k / t.kernel - half, u = column * t.stride + k % t.kernel - half;
            if (v < 0 || v >= t.height || u < 0 || u >= t.width) continue;
            for (int64_t c = 0; c < channels; ++c) {
                const InputMap& map = c < t.channels ? p.x : p.second;
                const int64_t inside = c < t.channels ? c : c - t.channels;
                const T* data = static_cast<const T*>(map.data);
                sum += value(data[image * map.image + v * map.row + u * map.pixel + inside * map.channel]) *
                       value(w[(n * channels + c) * taps + k]);
            }
        }
        const double expected = std::max(sum, 0.0) + (t.residual ? value(residual[i]) : 0.0);
        const double doubt = 1e-4 * (1 + std::sqrt(static_cast<double>(taps * channels)));
        CHECK(std::fabs(value(y[i]) - expected) < doubt + rounding<T> * std::fabs(expected));
    }
}

}  // namespace

TEST(conv2d_by_gathering_and_as_a_product) {
    on_every_isa([] {
        for (int64_t kernel : {1, 3})
            for (int64_t stride : {1, 2})
                for (int64_t channels : {1, 3, 17, 33})
                    for (int64_t second : {0, 5}) {
                        compare({2, 5, 7, channels, second, 33, kernel, stride, Conv2dMethod::gathered, true});
                        compare({1, 1, 1, channels, second, 1, kernel, stride, Conv2dMethod::gathered, false});
                        compare<bf16, true>({2, 5, 7, channels, second, 33, kernel, stride, Conv2dMethod::gathered, true});
                        compare<f16, true>({1, 4, 3, channels, second, 5, kernel, stride, Conv2dMethod::gathered, true});
                    }
        compare({1, 2, 1, 70, 0, 40, 3, 1, Conv2dMethod::gathered, false});
        compare({1, 14, 15, 40, 24, 72, 3, 1, Conv2dMethod::gathered, true});  // several blocks and ranges
        compare<bf16, true>({1, 14, 15, 40, 24, 72, 3, 1, Conv2dMethod::gathered, true});
    });
}

TEST(conv2d_by_planes) {
    on_every_isa([] {
        for (int64_t stride : {1, 2})
            for (int64_t channels : {2, 3, 4})
                for (int64_t columns : {1, 7, 16, 33})
                    for (int64_t width : {1, 2, 9, 33}) compare({2, 5, width, channels, 0, columns, 3, stride, Conv2dMethod::planes, true});
        compare<bf16>({2, 5, 9, 3, 0, 33, 3, 2, Conv2dMethod::planes, true});
        compare({1, 1, 1, 3, 0, 16, 3, 2, Conv2dMethod::planes, false});
    });
}

TEST(conv2d_by_minimal_filtering) {
    on_every_isa([] {
        for (int64_t size : {1, 2, 3, 6, 7})
            for (int64_t channels : {1, 16, 17, 33})
                for (int64_t columns : {1, 16, 33, 70}) {
                    compare({2, size, 5, channels, 0, columns, 3, 1, Conv2dMethod::winograd, true});
                    compare({1, size, 4, channels, 19, columns, 3, 1, Conv2dMethod::winograd, false});
                }
        compare({1, 16, 18, 40, 24, 72, 3, 1, Conv2dMethod::winograd, true});  // several blocks and ranges
        compare<bf16>({1, 7, 5, 17, 0, 33, 3, 1, Conv2dMethod::winograd, true});
    });
}

TEST(conv2d_refuses_what_it_cannot_do) {
    Conv2dProblem p{};
    p.kernel = 2, p.stride = 1;
    CHECK(conv2d(p, 1) == Status::bad_shape);
    p.kernel = 3;
    CHECK(conv2d(p, 1) == Status::ok);
    p.stride = 2, p.method = Conv2dMethod::winograd;
    CHECK(conv2d(p, 1) == Status::bad_shape);
    p.stride = 1, p.method = Conv2dMethod::gathered;
    p.x.channels = 2, p.x.channel = 4;
    CHECK(conv2d(p, 1) == Status::bad_layout);
    p.batch = -1;
    CHECK(conv2d(p, 1) == Status::bad_shape);
}
