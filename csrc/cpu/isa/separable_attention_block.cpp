// The three steps of a separable attention block; formulas in ops/separable_attention_block.h. Compiled once an ISA.
#include "cpu/ops/separable_attention_block.h"

#include "cpu/core/epilogue.h"
#include "cpu/core/isa.h"
#include "cpu/core/rows.h"

namespace mvit {

extern const TileKernels MVIT_ISA_SYMBOL(tile);

namespace {

constexpr int W = F32::width;

// body(i, phase of position first + i) for i in [0, count). Divisions for each position would take as long as its products in a small map.
template <class Body>
inline void each_phase(int64_t first, int64_t count, int64_t width, int64_t patch_h, int64_t patch_w, const Body& body) {
    int64_t x = first % width, row = first / width % patch_h * patch_w, column = x % patch_w;
    for (int64_t i = 0; i < count; ++i) {
        body(i, row + column);
        if (++column == patch_w) column = 0;
        if (++x < width) continue;
        x = 0;
        row += patch_w;
        if (row == patch_h * patch_w) row = 0;
    }
}

// e[i] = scale q (x_i - high) of the `count` rows at x + at[i], and anything up to the next whole vector, to which `at` goes too. A vector
// of rows is summed over its lanes together, by a transposition.
template <class T>
inline void scores_of(const T* x, const int64_t* at, int64_t count, const float* query, int64_t dim, float mean, float scale, float* e) {
    const F32 high = F32::all(mean);
    for (int64_t i = 0; i < count; i += W) {
        F32 sum[W];
        for (int g = 0; g < W; g += 4) {
            const T* row[4];
            F32 part[4];
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                row[j] = x + at[i + g + j];
                part[j] = F32::all(0.0f);
            }
            each_vector_of(dim, [&](int64_t c, int n) {
                const F32 q = load(query + c, n, 0.0f);
#pragma GCC unroll 4
                for (int j = 0; j < 4; ++j) part[j] = fma(load(row[j] + c, n, mean) - high, q, part[j]);
            });
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) sum[g + j] = part[j];
        }
        transpose(sum);
#pragma GCC unroll 4
        for (int half = W / 2; half > 0; half /= 2)
#pragma GCC unroll 8
            for (int j = 0; j < half; ++j) sum[j] = sum[j] + sum[j + half];
        (sum[0] * F32::all(scale)).store(e + i);
    }
}

// Scores to e^(score - top), in place.
inline Partial exponentials(float* e, int64_t count) {
    constexpr float nothing = -__builtin_inff();
    F32 largest = F32::all(nothing), sum = F32::all(0.0f);
    each_vector_of(count, [&](int64_t i, int n) { largest = max(largest, load(e + i, n, nothing)); });
    const float top = first_lane(max_phases(largest, 1));
    const F32 base = F32::all(top == nothing ? 0.0f : top);  // scores of -infinity are nothing beside those of other blocks, not NaN
    each_vector_of(count, [&](int64_t i, int n) {
        const F32 weight = exp(load(e + i, n, nothing) - base);
        sum = sum + weight;
        weight.store(e + i);
    });
    return {top, first_lane(sum_phases(sum, 1))};
}

// to = sum_i e[i] (x_i - high): `vectors` vectors of the rows at x + at[i].
template <class T, int vectors>
inline void weighted_sums(const T* x, const int64_t* at, int64_t count, const float* e, int n, float mean, float* to) {
    const F32 high = F32::all(mean);
    F32 sum[vectors];
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) sum[j] = F32::all(0.0f);
    for (int64_t i = 0; i < count; ++i) {
        const F32 weight = F32::all(e[i]);
#pragma GCC unroll 4
        for (int j = 0; j < vectors; ++j) sum[j] = fma(weight, load(x + at[i] + j * W, n, mean) - high, sum[j]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) store(sum[j], to + j * W, n);
}

// Scores and partial sums of at most patches_a_block patches. What the mean has beyond float32, `low`, is the same for all positions: it
// cancels in the scores, and in the sums `context` takes it off.
template <class T>
void scores(const ScoreBlock& p) {
    const int64_t dim = p.source.depth, phases = p.patch_h * p.patch_w, across = p.width / p.patch_w;
    const float mean = p.source.mean.high;
    int64_t* at = reinterpret_cast<int64_t*>(p.scratch);  // the first element of each patch
    float* e = p.scratch + 2 * most_patches(phases);
    int64_t column = p.first % across, row = p.first / across * p.patch_h;
    for (int64_t i = 0; i < p.count; ++i) {
        at[i] = (row * p.width + column * p.patch_w) * dim;
        if (++column < across) continue;
        column = 0;
        row += p.patch_h;
    }
    for (int64_t i = p.count; i % W != 0; ++i) at[i] = at[p.count - 1];
    for (int64_t f = 0; f < phases; ++f) {
        const T* x = static_cast<const T*>(p.source.a) + (f / p.patch_w * p.width + f % p.patch_w) * dim;
        float* to = p.sums + f * scratch_stride(dim);
        scores_of(x, at, p.count, p.query, dim, mean, p.source.scale, e);
        p.partials[f] = exponentials(e, p.count);
        int64_t c = 0;
        for (; c + 4 * W <= dim; c += 4 * W) weighted_sums<T, 4>(x + c, at, p.count, e, W, mean, to + c);
        for (; c + 2 * W <= dim; c += 2 * W) weighted_sums<T, 2>(x + c, at, p.count, e, W, mean, to + c);
        for (; c < dim; c += W) weighted_sums<T, 1>(x + c, at, p.count, e, lanes_left(dim, c), mean, to + c);
    }
}

