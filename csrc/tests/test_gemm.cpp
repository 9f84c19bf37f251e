// Every tail and every part of the formula against a double-precision loop, with guard pages behind each buffer.
#include "cpu/ops/gemm.h"
#include "tests/floats.h"

using namespace mvit;
using namespace mvit::tests;

namespace {

struct Case {
    int64_t groups, rows, depth, columns;
    int64_t second_depth = 0, gap = 0;  // gap: between the rows of every matrix
    bool moments = false, layer_norm = false;
    Activation activation = Activation::none;
    bool residual = false, collect = false;
    float mean = 0.0f;
};

// Rows `stride` apart, of which the last one ends at the guard page; NaN between them.
template <class T>
class Matrix {
  public:
    Matrix(int64_t rows, int64_t columns, int64_t gap, float mean = 0.0f) : stride(columns + gap), buffer((rows - 1) * stride + columns) {
        fill_with(buffer, NAN);
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t j = 0; j < columns; ++j) from_float(mean + random_float(), &buffer[r * stride + j]);
    }
    double at(int64_t r, int64_t j) { return value(buffer[r * stride + j]); }

    int64_t stride;
    Guarded<T> buffer;
};

template <class T>
void compare(const Case& c) {
    const int64_t rows = c.groups * c.rows;
    Matrix<T> a(rows, c.depth, c.gap, c.mean), second(rows, c.second_depth, c.gap), residual(rows, c.columns, c.gap);
    Weight<Operand<T>> weight(c.columns, c.depth + c.second_depth);
    Guarded<Moments> moments(c.groups), collected(c.collect ? c.groups : 0);
    for (int64_t g = 0; g < c.groups; ++g)
        moments[g] = exact_moments(c.rows * c.depth, [&](int64_t i) { return a.at(g * c.rows + i / c.depth, i % c.depth); });

    GemmProblem p{};
    p.dtype = dtype_of<T>;
    p.groups = c.groups, p.rows = c.rows, p.depth = c.depth, p.columns = c.columns;
    p.a = a.buffer.data(), p.a_stride = a.stride;
    if (c.second_depth > 0) p.second = second.buffer.data(), p.second_depth = c.second_depth, p.second_stride = second.stride;
    p.weight = weight.data(), p.bias = weight.bias_data();
    p.moments = c.moments ? moments.data() : nullptr;
    p.layer_norm = c.layer_norm;
    p.eps = 1e-3f;
    p.activation = c.activation;
    if (c.residual) p.residual = residual.buffer.data(), p.residual_stride = residual.stride;

    const int64_t y_gap = c.collect ? 0 : c.gap;
    Matrix<T> y(rows, c.columns, y_gap), again(rows, c.columns, y_gap);
    p.y_stride = y.stride;
    for (int threads : {1, 2, 3}) {
        Matrix<T>& to = threads == 1 ? y : again;
        fill_with(to.buffer, NAN);
        p.y = to.buffer.data();
        p.collected = c.collect ? collected.data() : nullptr;
        spoil_scratch();
        CHECK(gemm(p, threads) == Status::ok);
        CHECK(to.buffer.canary_intact());
        CHECK(threads == 1 || same_bits(y.buffer, again.buffer));
        CHECK(moments_are_of(collected, to.buffer, c.rows * c.columns));
    }

    std::vector<double> x(static_cast<size_t>(c.depth + c.second_depth));
    for (int64_t r = 0; r < rows; ++r) {
        Moments norm{0.0, 1.0 - double{p.eps}};
        if (c.moments) norm = moments[r / c.rows];
        if (c.layer_norm) norm = exact_moments(c.depth, [&](int64_t k) { return a.at(r, k); });
        for (int64_t k = 0; k < c.depth; ++k)
            x[static_cast<size_t>(k)] = (a.at(r, k) - norm.mean) / std::sqrt(norm.variance + double{p.eps});
        for (int64_t k = 0; k < c.second_depth; ++k) x[static_cast<size_t>(c.depth + k)] = second.at(r, k);
        for (int64_t n = 0; n < c.columns; ++n) {
            double sum = weight.bias(n), size = std::fabs(sum);
            for (int64_t k = 0; k < c.depth + c.second_depth; ++k) {
                sum += x[static_cast<size_t>(k)] * weight.at(n, k);
                size += std::fabs(x[static_cast<size_t>(k)] * weight.at(n, k));
            }
            const double added = c.residual ? residual.at(r, n) : 0.0, activated = activate_exactly(c.activation, sum);
            double doubt = 2e-6 * (1 + size + std::fabs(added)) + rounding<T> * std::fabs(activated + added);
            if (c.moments || c.layer_norm) doubt += 1.2 * operand_rounding<T> * size;  // the steepest activation has a slope of 1.13
            doubt += activation_error<T>(c.activation, activated);
            CHECK(std::fabs(y.at(r, n) - (activated + added)) < doubt);
        }
        for (int64_t j = c.columns; j < y.stride && r + 1 < rows; ++j) CHECK(std::isnan(y.at(r, j)));
    }
}

