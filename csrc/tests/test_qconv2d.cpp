// Convolutions of bytes by both methods against a plain loop over the formula, with guard pages behind each buffer.
#include <thread>

#include "cpu/core/tile.h"
#include "cpu/ops/qconv2d.h"
#include "cpu/ops/qwinograd.h"
#include "tests/qweights.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

struct Case {
    int64_t batch, height, width, channels, second, columns, kernel, stride;
    bool wide;  // zero-points that are no bytes
    bool filtered;
    int bits;
};

// A packed weight, and its matrices for minimal filtering.
struct Weight {
    PackedMatrix packed;
    Guarded<int16_t> filtered;

    Weight(const Case& t, int64_t channels)
        : packed(t.columns, t.kernel * t.kernel * channels, t.bits),
          filtered(t.filtered ? qpanels(t.columns) * qtile_positions * ((channels + 1) / 2) * 2 * qpanel : 0) {
        if (t.filtered) filter(t, channels);
    }

    void filter(const Case& t, int64_t channels) {
        constexpr int g[6][3] = {{1, 0, 0}, {1, 1, 1}, {1, -1, 1}, {1, 2, 4}, {1, -2, 4}, {0, 0, 1}};
        const int64_t pairs = (channels + 1) / 2;
        std::memset(filtered.data(), 0, static_cast<size_t>(filtered.size()) * sizeof(int16_t));
        for (int64_t n = 0; n < t.columns; ++n)
            for (int64_t c = 0; c < channels; ++c)
                for (int a = 0; a < 6; ++a)
                    for (int b = 0; b < 6; ++b) {
                        int value = 0;
                        for (int k = 0; k < 9; ++k) value += g[a][k / 3] * g[b][k % 3] * packed.at(n, k * channels + c);
                        const int64_t matrix = n / qpanel * qtile_positions + 6 * a + b;
                        filtered[((matrix * pairs + c / 2) * qpanel + n % qpanel) * 2 + c % 2] = static_cast<int16_t>(value);
                    }
    }
};

void compare(const Case& t) {
    const int64_t channels = t.channels + t.second, pixels = t.height * t.width, taps = t.kernel * t.kernel, half = t.kernel / 2;
    const int64_t height = (t.height - 1) / t.stride + 1, width = (t.width - 1) / t.stride + 1, padded = qpanels(t.columns) * qpanel;
    Guarded<uint8_t> x(t.batch * pixels * t.channels), second(t.batch * pixels * t.second);
    Guarded<int32_t> zero_point(channels), init(padded), y(t.batch * height * width * t.columns);
    for (Guarded<uint8_t>* each : {&x, &second})
        for (int64_t i = 0; i < each->size(); ++i) (*each)[i] = static_cast<uint8_t>(random_int(0, 3) ? random_int(0, 255) : 255);
    for (int64_t c = 0; c < channels; ++c) zero_point[c] = t.wide ? random_int(-1500, 1500) : random_int(0, 255);
    Weight weight(t, channels);
    for (int64_t n = 0; n < padded; ++n) init[n] = random_int(-1000000, 1000000);
    Guarded<int32_t> border(t.wide && t.kernel == 3 ? qborder_classes * padded : 0);
    for (int64_t outside = 0; outside * padded < border.size(); ++outside)
        for (int64_t n = 0; n < padded; ++n) {
            int64_t sum = init[n];
            for (int64_t k = 0; k < taps && n < t.columns; ++k) {
                const bool above = k / 3 == 0 && outside & 4, below = k / 3 == 2 && outside & 8;
                const bool before = k % 3 == 0 && outside & 1, behind = k % 3 == 2 && outside & 2;
                if (!(above || below || before || behind)) continue;
                for (int64_t c = 0; c < channels; ++c) sum += int64_t{zero_point[c]} * weight.packed.at(n, k * channels + c);
            }
            border[outside * padded + n] = static_cast<int32_t>(sum);
        }

    QConv2dProblem p{};
    p.batch = t.batch, p.height = t.height, p.width = t.width, p.kernel = t.kernel, p.stride = t.stride;
    p.x = {x.data(), t.channels, pixels * t.channels, t.width * t.channels, t.channels};
    p.second = {second.data(), t.second, pixels * t.second, t.width * t.second, t.second};
    p.zero_point = zero_point.data(), p.border = border.size() ? border.data() : nullptr;
    p.weight = weight.packed.weight, p.filtered = t.filtered ? weight.filtered.data() : nullptr;
    p.epilogue.channels.init = init.data();
    p.epilogue.type = QType::i32;
    p.epilogue.y = y.data(), p.epilogue.y_stride = t.columns;
    std::memset(y.data(), 0x5A, static_cast<size_t>(y.size()) * sizeof(int32_t));
    CHECK(qconv2d(p, 2) == Status::ok);
    CHECK(y.canary_intact());

    for (int64_t i = 0; i < y.size(); ++i) {
        const int64_t n = i % t.columns, column = i / t.columns % width, row = i / t.columns / width % height;
        const int64_t image = i / t.columns / width / height;
        int64_t sum = init[n];
        for (int64_t k = 0; k < taps; ++k) {
            const int64_t v = row * t.stride + k / t.kernel - half, u = column * t.stride + k % t.kernel - half;
            const bool inside = v >= 0 && v < t.height && u >= 0 && u < t.width;
            for (int64_t c = 0; c < channels; ++c) {
                const QMap& map = c < t.channels ? p.x : p.second;
                const int64_t at = image * map.image + v * map.row + u * map.pixel + (c < t.channels ? c : c - t.channels);
                sum += (inside ? map.data[at] : zero_point[c]) * int64_t{weight.packed.at(n, k * channels + c)};
            }
        }
        CHECK(y[i] == static_cast<int32_t>(sum));
    }
}

}  // namespace

