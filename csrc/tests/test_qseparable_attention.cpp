// Separable attention on bytes against plain loops over the formulas, every value exact. Guard pages behind each tensor.
#include "cpu/ops/qseparable_attention.h"

#include <cmath>

#include "tests/check.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

constexpr QByte byte = qbyte_of_inverse(1.0f, 40, 8);
const float v_ratio = 0.83f;

// A map of 1 + dim channels, of which the first has scores, as a projection gives it.
struct Map {
    QPhases size;
    Guarded<uint8_t> data;
    QPhaseMap scores, values;

    Map(const QPhases& s, int low, int high) : size(s), data(s.batch * s.height * s.width * (1 + s.dim)) {
        for (int64_t i = 0; i < data.size(); ++i) data[i] = static_cast<uint8_t>(random_int(low, high));
        const int64_t pixel = 1 + s.dim, row = s.width * pixel, image = s.height * row;
        scores = {data.data(), image, row, pixel};
        values = {data.data() + 1, image, row, pixel};
    }
};

void compare_context(const QPhases& s, int low, int high, bool bytes) {
    Map map(s, low, high);
    int32_t table[256];
    for (int i = 0; i < 256; ++i) table[i] = static_cast<int32_t>(std::nearbyint(std::ldexp(std::exp(-0.04 * i), 16)));
    Guarded<uint8_t> quantized(s.batch * s.phases() * s.dim);
    Guarded<float> real(s.batch * s.phases() * s.dim);
    QSeparableContextProblem p{s, map.scores, map.values, table, 17.0, 0.37, bytes, byte, nullptr};
    p.y = bytes ? static_cast<void*>(quantized.data()) : real.data();
    CHECK(qseparable_context(p, 2) == Status::ok);
    CHECK(quantized.canary_intact() && real.canary_intact());
    for (int64_t b = 0; b < s.batch; ++b)
        for (int64_t phase = 0; phase < s.phases(); ++phase)
            for (int64_t c = 0; c < s.dim; ++c) {
                const auto pixels = [&](const auto& body) {
                    for (int64_t y = phase / s.patch_w; y < s.height; y += s.patch_h)
                        for (int64_t x = phase % s.patch_w; x < s.width; x += s.patch_w)
                            body(*map.scores.at(b, y, x), map.values.at(b, y, x)[c]);
                };
                int most = 0;
                pixels([&](int q, int) { most = q > most ? q : most; });
                int64_t total = 0, weighted = 0;
                pixels([&](int q, int x) { total += table[most - q], weighted += int64_t{table[most - q]} * x; });
                const double t = (static_cast<double>(weighted) / static_cast<double>(total) - 17.0) * 0.37;
                const int64_t at = (b * s.phases() + phase) * s.dim + c;
                if (bytes) {
                    CHECK(quantized[at] == static_cast<int>(std::nearbyint(std::fmin(std::fmax(t, -40.0), 215.0))) + 40);
                } else {
                    CHECK(real[at] == static_cast<float>(t));
                }
            }
}

void compare_gate(const QPhases& s) {
    Map map(s, 0, 255);
    Guarded<float> k(s.batch * s.phases() * s.dim);
    for (int64_t i = 0; i < k.size(); ++i) k[i] = random_float();
    Guarded<uint8_t> y(s.batch * s.height * s.width * s.dim);
    CHECK(qseparable_gate({s, map.values, 101, k.data(), v_ratio, byte, y.data()}, 2) == Status::ok);
    CHECK(y.canary_intact());
    int64_t i = 0;
    for (int64_t b = 0; b < s.batch; ++b)
        for (int64_t row = 0; row < s.height; ++row)
            for (int64_t x = 0; x < s.width; ++x)
                for (int64_t c = 0; c < s.dim; ++c) {
                    const int64_t phase = row % s.patch_h * s.patch_w + x % s.patch_w;
                    const float m = k[(b * s.phases() + phase) * s.dim + c] * v_ratio;
                    const int v = map.values.at(b, row, x)[c] - 101;
                    const float t = static_cast<float>(v > 0 ? v : 0) * m;
                    CHECK(y[i++] == static_cast<int>(std::nearbyint(std::fmin(std::fmax(t, -40.0f), 215.0f))) + 40);
                }
}

}  // namespace

TEST(qseparable_attention_on_every_tail) {
    on_every_isa([] {
        for (int64_t dim : {1, 7, 8, 9, 15, 16, 17, 32, 33, 64, 65, 129, 200})
            for (bool bytes : {false, true}) {
                compare_context({2, dim, 4, 6, 2, 2}, 0, 255, bytes);
                compare_context({1, dim, 3, 4, 3, 1}, 0, 63, bytes);
            }
        for (int64_t dim : {1, 8, 17, 64, 129}) {
            compare_gate({2, dim, 4, 6, 2, 2});
            compare_gate({1, dim, 3, 6, 1, 3});
        }
        compare_gate({2, 128, 40, 32, 2, 2});                    // large enough for a parallel region
        compare_context({1, 160, 40, 64, 2, 2}, 0, 255, true);   // likewise, and 32-bit sums are carried on
        compare_context({1, 33, 64, 64, 2, 2}, 255, 255, true);  // and as large as they can be
        compare_context({1, 17, 38, 62, 1, 1}, 255, 255, false);
    });
}

TEST(qseparable_attention_refuses) {
    int32_t table[256] = {};
    QSeparableContextProblem p{};
    p.size = {1, 4, 3, 4, 2, 2};
    p.table = table;
    CHECK(qseparable_context(p, 1) == Status::bad_shape);
    p.size.height = 0;
    CHECK(qseparable_context(p, 1) == Status::overflow);
    table[0] = 1 << 16;
    CHECK(qseparable_context(p, 1) == Status::ok);
    table[9] = (1 << 16) + 1;
    CHECK(qseparable_context(p, 1) == Status::overflow);
    QSeparableGateProblem gate{};
    gate.size = {1, 4, 4, 3, 2, 2};
    CHECK(qseparable_gate(gate, 1) == Status::bad_shape);
}
