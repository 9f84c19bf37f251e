// The CUDA kernel of separable_attention_image on the processor, block by block (block.h), against the definition in double precision.
#include "cuda/ops/separable_attention_image.cuh"

#include <memory>

#include "tests/attention_block_case.h"
#include "tests/block.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

// Matrices and vectors as cuda/ops/separable_attention_image.h wants them, value by value.
template <class T>
class Weights {
  public:
    Weights(AttentionBlock<T>& block, int channels)
        : channels_(channels), tiles_(int64_t{3} * channels * channels * 2), vectors_(int64_t{cuda::attention_vectors} * channels) {
        std::memset(tiles_.data(), 0, static_cast<size_t>(tiles_.size()));
        for (int64_t i = 0; i < vectors_.size(); ++i) vectors_[i] = 0.0f;
        const auto rounded = [](double v) {
            T result;
            from_float(static_cast<float>(v), &result);
            return result;
        };
        for (int64_t n = 0; n < block.d; ++n) {
            double key_bias = double{block.key_bias[n]}, value_bias = double{block.value_bias[n]}, sum = 0.0;
            for (int64_t c = 0; c < block.d; ++c) {
                const double key = double{block.key[n * block.d + c]}, value = mvit::tests::value(block.value[n * block.d + c]);
                key_bias += key * double{block.beta[c]}, value_bias += value * double{block.beta[c]};
                put(0, n, c, rounded(key * double{block.gamma[c]}));
                const T folded = rounded(value * double{block.gamma[c]});
                put(1, n, c, folded), sum += mvit::tests::value(folded);
                put(2, n, c / 16 * 16 + place(c % 16), block.out[n * block.d + c]);
            }
            put_float(cuda::attention_query, n, double{block.gamma[n]} * double{block.w_query[n]});
            put_float(cuda::attention_key_bias, n, key_bias), put_float(cuda::attention_value_bias, n, value_bias);
            put_float(cuda::attention_value_sums, n, sum), put_float(cuda::attention_out_bias, n, double{block.out_bias[n]});
        }
    }
    const uint8_t* tiles() { return tiles_.data(); }
    const float* vectors() { return vectors_.data(); }

  private:
    // Column 4 t + 2 p + i of 16 at place 8 p + 2 t + i.
    static int64_t place(int64_t c) { return c % 4 / 2 * 8 + c / 4 * 2 + c % 2; }
    void put(int64_t matrix, int64_t n, int64_t k, T value) {
        const int64_t at = n / 16 * 16 + place(n % 16), lane = at % 8 * 4 + k % 8 / 2, word = at % 16 / 8 * 2 + k % 16 / 8;
        const int64_t tile = (matrix * channels_ / 16 + n / 16) * (channels_ / 16) + k / 16;
        std::memcpy(tiles_.data() + tile * 512 + lane * 16 + word * 4 + k % 2 * 2, &value, 2);
    }
    void put_float(int64_t row, int64_t n, double value) { vectors_[row * channels_ + n] = static_cast<float>(value); }

    int64_t channels_;
    Guarded<uint8_t> tiles_;
    Guarded<float> vectors_;
};

template <class T>
void compare(const AttentionBlockCase& t, int images, int cluster, const BlockOrder& order) {
    AttentionBlock<T> block(t);
    Guarded<T> y(block.x.size());
    Guarded<double> moments(2 * t.batch);
    cuda::with_attention_image(t.channels, [&]<int depth>() {
        const cuda::AttentionImageShared<depth> at(images, cluster, t.height, t.width, t.patch_height, t.patch_width);
        Weights<T> weights(block, at.channels);
        cuda::AttentionImageProblem p{};
        p.dtype = dtype_of<T>, p.batch = t.batch, p.height = t.height, p.width = t.width, p.channels = t.channels;
        p.patch_height = t.patch_height, p.patch_width = t.patch_width, p.eps = 1e-5f;
        p.x = block.x.data(), p.y = y.data(), p.tiles = weights.tiles(), p.vectors = weights.vectors();
        p.moments = t.moments ? moments.data() : nullptr;
        std::memset(y.data(), 0xFF, static_cast<size_t>(y.size()) * sizeof(T));
        Guarded<uint8_t> exchange(cluster > 1 ? t.batch * cluster * at.exchange : 0);
        if (cluster > 1) std::memset(exchange.data(), 0xFF, static_cast<size_t>(exchange.size()));
        p.exchange = exchange.data();
        std::vector<std::unique_ptr<Guarded<uint8_t>>> shared;
        for (int i = 0; i < cluster; ++i) shared.push_back(std::make_unique<Guarded<uint8_t>>(at.bytes));
        for (int64_t i = 0; i < (t.batch + images - 1) / images; ++i) {
            for (auto& each : shared) std::memset(each->data(), 0xFF, static_cast<size_t>(at.bytes));  // NaN
            run_cluster(cluster, cuda::image_threads, i * cluster, order,
                        [&] { cuda::AttentionImage<T, depth>(p, at, shared[static_cast<size_t>(cuda::block_x() % cluster)]->data())(); });
            for (auto& each : shared) CHECK(each->canary_intact());
        }
        CHECK(exchange.canary_intact());
    });
    CHECK(y.canary_intact() && moments.canary_intact());
    block.check(y);
    if (!t.moments) return;
    const int64_t values = block.pixels * block.d;
    for (int64_t b = 0; b < t.batch; ++b) {
        double mean = 0.0, variance = 0.0;
        const auto at = [&](int64_t i) { return mvit::tests::value(y[b * values + i]); };
        for (int64_t i = 0; i < values; ++i) mean += at(i) / static_cast<double>(values);
        for (int64_t i = 0; i < values; ++i) variance += (at(i) - mean) * (at(i) - mean) / static_cast<double>(values);
        CHECK(std::fabs(moments[2 * b] - mean) <= 1e-5 * (std::fabs(mean) + std::sqrt(variance)));
        CHECK(std::fabs(moments[2 * b + 1] - variance) <= 1e-5 * variance);
    }
}

}  // namespace

