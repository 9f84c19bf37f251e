// Rows cut into tasks: all of them once, in blocks that statistics can be gathered of, and evenly.
#include "cpu/core/cut.h"

#include <algorithm>

#include "tests/check.h"

using namespace mvit;

namespace {

int64_t longest_run(const Cut& cut, int threads) {
    int64_t longest = 0;
    for (int i = 0; i < threads; ++i) {
        int64_t rows = 0;
        for (int64_t task = cut.tasks() * i / threads; task < cut.tasks() * (i + 1) / threads; ++task) rows += cut.count(task);
        longest = std::max(longest, rows);
    }
    return longest;
}

}  // namespace

TEST(rows_are_cut_into_whole_tiles) {
    for (int threads : {-1, 0, 1, 2, 3, 7, 64})
        for (int64_t groups : {0, 1, 2, 5})
            for (int64_t rows : {0, 1, 15, 16, 17, 36, 64, 65, 100, 144, 400, 576, 1024, 5000}) {
                const Cut cut = cut_rows(groups, rows, threads);
                CHECK(cut.height >= statistics_rows && cut.height <= 64 && cut.height % statistics_rows == 0);
                int64_t total = 0;
                for (int64_t task = 0; task < cut.tasks(); ++task) {
                    CHECK(cut.count(task) > 0 && cut.first(task) + cut.count(task) <= rows);
                    total += cut.count(task);
                }
                CHECK(total == groups * rows);
            }
}

TEST(rows_are_cut_evenly) {
    CHECK(cut_rows(1, 1024, 1).height == 64);
    CHECK(cut_rows(1, 1024, 2).height == 64);
    for (int threads : {1, 2, 3, 4})
        for (int64_t groups : {1, 3})
            for (int64_t rows : {64, 100, 144, 256, 400, 576, 1024, 1600})
                CHECK(longest_run(cut_rows(groups, rows, threads), threads) <= groups * rows / threads + 2 * statistics_rows);
}
