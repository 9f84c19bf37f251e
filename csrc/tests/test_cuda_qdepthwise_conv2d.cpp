// The CUDA kernel of qdepthwise_conv2d on the processor, block by block (block.h), against a plain loop in int64.
#include "cuda/ops/qdepthwise_conv2d.cuh"
#include "tests/block.h"
#include "tests/qweights.h"
#include "tests/races.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

struct Case {
    int64_t batch, height, width, channels;
    int stride;
    int64_t gap = 0;  // bytes between pixels
    bool extreme = false;
};

void compare(const Case& t) {
    const int64_t height = (t.height - 1) / t.stride + 1, width = (t.width - 1) / t.stride + 1, padded = (t.channels + 15) / 16 * 16;
    const int64_t pixel = t.channels + t.gap;
    Guarded<uint8_t> x((t.batch * t.height * t.width - 1) * pixel + t.channels), bytes(t.batch * height * width * t.channels);
    Guarded<uint32_t> taps(3 * padded);
    Guarded<int32_t> border(16 * padded), sums(bytes.size());
    Guarded<int16_t> residual(bytes.size()), stream(bytes.size());
    // The last run of a row may overlap the one before.
    races::allow(sums.data(), 4 * sums.size()), races::allow(bytes.data(), bytes.size()), races::allow(stream.data(), 2 * stream.size());
    std::vector<int64_t> z(static_cast<size_t>(t.channels)), weight(9 * z.size());
    for (int64_t i = 0; i < x.size(); ++i) x[i] = static_cast<uint8_t>(t.extreme ? 255 : random_int(0, 255));
    for (int64_t i = 0; i < residual.size(); ++i) residual[i] = static_cast<int16_t>(random_int(-300, 300));
    for (int64_t& each : z) each = t.extreme ? -1275 : random_int(-300, 300);
    for (int64_t& each : weight) each = t.extreme ? -127 : random_int(-127, 127);
    RandomChannels random(t.channels, 0.001f);
    std::memset(taps.data(), 0, static_cast<size_t>(taps.size()) * 4);
    std::memset(border.data(), 0, static_cast<size_t>(border.size()) * 4);
    const auto tap = [&](int64_t c, int64_t ky, int64_t kx) { return weight[static_cast<size_t>(9 * c + 3 * ky + kx)]; };
    for (int64_t c = 0; c < t.channels; ++c) {
        for (int64_t kx = 0; kx < 3; ++kx)
            for (int64_t ky = 0; ky < 3; ++ky)
                taps[kx * padded + c] |= static_cast<uint32_t>(static_cast<uint8_t>(tap(c, ky, kx))) << (8 * ky);
        for (int64_t outside = 0; outside < 16; ++outside) {
            int64_t sum = random.init[c];
            for (int64_t ky = 0; ky < 3; ++ky)
                for (int64_t kx = 0; kx < 3; ++kx)
                    if ((ky == 0 && outside & 4) || (ky == 2 && outside & 8) || (kx == 0 && outside & 1) || (kx == 2 && outside & 2))
                        sum += z[static_cast<size_t>(c)] * tap(c, ky, kx);
            border[outside * padded + c] = static_cast<int32_t>(sum);
        }
    }

    cuda::QDepthwiseConv2dProblem p{};
    p.batch = t.batch, p.height = t.height, p.width = t.width, p.channels = t.channels, p.stride = t.stride;
    p.x = x.data(), p.image_stride = t.height * t.width * pixel, p.row_stride = t.width * pixel, p.pixel_stride = pixel;
    p.taps = taps.data(), p.border = border.data();
    QEpilogue& e = p.epilogue;
    e.channels = random.channels();
    e.y_stride = e.residual_stride = t.channels;
    Guarded<uint8_t> shared(cuda::SharedCurve::bytes);
    const auto run = [&] {
        // Once with as many blocks as there can be, once with as few: of several lines.
        for (int64_t blocks : {int64_t{1} << 20, int64_t{1}}) {
            const cuda::QDepthwiseCut cut = cuda::QDepthwiseCut::of(p, blocks);
            CHECK(blocks > 1 ? cut.lines == 1 : cut.blocks() <= cut.all_lines * cut.splits);
            cuda::with_depthwise_run(cut, [&]<int run, cuda::FinishForm form>() {
                for (int64_t i = 0; i < cut.blocks(); ++i)
                    run_block(cut.threads, i, 0, block_orders[0], [&] {
                        t.stride == 1 ? cuda::qdepthwise<1, run, form>(p, cut, shared.data())
                                      : cuda::qdepthwise<2, run, form>(p, cut, shared.data());
                    });
            });
        }
        CHECK(shared.canary_intact());
    };

    e.type = QType::i32, e.y = sums.data();
    std::memset(sums.data(), 0x5A, static_cast<size_t>(sums.size()) * 4);
    run();
    CHECK(sums.canary_intact());
    for (int64_t i = 0; i < sums.size(); ++i) {
        const int64_t c = i % t.channels, column = i / t.channels % width, row = i / t.channels / width % height;
        const int64_t image = i / t.channels / width / height;
        int64_t sum = random.init[c];
        for (int64_t k = 0; k < 9; ++k) {
            const int64_t v = row * t.stride + k / 3 - 1, u = column * t.stride + k % 3 - 1;
            const bool inside = v >= 0 && v < t.height && u >= 0 && u < t.width;
            sum += (inside ? x[((image * t.height + v) * t.width + u) * pixel + c] : z[static_cast<size_t>(c)]) * tap(c, k / 3, k % 3);
        }
        CHECK(sums[i] == sum);
    }

    // The epilogue has its own tests; here, that it is given the right row of a residual.
    e.type = QType::u8, e.y = bytes.data(), e.plain = false;
    e.residual = residual.data(), e.residual_type = QType::i16, e.residual_scale = 0.5f, e.residual_zero_point = 7;
    run();
    CHECK(bytes.canary_intact());
    for (int64_t i = 0; i < bytes.size(); ++i) CHECK(bytes[i] == finish_one(e, sums[i], i / t.channels, i % t.channels));

    const auto check_bytes = [&] {
        std::memset(bytes.data(), 0x5A, static_cast<size_t>(bytes.size()));
        run();
        CHECK(bytes.canary_intact());
        for (int64_t i = 0; i < bytes.size(); ++i) CHECK(bytes[i] == finish_one(e, sums[i], i / t.channels, i % t.channels));
    };
    e.plain = true, e.residual = nullptr;
    check_bytes();
    for (CurveKind kind : {CurveKind::random, CurveKind::silu}) {
        Curve curve(kind);
        e.curve = curve.data();
        check_bytes();
    }

    e.type = QType::i16, e.y = stream.data(), e.curve = nullptr, e.residual = residual.data();
    run();
    CHECK(stream.canary_intact());
    for (int64_t i = 0; i < bytes.size(); ++i) CHECK(stream[i] == finish_one(e, sums[i], i / t.channels, i % t.channels));
}

}  // namespace

TEST(cuda_qdepthwise_conv2d_on_every_tail) {
    for (int stride : {1, 2}) {
        for (int64_t channels : {1, 3, 4, 16, 17, 36})
            for (int64_t height : {1, 2, 3, 4})
                for (int64_t width : {1, 2, 3, 7, 8, 9, 18}) compare({2, height, width, channels, stride, width % 3});
        compare({1, 12, 20, 68, stride, 4});
        compare({1, 3, 33, 72, stride});    // several blocks on a line
        compare({3, 5, 16, 8, stride, 0});  // several lines of a block, over images
        compare({1, 5, 7, 70, stride, 0, true});
    }
}
