// Every tail of channels and maps against plain loops over the formulas, at tolerance 0, with guard pages behind each buffer.
#include "cpu/ops/qpool_mixer.h"

#include <cmath>

#include "tests/check.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

struct Numbers {
    int32_t zero_point = 117, out_zero_point = 90;
    int bits = 8;
    float keep = 0.7f, move = 0.4f;
};

void compare(int64_t batch, int64_t height, int64_t width, int64_t channels, const Numbers& numbers = {}) {
    Guarded<uint8_t> x(batch * height * width * channels), y(x.size()), alone(x.size());
    Guarded<float> keep(channels), move(channels);
    for (int64_t i = 0; i < x.size(); ++i) x[i] = static_cast<uint8_t>(i % 7 == 0 ? 255 : random_int(0, 255));
    for (int64_t c = 0; c < channels; ++c) keep[c] = numbers.keep + 0.1f * random_float(), move[c] = numbers.move * random_float();
    const QByte out = qbyte(1.0f, numbers.out_zero_point, numbers.bits);
    QPoolMixerProblem p{batch, height, width, channels, x.data(), numbers.zero_point, keep.data(), move.data(), out, y.data()};
    CHECK(qpool_mixer(p, 2) == Status::ok);
    p.y = alone.data();
    CHECK(qpool_mixer(p, 1) == Status::ok);
    CHECK(y.canary_intact() && alone.canary_intact());
    const float low = static_cast<float>(-numbers.out_zero_point);
    const float high = static_cast<float>((1 << numbers.bits) - 1 - numbers.out_zero_point);
    for (int64_t i = 0; i < x.size(); ++i) {
        const int64_t c = i % channels, column = i / channels % width, row = i / channels / width % height;
        int64_t sum = 0, count = 0;
        for (int64_t dy = -1; dy <= 1; ++dy)
            for (int64_t dx = -1; dx <= 1; ++dx)
                if (row + dy >= 0 && row + dy < height && column + dx >= 0 && column + dx < width) {
                    sum += x[i + (dy * width + dx) * channels] - int64_t{numbers.zero_point};
                    ++count;
                }
        const float mean = static_cast<float>(sum) * (1.0f / static_cast<float>(count));
        const float t = static_cast<float>(int64_t{x[i]} - numbers.zero_point) * keep[c] + mean * move[c];
        const float clamped = std::isnan(t) ? low : std::fmin(std::fmax(t, low), high);
        CHECK(y[i] == static_cast<int>(std::nearbyint(clamped)) + numbers.out_zero_point);
        CHECK(y[i] == alone[i]);
    }
}

}  // namespace

TEST(qpool_mixer_on_every_tail) {
    on_every_isa([] {
        for (int64_t channels : {1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 48, 65, 130})
            for (int64_t height : {1, 2, 3, 5})
                for (int64_t width : {1, 2, 3, 4, 7}) compare(2, height, width, channels);
        compare(2, 28, 28, 96);  // large enough for a parallel region
    });
}

TEST(qpool_mixer_at_its_ends) {
    on_every_isa([] {
        for (int32_t zero_point : {-farthest_zero_point, -300, 0, 255, 700, farthest_zero_point})
            for (int32_t out : {-farthest_zero_point, 0, 63, farthest_zero_point})
                for (int bits : {6, 8}) compare(1, 4, 5, 19, {zero_point, out, bits});
        compare(1, 4, 5, 19, {128, 128, 8, 0.5f, 0.0f});   // ties among them
        compare(1, 4, 5, 19, {128, 60, 8, 1e38f, 1e38f});  // infinities, and NaN as their difference
        compare(1, 4, 5, 19, {128, 60, 8, INFINITY, -INFINITY});
    });
}

TEST(qpool_mixer_refuses_what_it_cannot_do) {
    const auto gives = [&](Status status, auto change) {
        QPoolMixerProblem p{};
        p.batch = p.height = p.width = 1;
        CHECK(qpool_mixer(p, 1) == Status::ok);
        change(p);
        CHECK(qpool_mixer(p, 1) == status);
    };
    gives(Status::bad_shape, [](QPoolMixerProblem& p) { p.batch = -1; });
    gives(Status::bad_shape, [](QPoolMixerProblem& p) { p.height = -1; });
    gives(Status::bad_shape, [](QPoolMixerProblem& p) { p.width = -1; });
    gives(Status::bad_shape, [](QPoolMixerProblem& p) { p.channels = -1; });
    gives(Status::overflow, [](QPoolMixerProblem& p) { p.zero_point = farthest_zero_point + 1; });
    gives(Status::overflow, [](QPoolMixerProblem& p) { p.zero_point = -farthest_zero_point - 1; });
    gives(Status::overflow, [](QPoolMixerProblem& p) { p.out.zero_point = farthest_zero_point + 1; });
    gives(Status::ok, [](QPoolMixerProblem& p) { p.batch = 0, p.channels = 5; });
}
