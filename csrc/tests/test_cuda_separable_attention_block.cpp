// The three CUDA kernels of separable_attention_block on the processor, block by block (block.h), against the definition in double
// precision.
#include "cuda/ops/separable_attention_block.cuh"

#include "tests/attention_block_case.h"
#include "tests/block.h"
#include "tests/fragments.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

// (N, K) 16-bit floats as tiles; their bytes are what lies in the order of tensor cores.
template <class T>
FragmentMatrix tiles_of(Guarded<T>& w, int64_t d) {
    return FragmentMatrix(d, 2 * d, 8, [&](int64_t n, int64_t k) { return static_cast<int8_t>(w[n * d + k / 2].bits >> (8 * (k % 2))); });
}

template <class T>
void compare(const AttentionBlockCase& t, const BlockOrder& order) {
    AttentionBlock<T> block(t);
    const int64_t d = block.d, pixels = block.pixels;
    Guarded<T> y(block.x.size());
    Guarded<float> query(d);
    for (int64_t c = 0; c < d; ++c) query[c] = block.gamma[c] * block.w_query[c];
    const FragmentMatrix value_tiles = tiles_of(block.value, d), out_tiles = tiles_of(block.out, d);

    cuda::AttentionProblem p{};
    p.dtype = dtype_of<T>, p.batch = t.batch, p.height = t.height, p.width = t.width, p.channels = t.channels;
    p.patch_height = t.patch_height, p.patch_width = t.patch_width, p.eps = 1e-5f;
    p.x = block.x.data(), p.y = y.data();
    p.query = query.data(), p.gamma = block.gamma.data(), p.beta = block.beta.data(), p.key = block.key.data(),
    p.key_bias = block.key_bias.data();
    p.value_tiles = value_tiles.weight.tiles, p.out_tiles = out_tiles.weight.tiles;
    p.value_bias = block.value_bias.data(), p.out_bias = block.out_bias.data();
    p.moments = t.moments ? block.moments.data() : nullptr;
    const cuda::AttentionMap map(p);
    Guarded<float> scores(t.batch * pixels), context(t.batch * map.phases * d), normal(2 * t.batch);
    Guarded<double> partial(2 * t.batch * map.tiles);
    p.scores = scores.data(), p.partial = partial.data(), p.context = context.data(), p.normal = normal.data();

    const auto run = [&](int64_t blocks, int threads, int64_t bytes, const auto& kernel) {
        Guarded<uint8_t> shared(bytes);
        for (int64_t i = 0; i < blocks; ++i) {
            std::memset(shared.data(), 0xFF, static_cast<size_t>(bytes));  // NaN, as float of any size
            run_block(threads, i, 0, order, [&] { kernel(shared.data()); });
            CHECK(shared.canary_intact());
        }
    };
    std::memset(y.data(), 0xFF, static_cast<size_t>(y.size()) * sizeof(T));
    run(t.batch * map.tiles, cuda::score_threads, cuda::score_warps * int64_t{sizeof(double)},
        [&](uint8_t* shared) { cuda::attention_scores<T>(p, reinterpret_cast<double*>(shared)); });
    run(t.batch * map.phases, cuda::context_threads, sizeof(cuda::ContextShared),
        [&](uint8_t* shared) { cuda::attention_context<T>(p, *reinterpret_cast<cuda::ContextShared*>(shared)); });
    run((t.batch * pixels + cuda::attention_tile - 1) / cuda::attention_tile, cuda::value_threads, cuda::value_shared_bytes(t.channels),
        [&](uint8_t* shared) { cuda::attention_values<T>(p, shared); });
    CHECK(y.canary_intact() && scores.canary_intact() && context.canary_intact() && partial.canary_intact() && normal.canary_intact());

    block.check(y);
}

}  // namespace

TEST(cuda_separable_attention_block) {
    for (const BlockOrder& order : block_orders) {
        compare<f16>({2, 4, 6, 16, 2, 2}, order);
        compare<bf16>({1, 10, 8, 72, 2, 2}, order);  // several tiles, and parts of columns with a tail
    }
    const BlockOrder& order = block_orders[0];
    compare<f16>({3, 3, 5, 8, 3, 1}, order);  // rows of one tile are of several images
    compare<f16>({1, 1, 1, 8, 1, 1}, order);
    compare<f16>({1, 2, 300, 24, 2, 1}, order);  // more points than threads
    compare<f16>({1, 4, 4, 136, 2, 2, 30.0f}, order);
    compare<bf16>({2, 4, 4, 64, 2, 2, 3.0f, true}, order);
    compare<f16>({1, 2, 2, cuda::attention_most_channels, 2, 2}, order);
}
