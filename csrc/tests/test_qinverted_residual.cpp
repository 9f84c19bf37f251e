// Against its three layers one after another, with guard pages behind each buffer.
#include "cpu/ops/qinverted_residual.h"

#include "tests/qweights.h"

using namespace mvit;
using namespace mvit::tests;

static QGemmProblem product(const PackedMatrix& weight, RandomChannels& channels, int64_t rows) {
    QGemmProblem p{};
    p.rows = rows, p.weight = weight.weight, p.a_stride = weight.weight.depth;
    p.epilogue.channels = channels.channels();
    p.epilogue.type = QType::u8, p.epilogue.plain = true, p.epilogue.y_stride = weight.weight.columns;
    return p;
}

static void compare(int64_t height, int64_t width, int64_t channels, int64_t hidden, int64_t columns, int64_t stride, int bits,
                    bool stream) {
    const int64_t out = ((height - 1) / stride + 1) * ((width - 1) / stride + 1);
    const PackedMatrix expand(hidden, channels, bits), reduce(columns, hidden, bits);
    RandomChannels first(hidden, 0.02f), middle(hidden, 0.02f), last(columns, 0.02f);
    Guarded<QDepthwiseBlock> blocks((hidden + 63) / 64);
    for (int64_t i = 0; i < blocks.size() * int64_t{sizeof(QDepthwiseBlock)}; ++i)
        reinterpret_cast<uint8_t*>(blocks.data())[i] = static_cast<uint8_t>(random_int(0, 255));
    Guarded<uint8_t> x(height * width * channels), wide(height * width * hidden), filtered(out * hidden);
    Guarded<int16_t> residual(out * columns), y(out * columns), expected(out * columns);
    for (int64_t i = 0; i < x.size(); ++i) x[i] = static_cast<uint8_t>(random_int(0, 255));
    for (int64_t i = 0; i < residual.size(); ++i) residual[i] = static_cast<int16_t>(random_int(-30000, 30000));
    std::memset(y.data(), 1, static_cast<size_t>(y.size()) * 2);
    std::memset(expected.data(), 1, static_cast<size_t>(y.size()) * 2);

    QInvertedResidualProblem p{};
    p.expand = product(expand, first, height * width);
    p.expand.a = x.data();
    p.depthwise.batch = 1, p.depthwise.height = height, p.depthwise.width = width, p.depthwise.channels = hidden;
    p.depthwise.stride = stride, p.depthwise.blocks = blocks.data();
    p.depthwise.epilogue = product(expand, middle, 0).epilogue;
    p.reduce = product(reduce, last, out);
    p.reduce.epilogue.y = y.data();
    int64_t sums[2] = {-1, -1}, right[2] = {-1, -1};
    if (stream) {
        p.reduce.epilogue.type = QType::i16;
        p.reduce.epilogue.residual = residual.data(), p.reduce.epilogue.residual_type = QType::i16;
        p.reduce.epilogue.residual_stride = columns;
        p.reduce.collected = sums, p.reduce.groups = 1;
    }

    QInvertedResidualProblem one = p;
    one.expand.epilogue.y = wide.data();
    one.depthwise.x = wide.data(), one.depthwise.row_stride = width * hidden, one.depthwise.pixel_stride = hidden;
    one.depthwise.epilogue.y = filtered.data();
    one.reduce.a = filtered.data(), one.reduce.epilogue.y = expected.data();
    if (stream) one.reduce.collected = right;
    CHECK(qgemm(one.expand, 1) == Status::ok);
    CHECK(qdepthwise_conv2d(one.depthwise, 1) == Status::ok);
    CHECK(qgemm(one.reduce, 1) == Status::ok);
    for (int threads : {1, 2, 3, 7}) {
        std::memset(y.data(), 1, static_cast<size_t>(y.size()) * 2);
        CHECK(qinverted_residual(p, threads) == Status::ok);
        CHECK(std::memcmp(y.data(), expected.data(), static_cast<size_t>(y.size()) * 2) == 0);
        CHECK(sums[0] == right[0] && sums[1] == right[1]);
    }
    CHECK(x.canary_intact() && y.canary_intact());
}

TEST(qinverted_residuals_are_their_three_layers) {
    on_every_isa([] {
        for (int64_t stride : {1, 2})
            for (int bits : {8, 6}) {
                compare(1, 1, 3, 5, 4, stride, bits, false);
                compare(5, 7, 8, 33, 17, stride, bits, true);
                compare(13, 16, 20, 64, 20, stride, bits, stride == 1);
                compare(40, 31, 16, 96, 24, stride, bits, true);
            }
    });
}

TEST(qinverted_residual_refuses_what_does_not_fit) {
    const PackedMatrix expand(8, 4, 8), reduce(4, 8, 8);
    RandomChannels channels(8, 0.02f);
    QInvertedResidualProblem p{};
    p.expand = product(expand, channels, 6);
    p.reduce = product(reduce, channels, 6);
    p.depthwise.batch = 1, p.depthwise.height = 2, p.depthwise.width = 3, p.depthwise.channels = 8, p.depthwise.stride = 1;
    p.depthwise.epilogue = p.expand.epilogue;
    QInvertedResidualProblem bad = p;
    bad.expand.rows = 5;
    CHECK(qinverted_residual(bad, 1) == Status::bad_shape);
    bad = p;
    bad.depthwise.channels = 9;
    CHECK(qinverted_residual(bad, 1) == Status::bad_shape);
    bad = p;
    bad.expand.epilogue.type = QType::f32;
    CHECK(qinverted_residual(bad, 1) == Status::bad_dtype);
}
