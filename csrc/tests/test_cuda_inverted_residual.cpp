// The CUDA kernel of inverted_residual on the processor, block by block (block.h), against the definition in double precision.
#include "cuda/ops/inverted_residual.cuh"

#include <algorithm>

#include "tests/block.h"
#include "tests/floats.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

struct Case {
    int64_t batch;
    int height, width, channels, hidden, columns, stride;
    bool residual = false;
};

// Weights as cuda/ops/inverted_residual.h wants them, value by value.
template <class T>
class Slices {
  public:
    Slices(const Case& t, Guarded<T>& expand, Guarded<float>& expand_bias, Guarded<T>& taps, Guarded<float>& taps_bias, Guarded<T>& reduce)
        : depth_(round_up(t.channels, 16) / 16),
          slice_(tiles + 1024 * depth_ + 1024 * (round_up(t.columns, 16) / 16)),
          data_(round_up(t.hidden, 32) / 32 * slice_) {
        std::memset(data_.data(), 0, static_cast<size_t>(data_.size()));
        for (int64_t e = 0; e < t.hidden; ++e) {
            uint8_t* slice = data_.data() + e / 32 * slice_;
            for (int64_t c = 0; c < t.channels; ++c) {
                T half;
                from_float(0.5f * to_float(expand[e * t.channels + c]), &half);
                put(slice + tiles, depth_, e % 32, c, half);
            }
            for (int64_t n = 0; n < t.columns; ++n) {
                const int64_t place =
                    n % 4 / 2 * 8 + n % 16 / 4 * 2 + n % 2;  // of four neighbours, two are columns of each product of eight
                put(slice + tiles + 1024 * depth_, 2, n / 16 * 16 + place, e % 32, reduce[n * t.hidden + e]);
            }
            const auto put_float = [&](int64_t at, float value) { std::memcpy(slice + at + e % 32 * 4, &value, 4); };
            put_float(0, 0.5f * taps_bias[e]), put_float(tiles - 128, 0.5f * expand_bias[e]);
            const int64_t order[9] = {0, 1, 3, 4, 6, 7, 2, 5, 8};
            for (int64_t i = 0; i < 9; ++i) {
                T half;
                from_float(0.5f * to_float(taps[order[i] * t.hidden + e]), &half);
                std::memcpy(slice + 128 + (i < 8 ? e % 32 * 16 + 2 * i : 512 + e % 32 * 4), &half, 2);
            }
        }
    }
    const uint8_t* data() { return data_.data(); }

  private:
    // Row n, value k of a weight whose columns have `depth` tiles each.
    static void put(uint8_t* tiles, int64_t depth, int64_t n, int64_t k, T value) {
        const int64_t lane = n % 8 * 4 + k % 8 / 2, word = n % 16 / 8 * 2 + k % 16 / 8;
        std::memcpy(tiles + (n / 16 * depth + k / 16) * 512 + lane * 16 + word * 4 + k % 2 * 2, &value, 2);
    }

    static constexpr int64_t tiles = 256 + 32 * 20;  // behind both biases and the taps between them

    int64_t depth_, slice_;
    Guarded<uint8_t> data_;
};

