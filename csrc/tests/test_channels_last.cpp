// Every tail of channels and pixels and every element size against plain loops, with guard pages behind each buffer.
#include "cpu/ops/channels_last.h"
#include "tests/check.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

template <class T>
void compare(int64_t batch, int64_t channels, int64_t pixels) {
    Guarded<T> from(batch * channels * pixels), to(from.size());
    for (int64_t i = 0; i < from.size(); ++i) from[i] = static_cast<T>(0x9E3779B1u * static_cast<uint32_t>(i + 1) >> 7);
    CHECK(channels_last({sizeof(T), batch, channels, pixels, from.data(), to.data()}, 2) == Status::ok);
    CHECK(to.canary_intact());
    for (int64_t b = 0; b < batch; ++b)
        for (int64_t c = 0; c < channels; ++c)
            for (int64_t i = 0; i < pixels; ++i) CHECK(to[(b * pixels + i) * channels + c] == from[(b * channels + c) * pixels + i]);
}

template <class T>
void compare_all() {
    for (int64_t channels : {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 65})
        for (int64_t pixels : {1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 48, 63, 64, 65, 130}) compare<T>(2, channels, pixels);
    compare<T>(1, 3, 40001);  // several tasks
    compare<T>(1, 640, 49);
    compare<T>(2, 96, 1100);
    compare<T>(1, 1, 70000);
}

}  // namespace

TEST(channels_last_on_every_tail) {
    on_every_isa([] {
        compare_all<uint8_t>();
        compare_all<uint16_t>();
        compare_all<uint32_t>();
    });
}

TEST(channels_last_keeps_every_bit) {
    on_every_isa([] {
        Guarded<uint32_t> from(32 * 32), to(32 * 32);
        for (int64_t i = 0; i < from.size(); ++i) from[i] = 0x7F800001u + static_cast<uint32_t>(i);  // signalling NaN, as floats
        CHECK(channels_last({4, 1, 32, 32, from.data(), to.data()}, 1) == Status::ok);
        for (int64_t i = 0; i < from.size(); ++i) CHECK(to[i % 32 * 32 + i / 32] == from[i]);
    });
}

TEST(channels_last_refuses_what_it_cannot_do) {
    CHECK(channels_last({3, 1, 1, 1, nullptr, nullptr}, 1) == Status::bad_dtype);
    CHECK(channels_last({8, 1, 1, 1, nullptr, nullptr}, 1) == Status::bad_dtype);
    CHECK(channels_last({4, 1, -1, 1, nullptr, nullptr}, 1) == Status::bad_shape);
    CHECK(channels_last({4, 0, 1, 1, nullptr, nullptr}, 1) == Status::ok);
    CHECK(channels_last({4, 1, 0, 1, nullptr, nullptr}, 1) == Status::ok);
}
