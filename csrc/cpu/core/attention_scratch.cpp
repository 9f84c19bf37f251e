#include "cpu/core/attention_scratch.h"

namespace mvit {
namespace {

constexpr int64_t tasks_wanted = 16;  // few sequences: the queries are cut too

AttentionBf16Scratch bf16_scratch(int64_t depth, int64_t value_depth, int64_t keys, int64_t queries) {
    constexpr int64_t band = 16, line = 16, halves = 2;  // rows; floats of 64 bytes; bfloat16 in a float
    const int64_t rows = round_up(queries, band), channels = round_up(depth, line * halves);
    AttentionBf16Scratch s{};
    Places place;
    s.value_columns = round_up(value_depth, line);
    s.block = round_up(at_most(keys, attention_bf16_keys), line * halves);
    s.score_stride = s.block + line;
    s.e_stride = s.block + line * halves;
    s.query = place(band * channels / halves);
    s.keys = place(s.block * channels / halves);
    s.values = place(s.block * s.value_columns / halves);
    s.scores = place(2 * band * s.score_stride);
    s.e = place(band * s.e_stride / halves);
    s.results = place(rows * s.value_columns);
    s.tops = place(rows);
    s.sums = place(rows);
    s.factors = place(band);
    s.size = place.size;
    return s;
}

}  // namespace

int64_t queries_a_task(int64_t sequences, int64_t queries) {
    const int64_t count = panels(queries), fewest = (tasks_wanted + sequences - 1) / sequences;
    const int64_t most = attention_queries / panel, pieces = (count + most - 1) / most;
    const int64_t wanted = pieces > fewest ? pieces : fewest < count ? fewest : count;
    return (count + wanted - 1) / wanted * panel;
}

AttentionScratch attention_scratch(int64_t depth, int64_t value_depth, int64_t keys, int64_t queries) {
    const int64_t block = at_most(keys, attention_keys), all = panels(queries) * panel;
    AttentionScratch s{};
    Places place;
    s.channels = round_up(depth, 16);
    s.value_channels = round_up(value_depth, 16);
    s.key_stride = key_row_stride(s.channels);
    s.value_stride = scratch_stride(block);
    s.queries = place(all * s.channels);
    s.results = place(all * s.value_channels);
    s.part = place(panel * s.value_channels);
    s.scores = place(block * panel);
    s.keys = place(block * s.key_stride);
    s.values = place(s.value_channels * s.value_stride);
    s.tops = place(all);
    s.sums = place(all);
    s.factor = place(panel);
    s.zeros = place(panel);
    s.bf16 = bf16_scratch(depth, value_depth, keys, queries);
    s.size = place.size < s.bf16.size ? s.bf16.size : place.size;
    return s;
}

}  // namespace mvit
