// Attention of a panel of queries on bytes; formulas in ops/qattention.h. Compiled once an ISA.
#include "cpu/ops/qattention.h"

#include "cpu/core/attention.h"
#include "cpu/core/qepilogue.h"

namespace mvit {
namespace {

using Task = QAttentionTask;

// Bytes of a head as whole numbers.
struct Differences {
    const uint8_t* data;
    I32 zero_point;
    Pixels at;

    Differences(const uint8_t* tensor, const int64_t (&stride)[2], int32_t zero_point, int64_t image, int64_t head, int64_t depth,
                int64_t rows)
        : data(tensor + image * stride[0] + head * depth), zero_point(I32::all(zero_point)), at{rows, 0, stride[1]} {}
    F32 operator()(int64_t offset, int lanes) const { return to_float(load_ints(data + offset, lanes) - zero_point); }
};

inline void rows(const Differences& from, int64_t begin, int64_t end, int64_t depth, float* to, int64_t stride) {
    each_pixel(from.at, begin, end, [&](int64_t row, int64_t offset) {
        for (int64_t c = 0; c < depth; c += W) from(offset + c, lanes_left(depth, c)).store(to + row * stride + c);
    });
}

// sums += part, whole numbers, for `rows` rows of a panel; part becomes the sum in float32. `first`: there are none yet.
inline void carry(float* part, int64_t rows, int columns, bool first, int32_t* sums) {
    for (int64_t i = 0; i < rows * panel; i += panel)
        for (int64_t j = i; j < i + columns; j += W) {
            const I32 more = to_int(F32::load(part + j)), sum = first ? more : I32::load(sums + j) + more;
            sum.store(sums + j);
            to_float(sum).store(part + j);
        }
}

// In place for each of `rows` rows of a panel of every head, `head_stride` apart: x[h] = start(h, row, column) + sum_g term(h, g, x[g]).
template <class Prepare, class Start>
inline void mix(float* x, int64_t head_stride, int64_t heads, int64_t rows, int columns, const float* mixture, const Prepare& prepare,
                const Start& start) {
    F32 from[qattention_most_heads];
    for (int j = 0; j < columns; j += W)
        for (int64_t row = 0; row < rows; ++row) {
            float* const at = x + row * panel + j;
            for (int64_t g = 0; g < heads; ++g) from[g] = prepare(F32::load(at + g * head_stride), g, j);
            for (int64_t h = 0; h < heads; ++h) {
                F32 sum = start(h, row, j);
                for (int64_t g = 0; g < heads; ++g) sum = sum + F32::all(mixture[h * heads + g]) * from[g];
                sum.store(at + h * head_stride);
            }
        }
}

// e in place of l of one head; sum: of e of every query, of which there are `width`.
inline void exponentials(float* scores, int64_t keys, int width, const float* table, float* sums) {
    for (int j = 0; j < width; j += W) {
        const int lanes = lanes_left(width, j);
        const F32 top = largest(scores + j, keys, F32::all(-__builtin_inff())), most = F32::all(255.0f);
        F32 sum = F32::all(0.0f);
        for (int64_t i = j; i < keys * panel; i += panel) {
            int32_t index[W];
            float e[W] = {};
            to_int(min(top - F32::load(scores + i), most)).store(index);
            for (int lane = 0; lane < lanes; ++lane) e[lane] = table[index[lane] & 255];
            const F32 found = F32::load(e);
            found.store(scores + i);
            sum = sum + found;
        }
        sum.store(sums + j);
    }
}

// u in place of w of one head; factor: a (ratio / 255) of every query.
inline void whole_numbers(float* weights, int64_t keys, int columns, float ratio, float* factor) {
    const F32 zero = F32::all(0.0f), levels = F32::all(255.0f), share = F32::all(ratio) / levels;
    for (int j = 0; j < columns; j += W) {
        F32 most = F32::all(0x1p-100f);
        for (int64_t i = j; i < keys * panel; i += panel) {
            const F32 w = F32::load(weights + i);
            most = max(most, max(w, zero - w));
        }
        const F32 inverse = levels / most;
        for (int64_t i = j; i < keys * panel; i += panel) round(F32::load(weights + i) * inverse).store(weights + i);
        (most * share).store(factor + j);
    }
}

// body(first, count) for blocks of keys whose sums are exact in float32.
template <class Body>
inline void each_key_block(int64_t keys, const Body& body) {
    const int64_t most = qattention_block(keys);
    for (int64_t key = 0; key < keys; key += most) body(key, keys - key < most ? keys - key : most);
}

void run(const Task& s) {
    const TileKernels& tiles = MVIT_ISA_SYMBOL(tile);
    const QAttentionProblem& p = *s.problem;
    const QAttentionScratch& at = *s.layout;
    float* const query = s.scratch + at.query;
    float* const scores = s.scratch + at.scores;
    float* const keys = s.scratch + at.keys;
    float* const values = s.scratch + at.values;
    float* const result = s.scratch + at.result;
    auto* const sums = reinterpret_cast<int32_t*>(s.scratch + at.sums);
    float* const factors = s.scratch + at.factors;
    float* const table = s.scratch + at.table;
    float* const zeros = s.scratch + at.zeros;
    const int width = static_cast<int>(s.end - s.begin), columns = static_cast<int>(round_up(width, W));
    const int64_t size = p.keys * panel, heads = s.last_head - s.first_head;
    const F32 zero = F32::all(0.0f);

    fill(zeros, panel, 0.0f);
    for (int i = 0; i < 256; ++i) table[i] = static_cast<float>(p.table[i]);
    for (int64_t h = 0; h < heads; ++h) {
        const Differences q(p.q, p.q_stride, p.q_zero_point, s.image, s.first_head + h, p.depth, p.queries);
        const Differences k(p.k, p.k_stride, p.k_zero_point, s.image, s.first_head + h, p.depth, p.keys);
        transpose_in(q.at, s.begin, s.end, p.depth, query, panel, q);
        each_key_block(p.keys, [&](int64_t key, int64_t block) {
            rows(k, key, key + block, p.depth, keys, at.key_stride);
            tiles.multiply(keys, at.key_stride, block, query, p.depth, width, zeros, 0, scores + h * size + key * panel, panel);
        });
    }
    const auto bias = [&](int64_t h, int64_t key, int column) {
        return p.bias ? F32::load(p.bias + ((s.first_head + h) * p.keys + key) * p.bias_stride + s.begin + column) : zero;
    };
    if (p.mix) {
        mix(scores, size, heads, p.keys, columns, p.mix, [](F32 x, int64_t, int) { return x; }, bias);
    } else {
        const F32 steps = F32::all(p.steps);
        for (int64_t h = 0; h < heads; ++h)
            for (int64_t key = 0; key < p.keys; ++key)
                for (int j = 0; j < columns; j += W) {
                    float* const x = scores + h * size + key * panel + j;
                    (bias(h, key, j) + steps * F32::load(x)).store(x);
                }
    }
    for (int64_t h = 0; h < heads; ++h) exponentials(scores + h * size, p.keys, width, table, factors + h * panel);
    const F32 numerator = F32::all(p.mix_weights ? 1.0f : p.ratio);
    for (int64_t i = 0; i < heads * panel; i += panel)
        for (int j = 0; j < columns; j += W) (numerator / F32::load(factors + i + j)).store(factors + i + j);
    if (p.mix_weights) {
        const auto share = [&](F32 x, int64_t g, int column) { return x * F32::load(factors + g * panel + column); };
        const auto shift = [&](int64_t h, int64_t, int) { return p.shift ? F32::all(p.shift[h]) : zero; };
        mix(scores, size, heads, p.keys, columns, p.mix_weights, share, shift);
        for (int64_t h = 0; h < heads; ++h) whole_numbers(scores + h * size, p.keys, columns, p.ratio, factors + h * panel);
    }
    const F32 low = F32::all(p.out.low), high = F32::all(p.out.high);
    const I32 out = I32::all(p.out.zero_point);
    for (int64_t h = 0; h < heads; ++h) {
        const Differences v(p.v, p.v_stride, p.v_zero_point, s.image, s.first_head + h, p.value_depth, p.keys);
        each_key_block(p.keys, [&](int64_t key, int64_t block) {
            transpose_in(v.at, key, key + block, p.value_depth, values, at.value_stride, v);
            const float* const shares = scores + h * size + key * panel;
            tiles.multiply(values, at.value_stride, p.value_depth, shares, block, width, zeros, 0, result, panel);
            if (p.keys > block) carry(result, p.value_depth, columns, key == 0, sums);
        });
        uint8_t* const y = p.y + s.image * p.y_stride[0] + (s.first_head + h) * p.value_depth;
        transpose_out({p.queries, 0, p.y_stride[1]}, s.begin, s.end, p.value_depth, result, factors + h * panel,
                      [&](F32 t, int64_t offset, int lanes) { store(to_byte(t, low, high, out), y + offset, lanes); });
    }
}

}  // namespace

extern const QAttentionKernels MVIT_ISA_SYMBOL(qattention);
const QAttentionKernels MVIT_ISA_SYMBOL(qattention) = {run};

}  // namespace mvit
