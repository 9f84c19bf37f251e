#include "tests/check.h"

using namespace mvit;

TEST(scalar_is_always_there) {
    CHECK(isa_built(Isa::scalar));
    CHECK(isa_supported(Isa::scalar));
}

TEST(the_active_isa_can_be_lowered_and_only_to_a_supported_one) {
    const Isa before = isa_active();
    CHECK(isa_supported(before));
    CHECK(isa_set(Isa::scalar));
    CHECK(isa_active() == Isa::scalar);
    for (int level = 0; level < isa_count; ++level)
        if (!isa_supported(static_cast<Isa>(level))) CHECK(!isa_set(static_cast<Isa>(level)));
    CHECK(isa_active() == Isa::scalar);
    CHECK(isa_set(before));
}
