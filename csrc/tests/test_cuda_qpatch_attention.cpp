// The CUDA kernel of qpatch_attention on the processor, block by block (block.h).
#include "cuda/ops/qpatch_attention.cuh"
#include "tests/block.h"
#include "tests/qpatch_attention_case.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

void compare(const QPatchAttentionCase& c, const BlockOrder& order = block_orders[0]) {
    compare(c, [&](const QPatchAttentionProblem& of_cpu) {
        cuda::QPatchAttentionProblem p{};
        p.batch = of_cpu.batch, p.dim = of_cpu.dim, p.heads = of_cpu.heads;
        p.height = of_cpu.height, p.width = of_cpu.width, p.patch_h = of_cpu.patch_h, p.patch_w = of_cpu.patch_w;
        p.qkv = of_cpu.qkv, p.y = of_cpu.y, p.table = of_cpu.table, p.byte = of_cpu.byte;
        p.image_stride = of_cpu.qkv_stride[0], p.row_stride = of_cpu.qkv_stride[1], p.pixel_stride = of_cpu.qkv_stride[2];
        p.q_zero_point = of_cpu.q_zero_point, p.v_zero_point = of_cpu.v_zero_point;
        p.score_steps = of_cpu.score_steps, p.ratio = of_cpu.ratio;
        const cuda::QPatchAttentionCut cut(p);
        CHECK(cut.threads() <= cuda::phase_warps * cuda::warp_size);
        Guarded<uint8_t> shared(cut.bytes);
        for (int64_t i = 0; i < cut.blocks(p); ++i) {
            for (int64_t at = 0; at < shared.size(); ++at) shared[at] = static_cast<uint8_t>(random_int(0, 255));
            run_block(static_cast<int>(cut.threads()), i, 0, order, [&] {
                cuda::with_value_pairs(cut.pairs, [&]<int pairs>() { cuda::qpatch_attention_block<pairs>(p, cut, shared.data()); });
            });
            CHECK(shared.canary_intact());
        }
    });
}

QPatchAttentionCase dense(QPatchAttentionCase c) {
    c.dense = true;
    return c;
}

}  // namespace

TEST(cuda_qpatch_attention_in_every_order) {
    for (const BlockOrder& order : block_orders) {
        compare(dense({2, 36, 4, 4, 4, 2, 2}), order);
        compare(dense({1, 20, 3, 3, 13, 1, 2, 4}), order);  // two blocks of heads, of which the last is not full
        compare(dense({1, 7, 1, 6, 11, 2, 1, 1}), order);
    }
}

TEST(cuda_qpatch_attention_on_every_tail) {
    for (int64_t depth : {1, 3, 4, 8, 15, 16, 17, 20, 24, 30, 31, 32, 33, 36, 47, 48, 60, 63, 64}) {
        compare(dense({1, depth, 2, 2, 3, 2, 1}));
        compare(dense({1, depth, 1, 5, 7, 1, 1, depth % 4}));
    }
    for (int64_t pixels : {1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 130}) {
        compare(dense({1, 16, 2, 1, pixels, 1, 2}));
        compare(dense({1, 9, 5, pixels, 1, 2, 1, 1}));
    }
    compare(dense({2, 16, 8, 2, 2, 2, 2, 16}));
    compare(dense({1, 36, 1, 16, 16, 1, 1}));
    compare(dense({1, 12, 2, 19, 16, 1, 1, 4}));  // several blocks of queries of a head
}

TEST(cuda_qpatch_attention_at_its_ends) {
    for (float steps : {0x1p-64f, 1e-5f, 1.0f, 0x1.fffffep63f}) compare(dense({1, 12, 1, 4, 5, 1, 1, 0, steps}));
    for (int32_t zero_point : {0, 1, 254, 255})
        for (int most : {0, 1, 255}) {
            QPatchAttentionCase c = dense({1, 64, 1, 5, 8, 1, 1});
            c.q_zero_point = zero_point, c.most = most, c.score_steps = 1e-4f;
            compare(c);
        }
    for (int32_t zero_point : {-(1 << 20), -300, 0, 255, 1 << 20}) {
        QPatchAttentionCase c = dense({1, 7, 1, 2, 3, 1, 1});
        c.v_zero_point = zero_point;
        compare(c);
    }
}

// Scores as far apart as there are, and steps of the table that lie between two of them.
TEST(cuda_qpatch_attention_rounds_as_the_table_says) {
    for (int tenth = 1; tenth < 40; ++tenth) {
        QPatchAttentionCase c = dense({1, 3, 2, 3, 11, 1, 1});
        c.score_steps = 0.0025f * static_cast<float>(tenth), c.most = 15, c.q_zero_point = 8;
        compare(c);
    }
    for (float steps : {0.5f, 1.5f, 255.0f / 256.0f}) {  // ties, and the end of the table
        QPatchAttentionCase c = dense({1, 1, 1, 4, 20, 1, 1});
        c.score_steps = steps, c.most = 20, c.q_zero_point = 10;
        compare(c);
    }
}
