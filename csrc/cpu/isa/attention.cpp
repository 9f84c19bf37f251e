// Attention of some queries, of one head or of all heads that talk; formulas in ops/attention.h. Compiled once an ISA.
#include "cpu/ops/attention.h"

#include "cpu/core/attention.h"

namespace mvit {
namespace {

using Task = AttentionTask;

// Where a head's part of one image begins, and how its rows lie.
template <class T>
struct Part {
    const T* data;
    Pixels at;

    Part(const void* tensor, const int64_t (&stride)[2], int64_t image, int64_t head, int64_t depth, int64_t rows)
        : data(static_cast<const T*>(tensor) + image * stride[0] + head * depth), at{rows, 0, stride[1]} {}
};

template <class T>
struct Parts {
    Part<T> q, k, v, y;

    Parts(const Task& s, int64_t head, const AttentionProblem& p)
        : q(p.q, p.q_stride, s.image, head, p.depth, p.queries),
          k(p.k, p.k_stride, s.image, head, p.depth, p.keys),
          v(p.v, p.v_stride, s.image, head, p.value_depth, p.keys),
          y(p.y, p.y_stride, s.image, head, p.value_depth, p.queries) {}
};

template <class T>
void alone(const Task& s) {
    const AttentionProblem& p = *s.problem;
    const Parts<T> of(s, s.head, p);
    const float* const bias = p.bias ? p.bias + s.head * p.keys * p.bias_stride : nullptr;
    attend<T>({of.q.data, of.k.data, of.v.data, const_cast<T*>(of.y.data), of.q.at, of.k.at, of.v.at, of.y.at, p.keys, p.depth,
               p.value_depth, s.begin, s.end, s.scale, bias, p.bias_stride, s.scratch, s.layout});
}

// In place: x[h] = start[h] + sum_g mix[h, g] factor[g] x[g] for each of `rows` rows of a panel of every head, `head_stride` apart.
// start(h, row, column) is a vector; factor is (heads, panel) or null.
template <class Start>
inline void mix(float* x, int64_t head_stride, int64_t heads, int64_t rows, int columns, const float* mixture, const float* factor,
                const Start& start) {
    F32 from[most_mixed_heads];
    for (int j = 0; j < columns; j += W)
        for (int64_t row = 0; row < rows; ++row) {
            float* const at = x + row * panel + j;
            for (int64_t g = 0; g < heads; ++g) {
                from[g] = F32::load(at + g * head_stride);
                if (factor) from[g] = from[g] * F32::load(factor + g * panel + j);
            }
            for (int64_t h = 0; h < heads; ++h) {
                F32 sum = start(h, row, j);
                if (mixture)
                    for (int64_t g = 0; g < heads; ++g) sum = fma(F32::all(mixture[h * heads + g]), from[g], sum);
                else
                    sum = sum + from[h];
                sum.store(at + h * head_stride);
            }
        }
}

// e in place of the scores of one head; share: 1 / sum of e of every query.
inline void exponentials(float* scores, int64_t keys, int columns, float* share) {
    for (int j = 0; j < columns; j += W) {
        const F32 top = largest(scores + j, keys, F32::all(-__builtin_inff())), shift = max(F32::all(-__FLT_MAX__), top);
        F32 sum = F32::all(0.0f);
        for (int64_t i = j; i < keys * panel; i += panel) {
            const F32 e = weight(F32::load(scores + i) - shift);
            e.store(scores + i);
            sum = sum + e;
        }
        inverse(sum, top).store(share + j);
    }
}

template <class T>
void mixed(const Task& s) {
    const TileKernels& tiles = MVIT_ISA_SYMBOL(tile);
    const AttentionProblem& p = *s.problem;
    const MixedScratch& at = *s.mixed;
    float* const query = s.scratch + at.query;
    float* const scores = s.scratch + at.scores;
    float* const keys = s.scratch + at.keys;
    float* const values = s.scratch + at.values;
    float* const result = s.scratch + at.result;
    float* const shares = s.scratch + at.shares;
    float* const ones = s.scratch + at.ones;
    float* const zeros = s.scratch + at.zeros;
    const int width = static_cast<int>(s.end - s.begin), columns = static_cast<int>(round_up(width, W));
    const int64_t size = p.keys * panel;

    fill(zeros, panel, 0.0f);
    fill(ones, panel, 1.0f);
    for (int64_t h = 0; h < p.heads; ++h) {
        const Parts<T> of(s, h, p);
        pack_transposed<T>(of.q.at, s.begin, s.end, p.depth, of.q.data, s.scale, query, panel);
        pack_rows<T>(of.k.at, 0, p.keys, p.depth, of.k.data, 1.0f, keys, at.key_stride, panel);
        tiles.multiply(keys, at.key_stride, p.keys, query, p.depth, width, zeros, 0, scores + h * size, panel);
    }
    const F32 zero = F32::all(0.0f);
    const auto bias = [&](int64_t h, int64_t key, int column) {
        return p.bias ? F32::load(p.bias + (h * p.keys + key) * p.bias_stride + s.begin + column) : zero;
    };
    if (p.mix_scores || p.bias) mix(scores, size, p.heads, p.keys, columns, p.mix_scores, nullptr, bias);
    for (int64_t h = 0; h < p.heads; ++h) exponentials(scores + h * size, p.keys, columns, shares + h * panel);
    const auto constant = [&](int64_t h, int64_t, int) { return p.mix_bias ? F32::all(p.mix_bias[h]) : zero; };
    mix(scores, size, p.heads, p.keys, columns, p.mix_weights, shares, constant);
    for (int64_t h = 0; h < p.heads; ++h) {
        const Parts<T> of(s, h, p);
        pack_transposed<T>(of.v.at, 0, p.keys, p.value_depth, of.v.data, 1.0f, values, at.value_stride);
        tiles.multiply(values, at.value_stride, p.value_depth, scores + h * size, p.keys, width, zeros, 0, result, panel);
        unpack_transposed<T>(of.y.at, s.begin, s.end, p.value_depth, result, ones, const_cast<T*>(of.y.data));
    }
}

}  // namespace

extern const AttentionKernels MVIT_ISA_SYMBOL(attention);
const AttentionKernels MVIT_ISA_SYMBOL(attention) = {
    {alone<float>, alone<bf16>, alone<f16>},
    {mixed<float>, mixed<bf16>, mixed<f16>},
};

}  // namespace mvit