template <class T>
void compare_every_part() {
    for (int64_t rows : {1, 5, 33})
        for (int64_t columns : {7, 16, 40, 100}) {
            for (Activation activation : activations)
                for (bool residual : {false, true})
                    compare<T>({.groups = 2,
                                .rows = rows,
                                .depth = 19,
                                .columns = columns,
                                .gap = 3,
                                .activation = activation,
                                .residual = residual});
            for (float mean : {0.0f, 30.0f}) {
                compare<T>({.groups = 3,
                            .rows = rows,
                            .depth = 40,
                            .columns = columns,
                            .gap = 1,
                            .moments = true,
                            .residual = true,
                            .collect = true,
                            .mean = mean});
                compare<T>({.groups = 3,
                            .rows = rows,
                            .depth = 40,
                            .columns = columns,
                            .gap = 5,
                            .layer_norm = true,
                            .activation = Activation::silu,
                            .mean = mean});
            }
            compare<T>({.groups = 1, .rows = rows, .depth = 13, .columns = columns, .second_depth = 9, .gap = 2, .residual = true});
            compare<T>({.groups = 2, .rows = rows, .depth = 0, .columns = columns, .second_depth = 17, .collect = true});
        }
}

}  // namespace

TEST(gemm_on_every_tail) {
    on_every_isa([] {
        for (int64_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 63, 64, 65, 130})
            for (int64_t columns : {1, 15, 16, 17, 31, 32, 33, 48, 257})
                compare<float>({.groups = 1, .rows = rows, .depth = 7, .columns = columns, .gap = rows % 3});
        for (int64_t depth : {0, 1, 7, 255, 256, 257, 600})
            for (int64_t rows : {1, 14, 65})
                for (int64_t columns : {17, 64}) compare<float>({.groups = 1, .rows = rows, .depth = depth, .columns = columns});
    });
}

TEST(gemm_of_bfloat16_on_every_tail) {  // of what tiles multiply
    on_every_isa([] {
        for (int64_t rows : {1, 2, 3, 4, 6, 15, 16, 17, 31, 32, 33, 63, 64, 65, 130})
            for (int64_t columns : {1, 15, 16, 17, 32, 33, 48, 49, 64, 65, 257})
                for (int64_t depth : {6, 33}) compare<bf16>({.groups = 1, .rows = rows, .depth = depth, .columns = columns});
        for (int64_t depth : {0, 1, 2, 31, 32, 34, 63, 80, 96, 144, 255, 256, 257, 600})
            for (int64_t rows : {1, 14, 65})
                for (int64_t columns : {17, 64})
                    compare<bf16>({.groups = 1, .rows = rows, .depth = depth, .columns = columns, .gap = depth % 4});
    });
}

TEST(gemm_with_every_part_of_its_formula) {
    on_every_isa([] {
        compare_every_part<float>();
        compare_every_part<bf16>();
        compare_every_part<f16>();
    });
}

TEST(gemm_with_rows_that_share_cache_sets_or_memory) {
    on_every_isa([] {
        compare<float>({.groups = 1, .rows = 20, .depth = 512, .columns = 33});
        compare<float>({.groups = 1, .rows = 20, .depth = 1024, .columns = 33});  // copied: see shares_sets
        for (int64_t rows : {3, 20}) compare<float>({.groups = 1, .rows = rows, .depth = 30, .columns = 33, .gap = 1024 - 30});
        Guarded<float> row(9), y(4 * 5);
        fill(row);
        Weight weight(5, 9);
        GemmProblem p{};
        p.groups = 1, p.rows = 4, p.depth = 9, p.columns = 5;
        p.a = row.data();  // a stride of 0: one row for all
        p.weight = weight.data(), p.bias = weight.bias_data();
        p.y = y.data(), p.y_stride = 5;
        CHECK(gemm(p, 1) == Status::ok);
        for (int64_t i = 5; i < y.size(); ++i) CHECK(y[i] == y[i % 5]);
    });
}

template <class T>
void compare_many_columns() {
    for (int64_t columns : {528, 1073})
        for (bool more : {false, true})
            compare<T>({.groups = 1,
                        .rows = 449,  // as many blocks as leave the columns whole
                        .depth = 3,
                        .columns = columns,
                        .gap = 5,
                        .activation = more ? Activation::silu : Activation::none,
                        .residual = more});
}

TEST(gemm_of_more_columns_than_are_finished_at_once) {
    on_every_isa([] {
        compare_many_columns<float>();
        compare_many_columns<bf16>();
    });
}

