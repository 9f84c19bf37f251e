// The CUDA kernel of qinverted_residual on the processor, block by block (block.h), against its three layers in plain loops.
#include "cuda/ops/qinverted_residual.cuh"

#include "cuda/primitives/alignment.h"
#include "tests/block.h"
#include "tests/qweights.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

struct Case {
    int64_t batch;
    int height, width, channels, hidden, columns, stride;
    bool residual = false;
};

// Of cuda::ResidualSlices.
struct Stages {
    int lag, count;
};
constexpr Stages all_stages[] = {{0, 1}, {0, 2}, {1, 2}};

int byte_of(Curve& curve, int64_t sum, float scale) {
    return curve_byte(curve.data(), static_cast<float>(static_cast<int32_t>(sum)) * scale);
}

// Weights and numbers as cuda/ops/qinverted_residual.h wants them, value by value.
class Slices {
  public:
    Slices(int channels, int hidden, int columns)
        : depth_(round_up(channels, 32) / 32),
          expand_(7 * 64 * 4),
          reduce_(expand_ + 2048 * depth_),
          slice_(reduce_ + 1024 * (round_up(columns, 16) / 16)),
          data_(round_up(hidden, 64) / 64 * slice_) {
        std::memset(data_.data(), 0, static_cast<size_t>(data_.size()));
    }
    void put_expand(int64_t e, int64_t c, int value) { put(e / 64 * slice_ + expand_, depth_, place(e % 64), c, value); }
    void put_reduce(int64_t n, int64_t e, int value) { put(e / 64 * slice_ + reduce_, 2, place(n), e % 64, value); }
    template <class T>
    void put_number(int64_t row, int64_t e, T value) {
        std::memcpy(data_.data() + e / 64 * slice_ + (row * 64 + e % 64) * 4, &value, 4);
    }
    const uint8_t* data() { return data_.data(); }

  private:
    // Of four neighbours, two are columns of each product of eight.
    static int64_t place(int64_t n) { return n / 16 * 16 + n % 4 / 2 * 8 + n % 16 / 4 * 2 + n % 2; }
    void put(int64_t at, int64_t depth, int64_t n, int64_t k, int value) {
        const int64_t lane = n % 8 * 4 + k % 16 / 4, word = n % 16 / 8 * 2 + k % 32 / 16;
        data_[at + (n / 16 * depth + k / 32) * 512 + lane * 16 + word * 4 + k % 4] = static_cast<uint8_t>(value);
    }

    int64_t depth_, expand_, reduce_, slice_;
    Guarded<uint8_t> data_;
};

