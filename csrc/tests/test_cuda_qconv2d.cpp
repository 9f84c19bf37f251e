// The CUDA kernel of qconv2d on the processor, block by block (block.h), against a plain loop over the formula.
#include "cuda/ops/qtaps.cuh"
#include "cuda/ops/qthin.cuh"
#include "tests/block.h"
#include "tests/fragments.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

struct Case {
    int64_t batch, height, width, channels, second, columns;
    int kernel, stride, bits;
    int64_t gap = 0;  // bytes between pixels
};

template <int block_rows, int block_columns, int bits, class Source>
void run_blocks(const Source& source, int64_t rows, const cuda::QConv2dProblem& p, const BlockOrder& order) {
    using Shape = cuda::QProductShape<block_rows, block_columns, bits>;
    Guarded<uint8_t> shared(Shape::shared_bytes);
    for (int64_t x = 0; x < (rows + block_rows - 1) / block_rows; ++x)
        for (int y = 0; y < (p.weight.columns + block_columns - 1) / block_columns; ++y) {
            std::memset(shared.data(), 0xA5, static_cast<size_t>(shared.size()));
            run_block(Shape::threads, x, y, order,
                      [&] { cuda::qproduct<block_rows, block_columns, bits>(source, p.weight, p.epilogue, rows, shared.data()); });
        }
}

// The rows that qconv2d.cu takes.
template <int block_rows, int block_columns, int bits>
void run_grid(const cuda::QConv2dProblem& p, const BlockOrder& order) {
    if (cuda::pixels_are_rows(p)) {
        const cuda::QRows source = cuda::pixel_rows(p);
        if (cuda::QWholeRows::are(source))
            return run_blocks<block_rows, block_columns, bits>(cuda::QWholeRows{source}, source.rows, p, order);
        return run_blocks<block_rows, block_columns, bits>(source, source.rows, p, order);
    }
    const cuda::QTaps taps(p, cuda::map_alignment(p.x, p.second));
    if (!cuda::is_thin(p)) return run_blocks<block_rows, block_columns, bits>(taps, taps.rows(), p, order);
    run_blocks<block_rows, block_columns, bits>(cuda::QThinTaps(p), taps.rows(), p, order);
}

QEpilogue of_type(QEpilogue e, QType type) {
    e.type = type;
    return e;
}

template <int bits>
void run_shape(int shape, const cuda::QConv2dProblem& p, const BlockOrder& order) {
    if (shape == 0) return run_grid<32, 64, bits>(p, order);
    shape == 1 ? run_grid<128, 64, bits>(p, order) : run_grid<128, 32, bits>(p, order);
}

