// Softmax attention on bytes on every instruction set.
#include "tests/qpatch_attention_case.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

void compare(const QPatchAttentionCase& c) {
    compare(c, [](const QPatchAttentionProblem& p) { CHECK(qpatch_attention(p, 2) == Status::ok); });
}

}  // namespace

TEST(qpatch_attention_on_every_tail) {
    on_every_isa([] {
        for (int64_t depth : {1, 3, 4, 5, 8, 15, 16, 17, 20, 24, 33, 36, 48, 60, 64, 65, 130}) {
            compare({1, depth, 2, 2, 3, 2, 2});
            compare({1, depth, 1, 3, 7, 1, 2, 3});
        }
        for (int64_t pixels : {1, 2, 4, 5, 15, 16, 17, 31, 33, 63, 64, 65, 80, 130, 200}) {
            compare({1, 16, 2, 1, pixels, 1, 1});
            compare({1, 9, 1, pixels, 1, 2, 1, 1});
        }
        compare({2, 36, 4, 4, 4, 2, 2});
        compare({1, 20, 1, 30, 37, 1, 1});  // several tasks of several blocks each
    });
}

TEST(qpatch_attention_at_its_ends) {
    on_every_isa([] {
        for (float steps : {0.0f, 1e-5f, 1.0f, 1e30f}) compare({1, 12, 1, 4, 5, 1, 1, 0, steps});
        for (int32_t zero_point : {-(1 << 20), -300, 0, 255, 700, 1 << 20}) {
            QPatchAttentionCase c{1, 7, 1, 2, 3, 1, 1};
            c.q_zero_point = c.v_zero_point = zero_point;
            compare(c);
        }
    });
}

TEST(qpatch_attention_refuses) {
    QPatchAttentionProblem p{};
    p.batch = 1, p.dim = 8, p.heads = 2, p.height = 4, p.width = 6, p.patch_h = 2, p.patch_w = 3;
    p.table = exponential_table();
    p.height = 0;
    CHECK(qpatch_attention(p, 1) == Status::ok);
    p.height = 3;
    CHECK(qpatch_attention(p, 1) == Status::bad_shape);
    p.height = 4, p.heads = 3;
    CHECK(qpatch_attention(p, 1) == Status::bad_shape);
    p.heads = 2, p.height = 400, p.width = 600;
    p.v_zero_point = 1 << 15;
    CHECK(qpatch_attention(p, 1) == Status::overflow);
    p.v_zero_point = 0, p.q_zero_point = (1 << 20) + 1;
    CHECK(qpatch_attention(p, 1) == Status::overflow);
    p.q_zero_point = 0;
    const uint8_t none[256] = {};
    p.table = none;
    CHECK(qpatch_attention(p, 1) == Status::overflow);
}
