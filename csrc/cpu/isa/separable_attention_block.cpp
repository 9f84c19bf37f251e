// The three steps of a separable attention block; formulas in ops/separable_attention_block.h. Compiled once an ISA.
#include "cpu/ops/separable_attention_block.h"

#include "cpu/core/epilogue.h"
#include "cpu/core/isa.h"
#include "cpu/core/rows.h"

namespace mvit {

extern const TileKernels MVIT_ISA_SYMBOL(tile);

namespace {

constexpr int W = F32::width;

inline int64_t phase_of(int64_t position, int64_t width, int64_t patch_h, int64_t patch_w) {
    return position / width % patch_h * patch_w + position % width % patch_w;
}

// x - mean of a vector of a row.
template <class T>
inline F32 centred(const T* x, int n, F32 high, F32 low, float fill) {
    return (load(x, n, fill) - high) - low;
}

// The lanes beyond the row get the mean itself: they add exactly nothing to a sum.
template <class T>
inline float score(const T* x, const float* query, int64_t dim, Centre mean) {
    const F32 high = F32::all(mean.high), low = F32::all(mean.low);
    F32 sum[2] = {F32::all(0.0f), F32::all(0.0f)};
    int64_t c = 0;
    for (; c + 2 * W <= dim; c += 2 * W) {
        sum[0] = fma((F32::load(x + c) - high) - low, F32::load(query + c), sum[0]);
        sum[1] = fma((F32::load(x + c + W) - high) - low, F32::load(query + c + W), sum[1]);
    }
    for (; c < dim; c += W) {
        const int n = lanes_left(dim, c);
        sum[0] = fma(centred(x + c, n, high, low, mean.high), load(query + c, n, 0.0f), sum[0]);
    }
    return first_lane(sum_phases(sum[0] + sum[1], 1));
}

// Scores and partial sums of at most positions_a_block positions.
template <class T>
void scores(const ScoreBlock& p) {
    const T* x = static_cast<const T*>(p.source.a);
    const int64_t dim = p.source.depth, stride = scratch_stride(dim), phases = p.patch_h * p.patch_w;
    float* e = p.scratch;
    int32_t* phase = reinterpret_cast<int32_t*>(p.scratch + p.count);
    int32_t* order = phase + p.count;  // positions of the first phase, of the second, ...
    int32_t* begin = order + p.count;  // where those of each phase begin in `order`

    for (int64_t f = 0; f < phases; ++f) {
        p.partials[f] = {-__builtin_inff(), 0.0f};
        begin[f] = 0;
    }
    for (int64_t i = 0; i < p.count; ++i) {
        e[i] = score(x + i * dim, p.query, dim, p.source.mean) * p.source.scale;
        phase[i] = static_cast<int32_t>(phase_of(p.first + i, p.width, p.patch_h, p.patch_w));
        float& top = p.partials[phase[i]].top;
        top = e[i] > top || e[i] != e[i] ? e[i] : top;
        ++begin[phase[i]];
    }
    for (int64_t f = 1; f < phases; ++f) begin[f] += begin[f - 1];
    for (int64_t i = p.count; i-- > 0;) order[--begin[phase[i]]] = static_cast<int32_t>(i);
    for (int64_t i = 0; i < p.count; ++i) e[i] = e[i] - p.partials[phase[i]].top;
    each_vector_of(p.count, [&](int64_t i, int n) { store(exp(load(e + i, n, 0.0f)), e + i, n); });
    for (int64_t i = 0; i < p.count; ++i) p.partials[phase[i]].sum += e[i];

    const F32 high = F32::all(p.source.mean.high), low = F32::all(p.source.mean.low);
    for (int64_t f = 0; f < phases; ++f) {
        const int32_t* member = order + begin[f];
        const int64_t count = (f + 1 < phases ? begin[f + 1] : p.count) - begin[f];
        float* to = p.sums + f * stride;
        int64_t c = 0;
        for (; c + 4 * W <= dim; c += 4 * W) {
            F32 sum[4];
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) sum[j] = F32::all(0.0f);
            for (int64_t k = 0; k < count; ++k) {
                const T* row = x + member[k] * dim + c;
                const F32 weight = F32::all(e[member[k]]);
#pragma GCC unroll 4
                for (int j = 0; j < 4; ++j) sum[j] = fma(weight, (F32::load(row + j * W) - high) - low, sum[j]);
            }
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) sum[j].store(to + c + j * W);
        }
        for (; c < dim; c += W) {
            const int n = lanes_left(dim, c);
            F32 sum = F32::all(0.0f);
            for (int64_t k = 0; k < count; ++k)
                sum = fma(F32::all(e[member[k]]), centred(x + member[k] * dim + c, n, high, low, 0.0f), sum);
            store(sum, to + c, n);
        }
    }
}

