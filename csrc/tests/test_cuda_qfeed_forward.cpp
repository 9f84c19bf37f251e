// The CUDA kernel of qfeed_forward on the processor, block by block (block.h), against its three layers in plain loops.
#include "cuda/ops/qfeed_forward.cuh"

#include "tests/block.h"
#include "tests/qpair.h"
#include "tests/qweights.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

struct Case {
    int64_t batch;
    int pixels, channels, hidden;
    int pieces = 0;  // that sums of the images come in; 0: each pixel by its own
    int zero_point = 29;
    bool collects = false, extreme = false, flat = false;  // flat: all values are the same, and next to nothing is added to 0
};

template <class Shape>
void compare(const Case& t, const BlockOrder& order) {
    const int64_t rows = t.batch * t.pixels;
    const auto at = [](int64_t a, int64_t b, int64_t c) { return static_cast<size_t>(a * b + c); };
    Guarded<int16_t> x(rows * t.channels), y(x.size());
    for (int64_t i = 0; i < x.size(); ++i) {
        const int most = t.extreme ? INT16_MAX : t.flat ? 0 : 300;
        x[i] = static_cast<int16_t>(t.extreme && i % 3 ? (random_int(0, 1) ? INT16_MAX : INT16_MIN) : random_int(-most, most));
    }
    const auto own_curve = Curve::with_steps();
    Curve& curve = *own_curve;
    PairSlices slices(t.channels, t.hidden);
    std::vector<int> first(at(t.hidden, t.channels, 0)), second(first.size());
    std::vector<int64_t> init(static_cast<size_t>(t.hidden));
    std::vector<float> scale(init.size());
    for (int64_t h = 0; h < t.hidden; ++h) {
        init[static_cast<size_t>(h)] = random_int(-100000, 100000), scale[static_cast<size_t>(h)] = std::fabs(random_float());
        slices.put_numbers(h, static_cast<int32_t>(init[static_cast<size_t>(h)]), scale[static_cast<size_t>(h)]);
        for (int64_t c = 0; c < t.channels; ++c) {
            slices.put_first(h, c, first[at(h, t.channels, c)] = random_int(-127, 127));
            slices.put_second(c, h, second[at(h, t.channels, c)] = random_int(-127, 127));
        }
    }
    RandomChannels channels(t.channels, t.extreme ? 100.0f : 0.01f);
    for (int64_t n = t.channels; n < channels.init.size(); ++n) channels.init[n] = 0, (*channels.values[0])[n] = 0.0f;

    cuda::QFeedForwardProblem p{};
    p.batch = t.batch, p.pixels = t.pixels, p.channels = t.channels, p.hidden = t.hidden, p.x = x.data();
    const int pieces = t.pieces > 0 ? t.pieces : 1;
    Guarded<int64_t> sums(2 * t.batch * pieces);
    for (int64_t i = 0; i < sums.size(); ++i) sums[i] = 0;
    for (int64_t i = 0; i < x.size(); ++i) {
        const int64_t piece = i / (int64_t{t.pixels} * t.channels) * pieces + i % pieces;
        sums[2 * piece] += x[i], sums[2 * piece + 1] += int64_t{x[i]} * x[i];
    }
    const int most = t.zero_point % 2 ? 255 : 63;
    p.norm = {t.pieces > 0 ? sums.data() : nullptr,
              t.pieces,
              0.0371 / 0.0083,
              0.0371 * 0.0371,
              t.flat ? 5e-324 : 1e-5,
              static_cast<float>(-t.zero_point),
              static_cast<float>(most - t.zero_point),
              t.zero_point};
    p.slices = slices.data(), p.curve = curve.data();
    QEpilogue& e = p.second;
    e.channels = channels.channels(), e.type = QType::i16, e.plain = true;
    e.y = y.data(), e.y_stride = t.channels, e.residual = x.data(), e.residual_type = QType::i16, e.residual_stride = t.channels;
    using Place = cuda::QPairPixels<Shape>;
    Guarded<int64_t> parts(t.collects ? 2 * t.batch * Place::pieces(t.pixels) : 0);
    std::memset(y.data(), 0x5A, static_cast<size_t>(y.size()) * 2), std::memset(parts.data(), 0x5A, static_cast<size_t>(parts.size()) * 8);
    if (t.collects) p.parts = parts.data();
    Guarded<uint8_t> shared(cuda::QFeedForwardShared<Shape>::bytes);
    for (int64_t block = 0; block * Shape::warps < t.batch * Place::pieces(t.pixels); ++block) {
        for (int64_t i = 0; i < shared.size(); ++i) shared[i] = static_cast<uint8_t>(random_int(0, 255));
        run_block(Shape::threads, block, 0, order, [&] { cuda::qfeed_forward_block<Shape>(p, shared.data()); });
        CHECK(shared.canary_intact());
    }
    CHECK(y.canary_intact() && parts.canary_intact());

    std::vector<int> bytes(static_cast<size_t>(t.channels)), hidden(init.size());
    std::vector<int64_t> of_y(static_cast<size_t>(2 * t.batch));
    for (int64_t row = 0; row < rows; ++row) {
        const int16_t* own = x.data() + row * t.channels;
        const int64_t image = row / t.pixels;
        int64_t sum = 0, squares = 0;
        for (int64_t c = 0; t.pieces == 0 && c < t.channels; ++c) sum += own[c], squares += int64_t{own[c]} * own[c];
        for (int64_t i = 0; i < t.pieces; ++i) {
            const int64_t piece = image * pieces + i;
            sum += sums[2 * piece], squares += sums[2 * piece + 1];
        }
        const double count = static_cast<double>(t.pieces > 0 ? int64_t{t.pixels} * t.channels : t.channels);
        for (int64_t c = 0; c < t.channels; ++c)
            bytes[static_cast<size_t>(c)] = byte_of_stream(p.norm, own[c], static_cast<double>(sum), static_cast<double>(squares), count);
        for (int64_t h = 0; h < t.hidden; ++h) {
            int64_t total = init[static_cast<size_t>(h)];
            for (int64_t c = 0; c < t.channels; ++c) total += first[at(h, t.channels, c)] * bytes[static_cast<size_t>(c)];
            const float real = static_cast<float>(static_cast<int32_t>(total)) * scale[static_cast<size_t>(h)];
            hidden[static_cast<size_t>(h)] = curve_byte(curve.data(), real);
        }
        for (int64_t n = 0; n < t.channels; ++n) {
            int64_t total = e.channels.init[n];
            for (int64_t h = 0; h < t.hidden; ++h) total += second[at(h, t.channels, n)] * hidden[static_cast<size_t>(h)];
            const int64_t value = y[row * t.channels + n];
            CHECK(static_cast<double>(value) == finish_one(e, total, row, n));
            of_y[static_cast<size_t>(2 * image)] += value, of_y[static_cast<size_t>(2 * image + 1)] += value * value;
        }
    }
    for (int64_t i = 0; i < parts.size(); ++i) of_y[static_cast<size_t>(i / 2 / Place::pieces(t.pixels) * 2 + i % 2)] -= parts[i];
    for (const int64_t left : of_y) CHECK(!t.collects || left == 0);
}