void compare(const Case& t, int orders = 1) {
    const int64_t channels = t.channels + t.second, taps = t.kernel * t.kernel, half = t.kernel / 2;
    const int64_t height = (t.height - 1) / t.stride + 1, width = (t.width - 1) / t.stride + 1, padded = qpanels(t.columns) * qpanel;
    const auto bytes_of = [&](int64_t c) { return c ? (t.batch * t.height * t.width - 1) * (c + t.gap) + c : 0; };
    const auto map_of = [&](Guarded<uint8_t>& bytes, int64_t c) {
        const int64_t pixel = c + t.gap;
        // An axis of one pixel has any stride.
        return cuda::QMap{bytes.data(), c, t.height * t.width * pixel, t.height > 1 ? t.width * pixel : 1, t.width > 1 ? pixel : 1};
    };
    Guarded<uint8_t> x(bytes_of(t.channels)), second(bytes_of(t.second));
    Guarded<int32_t> init(padded), border(16 * padded), y(t.batch * height * width * t.columns);
    Guarded<int16_t> stream(y.size());  // what it ends in otherwise: in eight columns at once
    for (Guarded<uint8_t>* each : {&x, &second})
        for (int64_t i = 0; i < each->size(); ++i) (*each)[i] = static_cast<uint8_t>(random_int(0, 3) ? random_int(0, 255) : 255);
    std::vector<int64_t> zero_point(static_cast<size_t>(channels));
    for (int64_t& z : zero_point) z = random_int(-1500, 1500);
    PackedMatrix w(t.columns, taps * channels, t.bits);
    const auto tap_sum = [&](int64_t n, int64_t k) {  // what the zero-points of one tap add
        int64_t sum = 0;
        for (int64_t c = 0; c < channels; ++c) sum += zero_point[static_cast<size_t>(c)] * w.at(n, k * channels + c);
        return sum;
    };
    for (int64_t n = 0; n < padded; ++n) {
        init[n] = random_int(-1000000, 1000000);
        for (int64_t outside = 0; outside < 16; ++outside) {
            int64_t sum = init[n];
            for (int64_t k = 0; k < 9 && t.kernel == 3 && n < t.columns; ++k) {
                const bool above = k / 3 == 0 && outside & 4, below = k / 3 == 2 && outside & 8;
                const bool before = k % 3 == 0 && outside & 1, behind = k % 3 == 2 && outside & 2;
                if (above || below || before || behind) sum += tap_sum(n, k);
            }
            border[outside * padded + n] = static_cast<int32_t>(sum);
        }
    }
    // In a tap: the channels of x, zeros up to 16, those of second, zeros. Of few channels, in three taps: those of all, zeros.
    const bool thin = t.kernel == 3 && t.second == 0 && t.channels <= 5;
    const int64_t x_bytes = round_up(t.channels, 16), tap_bytes = x_bytes + round_up(t.second, 16);
    const ProductMatrix fragments(t.columns, thin ? 48 : taps * tap_bytes, t.bits, [&](int64_t n, int64_t k) {
        if (thin) return k % 16 < 3 * t.channels ? w.at(n, k / 16 * 3 * t.channels + k % 16) : 0;
        const int64_t inside = k % tap_bytes, c = inside < x_bytes ? inside : inside - x_bytes;
        if (c >= (inside < x_bytes ? t.channels : t.second)) return 0;
        return w.at(n, k / tap_bytes * channels + (inside < x_bytes ? c : t.channels + c));
    });

    cuda::QConv2dProblem p{};
    p.batch = t.batch, p.height = t.height, p.width = t.width, p.kernel = t.kernel, p.stride = t.stride;
    p.x = map_of(x, t.channels), p.second = map_of(second, t.second);
    p.border = t.kernel == 3 ? border.data() : nullptr;
    p.weight = fragments.weight;
    RandomChannels random(t.columns, 0.01f);
    p.epilogue.channels = random.channels();
    p.epilogue.channels.init = init.data();
    p.epilogue.type = QType::i32;
    p.epilogue.y = y.data(), p.epilogue.y_stride = t.columns;

    for (int order = 0; order < orders; ++order)
        for (int shape : {0, 1, 2}) {
            std::memset(y.data(), 0x5A, static_cast<size_t>(y.size()) * sizeof(int32_t));
            if (t.bits == 6) {
                run_shape<6>(shape, p, block_orders[order]);
            } else {
                run_shape<8>(shape, p, block_orders[order]);
            }
            CHECK(y.canary_intact());
            cuda::QConv2dProblem of_stream = p;
            of_stream.epilogue = of_type(p.epilogue, QType::i16), of_stream.epilogue.y = stream.data();
            t.bits == 6 ? run_shape<6>(shape, of_stream, block_orders[order]) : run_shape<8>(shape, of_stream, block_orders[order]);
            CHECK(stream.canary_intact());
            for (int64_t i = 0; i < y.size(); ++i) {
                const int64_t n = i % t.columns, column = i / t.columns % width, row = i / t.columns / width % height;
                const int64_t image = i / t.columns / width / height;
                int64_t sum = init[n];
                for (int64_t k = 0; k < taps; ++k) {
                    const int64_t v = row * t.stride + k / t.kernel - half, u = column * t.stride + k % t.kernel - half;
                    if (v < 0 || v >= t.height || u < 0 || u >= t.width) {
                        sum += tap_sum(n, k);
                        continue;
                    }
                    for (int64_t c = 0; c < channels; ++c) {
                        const cuda::QMap& map = c < t.channels ? p.x : p.second;
                        const int64_t at = image * map.image + v * map.row + u * map.pixel + (c < t.channels ? c : c - t.channels);
                        sum += map.data[at] * int64_t{w.at(n, k * channels + c)};
                    }
                }
                CHECK(y[i] == static_cast<int32_t>(sum));
                CHECK(stream[i] == static_cast<int16_t>(finish_one(of_type(p.epilogue, QType::i16), sum, i / t.columns, n)));
            }
        }
}

}  // namespace

TEST(cuda_qconv2d_of_every_map) {
    for (int kernel : {1, 3})
        for (int stride : {1, 2})
            for (int64_t channels : {1, 3, 16, 36})
                for (int64_t second : {0, 20})
                    for (int bits : {8, 6}) {
                        compare({2, 5, 7, channels, second, 17, kernel, stride, bits});
                        compare({1, 1, 1, channels, second, 1, kernel, stride, bits, 4}),
                            compare({5, 1, 1, channels, second, 9, kernel, stride, bits});
                    }
    for (int64_t height : {1, 2, 3})
        for (int64_t width : {1, 2, 3}) compare({2, height, width, 16, 0, 16, 3, 1, 8}), compare({1, height, width, 4, 3, 16, 3, 2, 8, 1});
    compare({1, 13, 12, 32, 16, 72, 3, 1, 8, 16}, static_cast<int>(std::size(block_orders)));  // several blocks
    compare({1, 13, 12, 32, 0, 72, 3, 1, 6}, static_cast<int>(std::size(block_orders)));
}
