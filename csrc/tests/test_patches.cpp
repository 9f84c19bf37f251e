// Every tail against the definition, with guard pages behind each tensor; fold undoes unfold.
#include "cpu/ops/patches.h"
#include "tests/check.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

template <class T>
void compare(int64_t batch, int64_t channels, int64_t height, int64_t width, int64_t patch_h, int64_t patch_w, bool channels_last) {
    const int64_t pixels = height * width, count = batch * channels * pixels;
    Guarded<T> map(count), phases(count), back(count);
    for (int64_t i = 0; i < count; ++i) map[i] = static_cast<T>(i * 7 + 1);
    PatchesProblem p{int{sizeof(T)}, batch, channels, height, width, patch_h, patch_w, channels_last, map.data(), phases.data()};
    CHECK(unfold_patches(p, 2) == Status::ok);
    CHECK(phases.canary_intact());
    const auto at = [&](int64_t b, int64_t c, int64_t pixel) {
        return channels_last ? (b * pixels + pixel) * channels + c : (b * channels + c) * pixels + pixel;
    };
    for (int64_t b = 0; b < batch; ++b)
        for (int64_t c = 0; c < channels; ++c)
            for (int64_t y = 0; y < height; ++y)
                for (int64_t x = 0; x < width; ++x) {
                    const int64_t phase = y % patch_h * patch_w + x % patch_w;
                    const int64_t position = y / patch_h * (width / patch_w) + x / patch_w;
                    CHECK(phases[at(b, c, phase * (pixels / patch_h / patch_w) + position)] == map[at(b, c, y * width + x)]);
                }
    p.from = phases.data();
    p.to = back.data();
    CHECK(fold_patches(p, 2) == Status::ok);
    CHECK(back.canary_intact());
    CHECK(std::memcmp(back.data(), map.data(), static_cast<size_t>(count) * sizeof(T)) == 0);
}

template <class T>
void compare_shapes() {
    for (bool channels_last : {false, true}) {
        for (int64_t columns : {1, 2, 7, 8, 9, 15, 16, 17, 33, 64, 65}) compare<T>(2, 3, 4, 2 * columns, 2, 2, channels_last);
        for (int64_t columns : {4, 8, 16}) compare<T>(2, 3, 6, 2 * columns, 2, 2, channels_last);  // an odd number of rows of patches
        compare<T>(1, 2, 6, 20, 3, 4, channels_last);
        compare<T>(1, 5, 3, 3, 1, 3, channels_last);
        compare<T>(1, 5, 3, 3, 1, 1, channels_last);
        compare<T>(2, 40, 32, 32, 2, 2, channels_last);  // large enough for a parallel region
    }
}

}  // namespace

TEST(patches_on_every_tail) {
    on_every_isa([] {
        compare_shapes<uint8_t>();
        compare_shapes<uint16_t>();
        compare_shapes<uint32_t>();
        compare_shapes<uint64_t>();
    });
}

TEST(patches_refuse_what_they_cannot_walk) {
    CHECK(unfold_patches({3, 1, 1, 2, 2, 2, 2, false, nullptr, nullptr}, 1) == Status::bad_dtype);
    CHECK(unfold_patches({4, 1, 1, 3, 2, 2, 2, false, nullptr, nullptr}, 1) == Status::bad_shape);
    CHECK(fold_patches({4, 1, 1, 2, 2, 0, 2, false, nullptr, nullptr}, 1) == Status::bad_shape);
    CHECK(fold_patches({4, 0, 1, 2, 2, 2, 2, false, nullptr, nullptr}, 1) == Status::ok);
}