template <class Tile>
void compare(const Case& t, const Stages& stages, const BlockOrder& order) {
    const int out_height = (t.height - 1) / t.stride + 1, out_width = (t.width - 1) / t.stride + 1;
    const int64_t pixels = int64_t{t.height} * t.width, out_pixels = int64_t{out_height} * out_width;
    Guarded<uint8_t> x(t.batch * pixels * t.channels), y(t.batch * out_pixels * t.columns);
    Guarded<uint8_t> residual(y.size());
    for (int64_t i = 0; i < x.size(); ++i) x[i] = static_cast<uint8_t>(random_int(0, 255));
    for (int64_t i = 0; i < residual.size(); ++i) residual[i] = static_cast<uint8_t>(random_int(0, 255));
    const auto first_curve = Curve::with_steps(), second_curve = Curve::with_steps();
    Curve &expand_curve = *first_curve, &filter_curve = *second_curve;

    Slices slices(t.channels, t.hidden, t.columns);
    const auto size = [](int64_t a, int64_t b) { return static_cast<size_t>(a * b); };
    std::vector<int> expand(size(t.hidden, t.channels)), taps(size(t.hidden, 9)), reduce(size(t.columns, t.hidden));
    for (auto* each : {&expand, &taps, &reduce})
        for (int& value : *each) value = random_int(-127, 127);
    std::vector<int64_t> init(size(t.hidden, 1)), filter_init(init.size());
    std::vector<float> scale(init.size()), filter_scale(init.size());
    for (int64_t e = 0; e < t.hidden; ++e) {
        const auto at = static_cast<size_t>(e);
        init[at] = random_int(-100000, 100000);
        scale[at] = std::fabs(random_float()), filter_scale[at] = std::fabs(random_float());
        for (int64_t c = 0; c < t.channels; ++c) slices.put_expand(e, c, expand[size(e, t.channels) + static_cast<size_t>(c)]);
        for (int64_t n = 0; n < t.columns; ++n) slices.put_reduce(n, e, reduce[size(n, t.hidden) + at]);
        slices.put_number(5, e, static_cast<int32_t>(init[at])), slices.put_number(6, e, scale[at]);
        for (int kx = 0; kx < 3; ++kx) {
            uint32_t word = 0;
            for (int ky = 0; ky < 3; ++ky)
                word |= uint32_t{static_cast<uint8_t>(taps[9 * at + static_cast<size_t>(3 * ky + kx)])} << (8 * ky);
            slices.put_number(kx, e, word);
        }
        filter_init[at] = random_int(-100000, 100000);
        slices.put_number(3, e, static_cast<int32_t>(filter_init[at])), slices.put_number(4, e, filter_scale[at]);
    }
    RandomChannels channels(t.columns, 0.001f);

    cuda::QInvertedResidualProblem p{};
    p.batch = t.batch, p.height = t.height, p.width = t.width, p.channels = t.channels, p.hidden = t.hidden, p.columns = t.columns,
    p.stride = t.stride;
    const auto padding = static_cast<uint8_t>(random_int(0, 255));
    p.padding = padding * 0x01010101u;
    p.x = x.data();
    p.slices = slices.data(), p.expand_curve = expand_curve.data(), p.filter_curve = filter_curve.data();
    QEpilogue& e = p.reduce;
    e.channels = channels.channels(), e.type = QType::u8, e.plain = !t.residual, e.y = y.data(), e.y_stride = t.columns;
    if (t.residual) e.residual = residual.data(), e.residual_type = QType::u8, e.residual_stride = t.columns;
    e.residual_scale = 0.5f, e.residual_zero_point = 7;
    std::memset(y.data(), 0x5A, static_cast<size_t>(y.size()));
    const cuda::QResidualShared<Tile> at(t.channels, t.hidden, t.columns, stages.lag, stages.count);
    Guarded<uint8_t> shared(at.bytes);
    const int alignment = cuda::alignment_of(x.data(), p.channels);
    const cuda::ResidualTiles<Tile> tiles(t.height, t.width);
    for (int64_t block = 0; block < t.batch * tiles.count(); ++block) {
        for (int64_t i = 0; i < shared.size(); ++i) shared[i] = static_cast<uint8_t>(random_int(0, 255));
        run_block(cuda::residual_threads, block, 0, order,
                  [&] { cuda::qinverted_residual_tile<Tile>(p, tiles, at, alignment, shared.data()); });
        CHECK(shared.canary_intact());
    }
    CHECK(y.canary_intact());

    std::vector<int> wide(size(pixels, t.hidden)), filtered(size(t.hidden, 1));
    for (int64_t b = 0; b < t.batch; ++b) {
        for (int64_t i = 0; i < pixels; ++i)
            for (int64_t h = 0; h < t.hidden; ++h) {
                int64_t sum = init[static_cast<size_t>(h)];
                for (int64_t c = 0; c < t.channels; ++c)
                    sum += expand[size(h, t.channels) + static_cast<size_t>(c)] * x[(b * pixels + i) * t.channels + c];
                wide[size(i, t.hidden) + static_cast<size_t>(h)] = byte_of(expand_curve, sum, scale[static_cast<size_t>(h)]);
            }
        for (int64_t i = 0; i < out_pixels; ++i) {
            const int64_t top = i / out_width * t.stride - 1, left = i % out_width * t.stride - 1;
            for (int64_t h = 0; h < t.hidden; ++h) {
                const auto at = static_cast<size_t>(h);
                int64_t sum = filter_init[at];
                for (int64_t tap = 0; tap < 9; ++tap) {
                    const int64_t v = top + tap / 3, u = left + tap % 3;
                    const bool there = v >= 0 && v < t.height && u >= 0 && u < t.width;
                    sum += taps[9 * at + static_cast<size_t>(tap)] * (there ? wide[size(v * t.width + u, t.hidden) + at] : padding);
                }
                filtered[at] = byte_of(filter_curve, sum, filter_scale[at]);
            }
            for (int64_t n = 0; n < t.columns; ++n) {
                int64_t sum = e.channels.init[n];
                for (int64_t h = 0; h < t.hidden; ++h)
                    sum += reduce[size(n, t.hidden) + static_cast<size_t>(h)] * filtered[static_cast<size_t>(h)];
                CHECK(y[(b * out_pixels + i) * t.columns + n] == finish_one(e, sum, b * out_pixels + i, n));
            }
        }
    }
}