// Partial sums of all blocks of an image to the mean of xc a phase, and that through the key projection.
void context(const ContextBlock& p) {
    const int64_t stride = scratch_stride(p.dim);
    for (int64_t f = 0; f < p.phases; ++f) {
        float top = -__builtin_inff();
        for (int64_t b = 0; b < p.blocks; ++b) {
            const float other = p.partials[b * p.phases + f].top;
            top = other > top || other != other ? other : top;
        }
        float* mixed = p.scratch + f * stride;
        float sum = 0.0f;
        each_vector_of(p.dim, [&](int64_t c, int n) { store(F32::all(0.0f), mixed + c, n); });
        for (int64_t b = 0; b < p.blocks; ++b) {
            const Partial& partial = p.partials[b * p.phases + f];
            // None of its positions is of this phase, or all their scores are -infinity: nothing beside any other score.
            if (partial.top == -__builtin_inff() && partial.top != top) continue;
            const F32 weight = exp(F32::all(partial.top - top));
            sum += first_lane(weight) * partial.sum;
            const float* from = p.sums + (b * p.phases + f) * stride;
            each_vector_of(p.dim,
                           [&](int64_t c, int n) { store(fma(weight, load(from + c, n, 0.0f), load(mixed + c, n, 0.0f)), mixed + c, n); });
        }
        const F32 scale = F32::all(p.scale / sum);
        each_vector_of(p.dim, [&](int64_t c, int n) { store(load(mixed + c, n, 0.0f) * scale, mixed + c, n); });
    }
    const int64_t width = round_up(p.dim, panel);
    for (int64_t j = p.panel_begin; j < p.panel_end; ++j)
        MVIT_ISA_SYMBOL(tile).multiply(p.scratch, stride, p.phases, p.weight + j * panel * p.dim, p.dim, panel, p.bias + j * panel, 0,
                                       p.context + j * panel, width);
}

template <class T>
void values(const ValueBlock& p) {
    const TileKernels& tiles = MVIT_ISA_SYMBOL(tile);
    const int64_t dim = p.source.depth, stride = scratch_stride(dim), width = round_up(dim, panel);
    float* gated = p.scratch + p.rows * stride;
    float* products = gated + p.rows * stride;
    const Rows x = load_rows<T>(p.source, p.rows, p.scratch);
    const F32 zero = F32::all(0.0f);
    for (int64_t j = 0; j < panels(dim); ++j) {
        float* to = gated + j * panel;  // whole panels fit: see scratch_stride
        tiles.multiply(x.data, x.stride, p.rows, p.value_weight + j * panel * dim, dim, panel, p.value_bias + j * panel, 0, to, stride);
        for (int64_t r = 0; r < p.rows; ++r) {
            const float* gate = p.context + phase_of(p.first + r, p.width, p.patch_h, p.patch_w) * width + j * panel;
            for (int v = 0; v < panel; v += W) (max(zero, F32::load(to + r * stride + v)) * F32::load(gate + v)).store(to + r * stride + v);
        }
    }
    multiply_panels<T>(tiles, gated, stride, p.rows, dim, p.out_weight, p.out_bias, dim, 0, panels(dim), Activation::none,
                       static_cast<const T*>(p.source.a), dim, static_cast<T*>(p.y), dim, products);
}

}  // namespace

extern const SeparableAttentionBlockKernels MVIT_ISA_SYMBOL(separable_attention_block);
const SeparableAttentionBlockKernels MVIT_ISA_SYMBOL(separable_attention_block) = {
    {scores<float>, scores<bf16>, scores<f16>},
    {values<float>, values<bf16>, values<f16>},
    context,
};

}  // namespace mvit
