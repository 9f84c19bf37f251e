// Every byte and every tail against the table itself, with guard pages behind each buffer, in place too and with and without VBMI.
#include "cpu/core/byte_table.h"
#include "cpu/ops/qlookup.h"
#include "tests/check.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

void compare(int64_t count) {
    Guarded<uint8_t> table(256), x(count), y(count);
    for (int64_t i = 0; i < 256; ++i) table[i] = static_cast<uint8_t>(i * i * 31 + i / 3 * 7 + 11);
    for (int64_t i = 0; i < count; ++i) x[i] = static_cast<uint8_t>(i * 37 + count);
    CHECK(qlookup({count, table.data(), x.data(), y.data()}, 2) == Status::ok);
    CHECK(y.canary_intact());
    for (int64_t i = 0; i < count; ++i) CHECK(y[i] == table[x[i]]);
    CHECK(qlookup({count, table.data(), x.data(), x.data()}, 2) == Status::ok);
    CHECK(x.canary_intact());
    for (int64_t i = 0; i < count; ++i) CHECK(x[i] == y[i]);
}

}  // namespace

TEST(qlookup_on_every_tail) {
    const bool before = byte_table_vbmi;
    on_every_isa([&] {
        for (const bool vbmi : {before, false}) {
            byte_table_vbmi = vbmi;
            for (int64_t count = 0; count <= 260; ++count) compare(count);
            compare(4096);
            compare(200001);  // large enough for a parallel region
        }
        byte_table_vbmi = before;
    });
}

TEST(qlookup_refuses_a_negative_count) { CHECK(qlookup({-1, nullptr, nullptr, nullptr}, 1) == Status::bad_shape); }