TEST(gemm_of_a_weight_that_is_taken_in_parts) {
    on_every_isa([] {
        compare<float>({.groups = 2, .rows = 70, .depth = 600, .columns = 450, .moments = true, .residual = true, .collect = true});
        compare<bf16>({.groups = 1, .rows = 130, .depth = 901, .columns = 637, .layer_norm = true, .activation = Activation::silu});
    });
}

TEST(gemm_on_several_threads) {
    on_every_isa([] {
        compare<float>({.groups = 3,
                        .rows = 100,
                        .depth = 90,
                        .columns = 130,
                        .moments = true,
                        .activation = Activation::gelu,
                        .residual = true,
                        .collect = true});
        compare<bf16>({.groups = 1, .rows = 4, .depth = 600, .columns = 700, .layer_norm = true, .collect = true});  // the columns are cut
    });
}

namespace {

template <class T>
void compare_numbers_of_every_size() {
    using O = Operand<T>;
    const float numbers[] = {0.0f,    1e-30f, -1e-30f, 1.0f, -1.0f, 20.0f, -20.0f, 88.0f, -88.0f, 100.0f,
                             -100.0f, 1e4f,   -1e4f,   1e9f, -1e9f, 1e14f, -1e14f, 1e30f, -1e30f};
    const int64_t count = std::size(numbers), depth = packed_depth<O>(1);
    Guarded<T> x(count * depth), y(count);
    fill_with(x, 0.0f);
    for (int64_t i = 0; i < count; ++i) from_float(numbers[i], &x[i * depth]);
    Guarded<O> weight(panel * depth);
    Guarded<float> bias(panel);
    fill_with(weight, 0.0f);
    fill_with(bias, 0.0f);
    from_float(1.0f, &weight[packed_index<O>(0, 0, 1)]);
    GemmProblem p{};
    p.dtype = dtype_of<T>;
    p.groups = 1, p.rows = count, p.depth = 1, p.columns = 1;
    p.a = x.data(), p.a_stride = depth;
    p.weight = weight.data(), p.bias = bias.data();
    p.y = y.data(), p.y_stride = 1;
    for (Activation activation : activations) {
        p.activation = activation;
        CHECK(gemm(p, 1) == Status::ok);
        for (int64_t i = 0; i < count; ++i) {
            const double exact = activate_exactly(activation, value(x[i * depth]));
            const double doubt = (1e-6 + (is_bf16<T> ? rounding<T> : 0.0)) * std::fabs(exact) + activation_error<T>(activation, exact);
            CHECK(std::fabs(value(y[i]) - exact) <= doubt + 1e-28);
        }
    }
    for (Activation activation : activations) {
        p.activation = activation;
        from_float(std::nanf(""), &x[0]);
        from_float(INFINITY, &x[depth]);
        CHECK(gemm(p, 1) == Status::ok);
        CHECK(std::isnan(value(y[0])) && value(y[1]) == activate_exactly(activation, double{INFINITY}));
    }
}

}  // namespace

TEST(activations_of_numbers_of_every_size) {
    on_every_isa([] {
        compare_numbers_of_every_size<float>();
        compare_numbers_of_every_size<bf16>();
    });
}

TEST(gemm_refuses_what_it_cannot_do) {
    const Moments moments{0.0, 1.0};
    Moments collected;
    const auto status = [](const auto& change) {
        GemmProblem p{};
        p.groups = p.rows = p.depth = p.columns = 1;
        p.y_stride = 1;
        change(p);
        p.groups = p.groups > 0 ? 0 : p.groups;  // checks come before anything is read
        return gemm(p, 1);
    };
    CHECK(status([](GemmProblem&) {}) == Status::ok);
    CHECK(status([](GemmProblem& p) { p.groups = -1; }) == Status::bad_shape);
    CHECK(status([](GemmProblem& p) { p.rows = -1; }) == Status::bad_shape);
    CHECK(status([](GemmProblem& p) { p.depth = -1; }) == Status::bad_shape);
    CHECK(status([](GemmProblem& p) { p.second_depth = -1; }) == Status::bad_shape);
    CHECK(status([](GemmProblem& p) { p.columns = -1; }) == Status::bad_shape);
    CHECK(status([](GemmProblem& p) { p.dtype = static_cast<DType>(3); }) == Status::bad_dtype);
    CHECK(status([](GemmProblem& p) { p.layer_norm = true, p.second_depth = 1; }) == Status::bad_shape);
    CHECK(status([](GemmProblem& p) { p.layer_norm = true, p.depth = 0; }) == Status::bad_shape);
    CHECK(status([&](GemmProblem& p) { p.layer_norm = true, p.moments = &moments; }) == Status::bad_shape);
    CHECK(status([&](GemmProblem& p) { p.second_depth = 1, p.moments = &moments; }) == Status::bad_shape);
    CHECK(status([&](GemmProblem& p) { p.collected = &collected, p.y_stride = 2; }) == Status::bad_layout);
}
