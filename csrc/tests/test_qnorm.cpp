// Normalising int16 streams against a plain loop over the formula, and while a product loads its rows; sums of a product's results. Every
// value is exact. Guard pages behind each tensor.
#include <cmath>

#include "cpu/ops/qgemm.h"
#include "cpu/ops/qnorm.h"
#include "tests/check.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

// A stream of rows of which some reach the ends of int16, and how it becomes bytes of 6 bits.
struct Stream {
    Guarded<int16_t> x;
    Guarded<int64_t> sums;  // of each group, or of each row without groups
    QNorm norm;

    Stream(int64_t rows, int64_t depth, int64_t groups) : x(rows * depth), sums(2 * (groups > 0 ? groups : rows)) {
        norm = {x.data(), depth, depth, groups > 0 ? sums.data() : nullptr, groups > 0 ? rows / groups : 1, 0.0371, 1e-5, 0.083,
                -29.0f,   34.0f, 29};
        for (int64_t i = 0; i < sums.size(); ++i) sums[i] = 0;
        for (int64_t i = 0; i < x.size(); ++i) {
            const int most = i / depth % 3 == 0 ? INT16_MAX : 100;
            const int value = i % 11 == 0 ? -most - 1 : random_int(-most, most);
            x[i] = static_cast<int16_t>(value);
            const int64_t group = i / depth / norm.group_rows;
            sums[2 * group] += value;
            sums[2 * group + 1] += int64_t{value} * value;
        }
    }
    // What element k of row r becomes.
    uint8_t expected(int64_t r, int64_t k) {
        const int64_t group = r / norm.group_rows;
        const double n = static_cast<double>(norm.group_rows * norm.depth), mean = static_cast<double>(sums[2 * group]) / n;
        const double variance = std::fmax(static_cast<double>(sums[2 * group + 1]) / n - mean * mean, 0.0);
        const double factor = (norm.scale / norm.y_scale) / std::sqrt(variance * (norm.scale * norm.scale) + norm.eps);
        const float centred = static_cast<float>(x[r * norm.depth + k]) - static_cast<float>(mean);
        const float clamped = std::fmin(std::fmax(centred * static_cast<float>(factor), norm.low), norm.high);
        return static_cast<uint8_t>(static_cast<int>(std::nearbyint(clamped)) + norm.zero_point);
    }
};

void compare(int64_t rows, int64_t depth, int64_t groups) {
    Stream stream(rows, depth, groups);
    Guarded<uint8_t> y(rows * depth);
    CHECK(qnorm({stream.norm, rows, y.data(), depth}, 2) == Status::ok);
    CHECK(y.canary_intact());
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t k = 0; k < depth; ++k) CHECK(y[r * depth + k] == stream.expected(r, k));
}

// Any weight, made of random panels: what is compared went through the same one.
struct Weight {
    Guarded<int8_t> panels;
    std::vector<int32_t> channels;
    QWeight weight;

    Weight(int64_t columns, int64_t depth)
        : panels(qpanels(columns) * qpanel_bytes(depth, 8)), channels(static_cast<size_t>(7 * qpanels(columns) * qpanel)) {
        for (int64_t i = 0; i < panels.size(); ++i) panels[i] = static_cast<int8_t>(random_int(-127, 127));
        for (size_t i = 0; i < channels.size(); ++i) channels[i] = random_int(-1000, 1000);
        auto* scale = reinterpret_cast<float*>(channels.data() + qpanels(columns) * qpanel);
        for (int64_t n = 0; n < qpanels(columns) * qpanel; ++n) scale[n] = 0.0173f;
        weight = {panels.data(), columns, depth, 8, nullptr, 0};
    }
    QChannels per_channel() const {
        const int64_t stride = static_cast<int64_t>(channels.size() / 7);
        const auto row = [&](int i) { return channels.data() + i * stride; };
        const auto real = [&](int i) { return reinterpret_cast<const float*>(row(i)); };
        return {row(0), real(1), real(2), real(3), real(4), real(5), row(6)};
    }
};

