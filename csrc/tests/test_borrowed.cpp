#include "cpu/core/borrowed.h"

#include <cstring>

#include "tests/check.h"

using namespace mvit;

TEST(borrowed_memory_is_kept_and_apart) {
    for (int round = 0; round < 3; ++round) {
        const Borrowed<double> first(10);
        const Borrowed<char> none(0);
        const Borrowed<char> second(1000 + 1000 * round);
        CHECK(reinterpret_cast<uintptr_t>(first.data()) % 64 == 0 && reinterpret_cast<uintptr_t>(second.data()) % 64 == 0);
        CHECK(none.data() == nullptr);
        for (int i = 0; i < 10; ++i) first[i] = i;
        std::memset(second.data(), 7, static_cast<size_t>(1000 + 1000 * round));
        for (int deeper = 0; deeper < 2; ++deeper) {
            const Borrowed<int64_t> third(500 << round);
            std::memset(third.data(), 9, static_cast<size_t>(500 << round) * 8);
        }
        for (int i = 0; i < 10; ++i) CHECK(first[i] == i);
        CHECK(second[0] == 7 && second[999 + 1000 * round] == 7);
    }
    const char* before;
    {
        const Borrowed<char> again(64);
        before = again.data();
    }
    const Borrowed<char> again(64);
    CHECK(again.data() == before);
}