void compare(const Case& t, const Stages& stages, const BlockOrder& order) {
    cuda::with_residual_tile(t.columns, t.stride, [&]<class Tile>() { compare<Tile>(t, stages, order); });
}

}  // namespace

TEST(cuda_qinverted_residual) {
    for (const Stages& stages : all_stages) {
        for (const BlockOrder& order : block_orders) {
            compare({1, 9, 17, 24, 40, 24, 1, true}, stages, order);  // tails of tiles, channels and slices
            compare({1, 18, 7, 16, 72, 41, 2}, stages, order);
        }
        const BlockOrder& order = block_orders[0];
        compare({2, 1, 1, 3, 5, 2, 1, true}, stages, order);
        compare({2, 1, 1, 3, 5, 2, 2}, stages, order);
        compare({1, 8, 16, 33, 32, 130, 2}, stages, order);
        compare({2, 7, 5, 64, 32, 64, 1}, stages, order);
        compare({1, 8, 16, 80, 32, 72, 1}, stages, order);  // more columns than the narrow tiles have
        compare({1, 4, 5, 16, 32, 128, 1}, stages, order);
        compare({1, 4, 5, 16, 32, 256, 2}, stages, order);
    }
}

// So many slices that each place of shared memory is taken again, and whatever the order of warps is.
TEST(cuda_qinverted_residual_slice_by_slice) {
    for (const Stages& stages : all_stages) {
        for (auto turns : {BlockOrder::forward, BlockOrder::backward, BlockOrder::shuffled}) {
            for (bool late_copies : {false, true}) {
                compare({1, 8, 12, 8, 344, 16, 1}, stages, {turns, late_copies});
                compare({1, 9, 9, 8, 264, 8, 2}, stages, {turns, late_copies});
            }
        }
    }
}

namespace {

// float(sum) * scale: integers, what rounds to them, and what is far away.
template <class Byte>
void every_argument(Curve& curve, const Byte& byte) {
    const auto same = [&](float x) { CHECK(byte(x) == curve_byte(curve.data(), x)); };
    for (int i = -33000; i <= 33000; ++i)
        for (float part : {0.0f, 0.25f, 0.5f, 0.75f}) same(static_cast<float>(i) + part);
    for (float far : {1e5f, 1e9f, 3e38f, INFINITY}) same(far), same(-far);
}

}  // namespace

TEST(cuda_shared_curves_are_the_same) {
    Guarded<uint8_t> shared(cuda::SharedCurve::bytes);
    const auto load = [&](Curve& curve) {
        for (int64_t i = 0; i < shared.size(); ++i) shared[i] = static_cast<uint8_t>(random_int(0, 255));
        run_block(32, 0, 0, block_orders[0], [&] { cuda::SharedCurve::load(curve.data(), shared.data(), 32); });
        CHECK(shared.canary_intact());
        CHECK(cuda::SharedCurve::has_steps(shared.data()) == (curve.entries() > 0));
    };
    for (CurveKind kind : {CurveKind::random, CurveKind::random, CurveKind::random, CurveKind::extreme}) {
        Curve curve(kind);
        load(curve);
        const cuda::SharedCurve quick(shared.data());
        every_argument(curve, [&](float x) { return static_cast<int>(quick(x)); });
    }
    int with_steps = 0;
    for (int i = 0; i < 12; ++i) {
        Curve curve(CurveKind::silu);
        load(curve);
        if (curve.entries() == 0) continue;
        ++with_steps;
        const cuda::CurveSteps quick(shared.data());
        every_argument(curve, [&](float x) {
            const float four[4] = {x, -7.0f, x, x}, two[2] = {12.0f, x};
            const uint32_t bytes = quick(four), pair = quick(two);
            const auto byte = [](uint32_t word, int at) { return static_cast<int>(word >> (8 * at) & 255); };
            CHECK(byte(bytes, 0) == byte(bytes, 2) && byte(bytes, 0) == byte(bytes, 3) && byte(bytes, 0) == byte(pair, 1));
            CHECK(byte(bytes, 1) == curve_byte(curve.data(), -7.0f) && byte(pair, 0) == curve_byte(curve.data(), 12.0f));
            return byte(bytes, 0);
        });
    }
    CHECK(with_steps >= 9);
}