QGemmProblem product(const Weight& w, int64_t rows, QType type, void* y) {
    QGemmProblem p{};
    p.rows = rows;
    p.weight = w.weight;
    p.epilogue.channels = w.per_channel();
    p.epilogue.type = type;
    p.epilogue.plain = true;
    p.epilogue.y = y;
    p.epilogue.y_stride = w.weight.columns;
    return p;
}

void compare_product(int64_t rows, int64_t depth, int64_t columns, int64_t groups) {
    const Stream stream(rows, depth, groups);
    const Weight w(columns, depth);
    Guarded<uint8_t> a(rows * depth);
    Guarded<int32_t> expected(rows * columns), y(rows * columns);
    CHECK(qnorm({stream.norm, rows, a.data(), depth}, 2) == Status::ok);
    QGemmProblem p = product(w, rows, QType::i32, expected.data());
    p.a = a.data(), p.a_stride = depth;
    CHECK(qgemm(p, 2) == Status::ok);
    p = product(w, rows, QType::i32, y.data());
    p.norm = &stream.norm;
    CHECK(qgemm(p, 2) == Status::ok);
    CHECK(y.canary_intact());
    for (int64_t i = 0; i < y.size(); ++i) CHECK(y[i] == expected[i]);
}

void compare_sums(int64_t rows, int64_t depth, int64_t columns, int64_t groups, int64_t stride) {
    const Weight w(columns, depth);
    Guarded<uint8_t> a(rows * depth);
    for (int64_t i = 0; i < a.size(); ++i) a[i] = static_cast<uint8_t>(random_int(0, 255));
    Guarded<int16_t> y((rows - 1) * stride + columns);
    Guarded<int64_t> sums(2 * groups);
    QGemmProblem p = product(w, rows, QType::i16, y.data());
    p.a = a.data(), p.a_stride = depth;
    p.epilogue.y_stride = stride;
    p.collected = sums.data(), p.groups = groups;
    CHECK(qgemm(p, 3) == Status::ok);
    CHECK(y.canary_intact() && sums.canary_intact());
    for (int64_t group = 0; group < groups; ++group) {
        int64_t sum = 0, squares = 0;
        for (int64_t r = group * rows / groups; r < (group + 1) * rows / groups; ++r)
            for (int64_t n = 0; n < columns; ++n) {
                const int64_t value = y[r * stride + n];
                sum += value, squares += value * value;
            }
        CHECK(sums[2 * group] == sum && sums[2 * group + 1] == squares);
    }
}

}  // namespace

TEST(qnorm_on_every_tail) {
    on_every_isa([] {
        for (int64_t depth : {1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 144})
            for (int64_t groups : {0, 1, 3}) {
                compare(3, depth, groups);
                compare(36, depth, groups);
            }
        compare(2, 600000, 0);  // partial sums of a row are carried on
        compare(900, 144, 2);   // large enough for a parallel region
    });
}

TEST(qnorm_while_a_product_loads_its_rows) {
    on_every_isa([] {
        for (int64_t depth : {1, 3, 16, 63, 64, 130})
            for (int64_t groups : {0, 1, 2}) {
                compare_product(4, depth, 17, groups);
                compare_product(26, depth, 80, groups);
            }
        compare_product(1000, 64, 160, 4);
    });
}

TEST(qgemm_collects_sums) {
    on_every_isa([] {
        for (int64_t columns : {1, 16, 31, 80, 129})
            for (int64_t groups : {1, 3, 30}) {
                compare_sums(30, 20, columns, groups, columns);
                compare_sums(30, 20, columns, groups, columns + 5);
            }
        compare_sums(1200, 40, 144, 3, 144);
    });
}

TEST(qnorm_refuses_impossible_sizes) {
    QNormProblem p{};
    p.rows = -1;
    CHECK(qnorm(p, 1) == Status::bad_shape);
    p.rows = 0;
    CHECK(qnorm(p, 1) == Status::ok);
    const int64_t sums[2] = {};
    p.rows = 1, p.norm.sums = sums;
    CHECK(qnorm(p, 1) == Status::bad_shape);
}