void compare(const Case& t, const BlockOrder& order) {
    bool found = false;
    cuda::with_pair_shape(t.channels, [&]<class Shape>() {
        compare<Shape>(t, order), found = true;
        if constexpr (cuda::has_few<Shape>) compare<typename Shape::Few>(t, order);
    });
    CHECK(found);
}

}  // namespace

TEST(cuda_qfeed_forward) {
    for (const BlockOrder& order : block_orders) {
        compare({.batch = 2, .pixels = 37, .channels = 40, .hidden = 72, .pieces = 3, .collects = true}, order);
        compare({.batch = 1, .pixels = 50, .channels = 70, .hidden = 200, .zero_point = -7}, order);  // more slices than stages
    }
    const BlockOrder& order = block_orders[0];
    for (int zero_point : {0, 128, 255, -300, 1 << 20, -(1 << 20) + 1})
        compare({.batch = 1, .pixels = 5, .channels = 16, .hidden = 8, .zero_point = zero_point}, order);
    for (int pieces : {0, 1, 33})
        compare({.batch = 3, .pixels = 9, .channels = 64, .hidden = 40, .pieces = pieces, .collects = true, .extreme = true}, order);
    for (int pieces : {0, 1}) compare({.batch = 1, .pixels = 3, .channels = 24, .hidden = 8, .pieces = pieces, .flat = true}, order);
    compare({.batch = 1, .pixels = 1, .channels = 1, .hidden = 1, .collects = true}, order);
    compare({.batch = 1, .pixels = 1, .channels = 1, .hidden = 1, .pieces = 1}, order);
}

TEST(cuda_pieces_of_the_largest_image) {
    using Place = cuda::QPairPixels<cuda::QPairShape<1>>;
    const int pieces = Place::pieces(INT32_MAX);
    CHECK(pieces == 1 << 26 && Place::pieces(0) == 0 && Place::pieces(32) == 1 && Place::pieces(33) == 2);
    const Place last(static_cast<uint32_t>(pieces) - 1, INT32_MAX);
    CHECK(last(30) == INT32_MAX - 1 && last(31) == -1);
}

// Every shape, its full channels and one that rows are not aligned with.
TEST(cuda_qfeed_forward_of_every_shape) {
    for (int channels : {31, 32, 64, 80, 96, 120, 128, 144, 160, 185, 192, 224, 240, 249, 256})
        compare({.batch = 1, .pixels = 21, .channels = channels, .hidden = 70, .pieces = channels % 3, .collects = channels % 2 == 0},
                block_orders[channels % 4]);
    bool found = false;
    cuda::with_pair_shape(257, [&]<class Shape>() { found = true; });
    CHECK(!found);
}