TEST(cuda_separable_attention_image) {
    for (const BlockOrder& order : block_orders) {
        compare<f16>({5, 4, 6, 16, 2, 2, 0.0f, true}, 2, 1, order);    // blocks of two images, and of one
        compare<bf16>({1, 10, 8, 72, 2, 2, 3.0f, true}, 1, 1, order);  // a tail of pixels, and of channels
    }
    const BlockOrder& order = block_orders[0];
    compare<f16>({1, 18, 16, 64, 2, 2, 0.0f, true}, 1, 1, order);  // more pixels than warps have at once
    compare<f16>({3, 3, 5, 8, 3, 1}, 3, 1, order);
    compare<f16>({1, 1, 1, 8, 1, 1, 0.0f, true}, 1, 1, order);
    compare<f16>({1, 4, 8, 136, 2, 2, 30.0f}, 1, 1, order);
    compare<bf16>({2, 4, 4, 192, 4, 4, 3.0f, true}, 1, 1, order);  // as many phases as there are places
    compare<f16>({4, 8, 8, 256, 2, 2, -5.0f, true}, 4, 1, order);
}

TEST(cuda_separable_attention_image_of_clusters) {
    for (const BlockOrder& order : block_orders) {
        compare<f16>({2, 8, 6, 16, 2, 2, 0.0f, true}, 1, 2, order);
        compare<bf16>({1, 10, 8, 72, 2, 2, 3.0f, true}, 1, 4, order);  // of which one has less, and one nothing
    }
    compare<f16>({1, 40, 16, 64, 2, 2, 30.0f, true}, 1, 2, block_orders[0]);  // more pixels than warps have at once
    compare<f16>({1, 16, 4, 136, 2, 2}, 1, 8, block_orders[0]);
}

TEST(cuda_separable_attention_image_shares_images) {
    CHECK(cuda::images_of_block(256, 64, 4, 132) == 2 && cuda::images_of_block(132, 64, 4, 132) == 1);
    CHECK(cuda::images_of_block(4096, 64, 4, 132) == 4 && cuda::images_of_block(4096, 16, 4, 132) == 4);  // 16 contexts
    CHECK(cuda::images_of_block(4096, 256, 4, 132) == 1 && cuda::images_of_block(4096, 1024, 4, 132) == 1);
    CHECK(cuda::images_of_block(1, 8, 64, 132) == 1);
    const auto blocks = []<int depth>(int height, int width, int most_cluster) {
        return cuda::blocks_of_image<depth>(height, width, 2, 2, 227 * 1024, most_cluster);
    };
    CHECK(blocks.operator()<12>(16, 16, 1) == 1 && blocks.operator()<16>(8, 8, 8) == 1);
    CHECK(blocks.operator()<8>(32, 32, 1) == 0 && blocks.operator()<8>(32, 32, 8) == 2 && blocks.operator()<16>(32, 32, 8) == 4);
    CHECK(blocks.operator()<8>(1 << 15, 1 << 15, 8) == 0);
    CHECK(cuda::blocks_of_image<4>(8, 8, 8, 4, 227 * 1024, 8) == 0);  // phases
}