TEST(qconv2d_by_gathering_and_as_a_product) {
    on_every_isa([] {
        for (int64_t kernel : {1, 3})
            for (int64_t stride : {1, 2})
                for (int64_t channels : {1, 3, 5, 17, 33})
                    for (int64_t second : {0, 5})
                        for (int bits : {8, 6})
                            for (bool wide : {false, true}) {
                                compare({2, 5, 7, channels, second, 33, kernel, stride, wide, false, bits});
                                compare({1, 1, 1, channels, second, 1, kernel, stride, wide, false, bits});
                                compare({1, 2, 2, channels, second, 16, kernel, stride, wide, false, bits});
                            }
        compare({1, 14, 15, 40, 24, 72, 3, 1, true, false, 8});  // several blocks and ranges
        compare({1, 14, 15, 70, 0, 72, 3, 1, false, false, 6});
    });
}

// Lines of whole and of broken bands of 16, runs that parts of a tile divide and one that they don't (28 channels), sums of more rows than
// are kept at once.
TEST(qconv2d_of_windows) {
    on_every_isa([] {
        for (int64_t width : {12, 16, 17, 31, 32, 40, 67})
            for (int64_t channels : {16, 24, 28, 44, 64})
                for (bool wide : {false, true}) {
                    compare({2, 5, width, channels, 0, width + 1, 3, 1, wide, false, 8});
                    compare({1, 8, width, channels, 20, 150 - width, 3, 2, wide, false, 6});
                }
        compare({1, 1, 16, 16, 0, 16, 3, 1, true, false, 8});
        compare({3, 33, 32, 96, 96, 96, 3, 1, false, false, 8});
    });
}

// A last block of fewer lines may gather more pixels at once than the blocks before it. In threads of their own, which have no memory from
// larger calls.
TEST(qconv2d_of_blocks_of_other_heights) {
    on_every_isa([] {
        for (int64_t width : {5, 9, 11})
            for (int64_t height : {11, 19, 21, 39})
                for (bool wide : {false, true}) std::thread([=] { compare({1, height, width, 64, 0, 64, 3, 1, wide, false, 8}); }).join();
    });
}

TEST(qconv2d_by_minimal_filtering) {
    on_every_isa([] {
        for (int64_t size : {1, 2, 3, 5, 8})
            for (int64_t channels : {32, 33, 48, 70})
                for (bool wide : {false, true}) {
                    compare({2, size, 6, channels, 0, 35, 3, 1, wide, true, 8});
                    compare({1, size, 4, channels, 37, 81, 3, 1, wide, true, 6});
                }
        compare({1, 32, 31, 64, 0, 70, 3, 1, true, true, 8});  // several blocks
        compare({1, 5, 5, 170, 0, 16, 3, 1, false, true, 8});  // sums near 2^25
    });
}

TEST(qconv2d_refuses_what_it_cannot_do) {
    QConv2dProblem p{};
    p.kernel = 2, p.stride = 1;
    CHECK(qconv2d(p, 1) == Status::bad_shape);
    p.kernel = 3;
    CHECK(qconv2d(p, 1) == Status::ok);
    p.weight.depth = 4;
    CHECK(qconv2d(p, 1) == Status::bad_shape);
    p.weight.depth = 0;
    p.epilogue.row_zero_point = &p.epilogue.residual_zero_point;
    CHECK(qconv2d(p, 1) == Status::bad_layout);
    p.epilogue.row_zero_point = nullptr;
    p.epilogue.type = static_cast<QType>(9);
    CHECK(qconv2d(p, 1) == Status::bad_dtype);

    const int16_t none[1] = {};
    QConv2dProblem q{};
    q.batch = q.height = q.width = 1, q.kernel = 3, q.stride = 1;
    q.x.channels = 32, q.weight.columns = 1, q.weight.depth = 9 * 32, q.weight.largest = 1 << 18;
    q.filtered = none;
    CHECK(qconv2d(q, 1) == Status::overflow);
    q.stride = 2;
    CHECK(qconv2d(q, 1) == Status::bad_shape);
}