template <class T, class Tile>
void compare(const Case& t, int lag, const BlockOrder& order) {
    const int64_t out_height = (t.height - 1) / t.stride + 1, out_width = (t.width - 1) / t.stride + 1;
    const int64_t pixels = int64_t{t.height} * t.width, out_pixels = out_height * out_width;
    Guarded<T> x(t.batch * pixels * t.channels), y(t.batch * out_pixels * t.columns);
    Guarded<T> expand(int64_t{t.hidden} * t.channels), reduce(int64_t{t.columns} * t.hidden);
    Guarded<T> taps(int64_t{9} * t.hidden);
    Guarded<float> expand_bias(t.hidden), taps_bias(t.hidden), bias(round_up(t.columns, 16));
    fill(x), fill(expand, 0.0f, 1.0f / std::sqrt(static_cast<float>(t.channels)));
    fill(reduce, 0.0f, 1.0f / std::sqrt(static_cast<float>(t.hidden)));
    fill(expand_bias), fill(taps, 0.0f, 0.4f), fill(taps_bias), fill(bias);
    Slices<T> slices(t, expand, expand_bias, taps, taps_bias, reduce);

    cuda::InvertedResidualProblem p{};
    p.dtype = dtype_of<T>, p.batch = t.batch, p.height = t.height, p.width = t.width;
    p.channels = t.channels, p.hidden = t.hidden, p.columns = t.columns, p.stride = t.stride, p.residual = t.residual;
    p.x = x.data(), p.y = y.data(), p.slices = slices.data(), p.bias = bias.data();
    std::memset(y.data(), 0xFF, static_cast<size_t>(y.size()) * sizeof(T));
    const cuda::ResidualShared<Tile> at(t.channels, t.hidden, t.columns, lag);
    Guarded<uint8_t> shared(at.bytes);
    const cuda::ResidualTiles<Tile> tiles(t.height, t.width);
    for (int64_t block = 0; block < t.batch * tiles.count(); ++block) {
        std::memset(shared.data(), 0xFF, static_cast<size_t>(shared.size()));  // NaN
        cuda::with_known_depth<Tile>(at.depth, [&]<int depth>() {
            run_block(cuda::residual_threads, block, 0, order,
                      [&] { cuda::inverted_residual_tile<T, Tile, depth>(p, tiles, at, shared.data()); });
        });
        CHECK(shared.canary_intact());
    }
    CHECK(y.canary_intact());

    const auto silu = [](double v) { return activate_exactly(Activation::silu, v); };
    double largest = 0.0, error = 0.0;
    std::vector<double> wide(static_cast<size_t>(pixels * t.hidden)), filtered(static_cast<size_t>(t.hidden));
    for (int64_t b = 0; b < t.batch; ++b) {
        const auto at = [&](int64_t pixel, int64_t k) { return value(x[(b * pixels + pixel) * t.channels + k]); };
        for (int64_t pixel = 0; pixel < pixels; ++pixel)
            for (int64_t e = 0; e < t.hidden; ++e) {
                double sum = double{expand_bias[e]};
                for (int64_t k = 0; k < t.channels; ++k) sum += value(expand[e * t.channels + k]) * at(pixel, k);
                wide[static_cast<size_t>(pixel * t.hidden + e)] = silu(sum);
            }
        for (int64_t place = 0; place < out_pixels; ++place) {
            for (int64_t e = 0; e < t.hidden; ++e) {
                double sum = double{taps_bias[e]};
                for (int64_t tap = 0; tap < 9; ++tap) {
                    const int64_t row = place / out_width * t.stride + tap / 3 - 1, column = place % out_width * t.stride + tap % 3 - 1;
                    if (row >= 0 && row < t.height && column >= 0 && column < t.width)
                        sum += value(taps[tap * t.hidden + e]) * wide[static_cast<size_t>((row * t.width + column) * t.hidden + e)];
                }
                filtered[static_cast<size_t>(e)] = silu(sum);
            }
            for (int64_t n = 0; n < t.columns; ++n) {
                double sum = double{bias[n]} + (t.residual ? at(place, n) : 0.0);
                for (int64_t e = 0; e < t.hidden; ++e) sum += value(reduce[n * t.hidden + e]) * filtered[static_cast<size_t>(e)];
                const double mine = value(y[(b * out_pixels + place) * t.columns + n]);
                CHECK(mine == mine);
                largest = std::max(largest, std::fabs(sum)), error = std::max(error, std::fabs(mine - sum));
            }
        }
    }
    // Both hidden maps and the result are rounded once each.
    CHECK(error <= 3 * rounding<T> * largest);
}

template <class T>
void compare(const Case& t, int lag, const BlockOrder& order) {
    cuda::with_residual_tile(t.columns, t.stride, [&]<class Tile>() { compare<T, Tile>(t, lag, order); });
}

}  // namespace

TEST(cuda_inverted_residual) {
    for (int lag : {0, 1}) {
        for (const BlockOrder& order : block_orders) {
            compare<f16>({1, 9, 17, 24, 40, 24, 1, true}, lag, order);  // tails of tiles, channels and slices
            compare<bf16>({1, 18, 7, 16, 72, 40, 2}, lag, order);
        }
        const BlockOrder& order = block_orders[0];
        compare<f16>({2, 1, 1, 8, 8, 8, 1, true}, lag, order);
        compare<f16>({2, 1, 1, 8, 8, 8, 2}, lag, order);
        compare<bf16>({1, 8, 16, 40, 32, 136, 2}, lag, order);
        for (int channels : {56, 64, 120, 128}) {  // depths that kernels know
            compare<f16>({1, 5, 7, channels, 40, 72, 1}, lag, order);
            compare<bf16>({1, 5, 7, channels, 40, 72, 2}, lag, order);
        }
        compare<f16>({1, 8, 16, 72, 32, 72, 1, true}, lag, order);  // more columns than the narrow tiles have
        compare<f16>({1, 4, 5, 16, 32, 128, 1}, lag, order);
        compare<f16>({1, 4, 5, 16, 32, 256, 2}, lag, order);
    }
}

// So many slices that each place of shared memory is taken again, and whatever the order of warps is.
TEST(cuda_inverted_residual_slice_by_slice) {
    for (int lag : {0, 1}) {
        for (auto turns : {BlockOrder::forward, BlockOrder::backward, BlockOrder::shuffled}) {
            for (bool late_copies : {false, true}) {
                compare<f16>({1, 8, 12, 8, 168, 16, 1}, lag, {turns, late_copies});
                compare<bf16>({1, 9, 9, 8, 136, 8, 2}, lag, {turns, late_copies});
            }
        }
    }
}

TEST(cuda_inverted_residual_has_tiles_for_so_many_columns) {
    const auto most = [](int columns, int stride) {
        int found = 0;
        cuda::with_residual_tile(columns, stride, [&]<class Tile>() { found = Tile::most_columns; });
        return found;
    };
    CHECK(most(64, 1) == 64 && most(72, 1) == 128 && most(128, 1) == 128 && most(136, 1) == 0);
    CHECK(most(128, 2) == 128 && most(136, 2) == 256 && most(256, 2) == 256 && most(264, 2) == 0);
}