// Partial sums of all blocks of an image to the mean of xc a phase, and that through the key projection.
void context(const ContextBlock& p) {
    const int64_t stride = scratch_stride(p.dim);
    for (int64_t f = 0; f < p.phases; ++f) {
        float top = -__builtin_inff();
        for (int64_t b = 0; b < p.blocks; ++b) {
            const float other = p.partials[b * p.phases + f].top;
            top = other > top ? other : top;
        }
        float* mixed = p.scratch + f * stride;
        float sum = 0.0f;
        each_vector_of(p.dim, [&](int64_t c, int n) { store(F32::all(0.0f), mixed + c, n); });
        for (int64_t b = 0; b < p.blocks; ++b) {
            const Partial& partial = p.partials[b * p.phases + f];
            const F32 weight = exp(F32::all(partial.top - top));
            sum += first_lane(weight) * partial.sum;
            const float* from = p.sums + (b * p.phases + f) * stride;
            each_vector_of(p.dim,
                           [&](int64_t c, int n) { store(fma(weight, load(from + c, n, 0.0f), load(mixed + c, n, 0.0f)), mixed + c, n); });
        }
        const F32 share = F32::all(1.0f / sum), low = F32::all(p.low), scale = F32::all(p.scale);
        each_vector_of(p.dim, [&](int64_t c, int n) { store((load(mixed + c, n, 0.0f) * share - low) * scale, mixed + c, n); });
    }
    const int64_t width = round_up(p.dim, panel);
    for (int64_t j = p.panel_begin; j < p.panel_end; ++j)
        MVIT_ISA_SYMBOL(tile).multiply(p.scratch, stride, p.phases, p.weight + j * panel * p.dim, p.dim, panel, p.bias + j * panel, 0,
                                       p.context + j * panel, width);
}

template <class T>
void values(const ValueBlock& p) {
    const TileKernels& tiles = MVIT_ISA_SYMBOL(tile);
    using O = Operand<T>;
    const int64_t dim = p.source.depth, stride = scratch_stride(dim), gated_stride = scratch_stride<O>(dim), width = round_up(dim, panel);
    O* gated = reinterpret_cast<O*>(p.scratch + p.rows * stride);
    float* products = p.scratch + 2 * p.rows * stride;
    int32_t* phase = reinterpret_cast<int32_t*>(products + p.rows * product_floats(dim));
    each_phase(p.first, p.rows, p.width, p.patch_h, p.patch_w, [&](int64_t r, int64_t f) { phase[r] = static_cast<int32_t>(f); });
    const Rows<O> x = load_rows<T>(p.source, p.rows, p.scratch);
    const auto gate = [&](const float* c, int64_t c_stride, int64_t row, int64_t rows, int64_t first, int columns) {
        for (int64_t r = 0; r < rows; ++r) {
            const float* by = p.context + phase[row + r] * width + first;
            O* to = gated + (row + r) * gated_stride + first;
            for (int v = 0; v < columns; v += W)
                store_normal(max(F32::all(0.0f), F32::load(c + r * c_stride + v)) * F32::load(by + v), to + v, W);
        }
    };
    const O* weight = static_cast<const O*>(p.value_weight);
    if constexpr (is_bf16<O>) {
        multiply_in_parts(tiles, x.data, x.stride, p.rows, weight, dim, p.value_bias, 0, width, products, gate);
    } else {
        each_piece(0, width, panel, [&](int64_t first, int columns) {  // whole panels fit: see scratch_stride
            float* const c = gated + first;
            tiles.multiply(x.data, x.stride, p.rows, weight + first * dim, dim, columns, p.value_bias + first, 0, c, gated_stride);
            gate(c, gated_stride, 0, p.rows, first, columns);
        });
    }
    multiply_panels<T>(tiles, gated, gated_stride, p.rows, dim, static_cast<const O*>(p.out_weight), p.out_bias, dim, 0, panels(dim),
                       Activation::none, static_cast<const T*>(p.source.a), dim, static_cast<T*>(p.y), dim, products);
}

}  // namespace

extern const SeparableAttentionBlockKernels MVIT_ISA_SYMBOL(separable_attention_block);
const SeparableAttentionBlockKernels MVIT_ISA_SYMBOL(separable_attention_block) = {
    {scores<float>, scores<bf16>, scores<f16>},
    {values<float>, values<bf16>, values<f16>},
    context,
};

}  // namespace mvit
