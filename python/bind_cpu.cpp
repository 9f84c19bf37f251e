// The extension mvit_kernels._cpu: pointers, shapes and strides in, a status out. Tensors are checked in mvit_kernels/ops; nothing here
// knows torch. Every kernel runs without the GIL.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>
#include <vector>

#include "cpu/core/isa.h"
#include "cpu/ops/group_norm.h"
#include "cpu/ops/layer_norm.h"
#include "cpu/ops/patches.h"
#include "cpu/ops/separable_attention.h"

namespace py = pybind11;
using namespace mvit;

namespace {

using Sizes = std::array<int64_t, 4>;

void* pointer(uintptr_t address) { return reinterpret_cast<void*>(address); }

Tensor4 tensor4(uintptr_t address, const Sizes& stride) { return {pointer(address), {stride[0], stride[1], stride[2], stride[3]}}; }

SeparableAttentionProblem problem(int dtype, const Sizes& size, std::array<int64_t, 2> patch) {
    return {static_cast<DType>(dtype), size[0], (size[1] - 1) / 2, {size[2], size[3]}, patch[0], patch[1], {}, {}, {}};
}

int attention(int dtype, const Sizes& qkv_size, std::array<int64_t, 2> patch, uintptr_t qkv, const Sizes& qkv_stride, uintptr_t y,
              const Sizes& y_stride, int threads) {
    SeparableAttentionProblem p = problem(dtype, qkv_size, patch);
    p.qkv = tensor4(qkv, qkv_stride);
    p.y = tensor4(y, y_stride);
    py::gil_scoped_release release;
    return static_cast<int>(separable_attention(p, threads));
}

int attention_backward(int dtype, const Sizes& qkv_size, std::array<int64_t, 2> patch, uintptr_t qkv, const Sizes& qkv_stride, uintptr_t dy,
                       const Sizes& dy_stride, uintptr_t dqkv, const Sizes& dqkv_stride, int threads) {
    SeparableAttentionProblem p = problem(dtype, qkv_size, patch);
    p.qkv = tensor4(qkv, qkv_stride);
    p.y = tensor4(dy, dy_stride);
    p.dqkv = tensor4(dqkv, dqkv_stride);
    py::gil_scoped_release release;
    return static_cast<int>(separable_attention_backward(p, threads));
}

template <Status (*function)(const PatchesProblem&, int)>
int patches(int element_size, const Sizes& map_size, std::array<int64_t, 2> patch, bool channels_last, uintptr_t from, uintptr_t to,
            int threads) {
    const PatchesProblem p{element_size, map_size[0], map_size[1],   map_size[2],   map_size[3],
                           patch[0],     patch[1],    channels_last, pointer(from), pointer(to)};
    py::gil_scoped_release release;
    return static_cast<int>(function(p, threads));
}

const float* floats(uintptr_t address) { return static_cast<const float*>(pointer(address)); }

int group_normalize(int dtype, bool channels_last, const Sizes& size, uintptr_t x, uintptr_t weight, uintptr_t bias, float eps, uintptr_t y,
                    int threads) {
    GroupNormProblem p{};
    p.dtype = static_cast<DType>(dtype);
    p.channels_last = channels_last;
    p.batch = size[0], p.channels = size[1], p.positions = size[2] * size[3];
    p.eps = eps;
    p.weight = floats(weight), p.bias = floats(bias);
    p.x = pointer(x), p.y = pointer(y);
    py::gil_scoped_release release;
    return static_cast<int>(group_norm(p, threads));
}

int group_normalize_backward(int dtype, bool channels_last, const Sizes& size, uintptr_t dy, uintptr_t x, uintptr_t weight, float eps,
                             uintptr_t dx, uintptr_t dweight, uintptr_t dbias, int threads) {
    GroupNormProblem p{};
    p.dtype = static_cast<DType>(dtype);
    p.channels_last = channels_last;
    p.batch = size[0], p.channels = size[1], p.positions = size[2] * size[3];
    p.eps = eps;
    p.weight = floats(weight);
    p.x = pointer(x), p.dy = pointer(dy), p.dx = pointer(dx);
    p.dweight = static_cast<float*>(pointer(dweight)), p.dbias = static_cast<float*>(pointer(dbias));
    py::gil_scoped_release release;
    return static_cast<int>(group_norm_backward(p, threads));
}

int layer_normalize(int dtype, int64_t rows, int64_t channels, uintptr_t x, uintptr_t weight, uintptr_t bias, float eps, uintptr_t y,
                    int threads) {
    LayerNormProblem p{};
    p.dtype = static_cast<DType>(dtype);
    p.rows = rows, p.channels = channels;
    p.eps = eps;
    p.weight = floats(weight), p.bias = floats(bias);
    p.x = pointer(x), p.y = pointer(y);
    py::gil_scoped_release release;
    return static_cast<int>(layer_norm(p, threads));
}

int layer_normalize_backward(int dtype, int64_t rows, int64_t channels, uintptr_t dy, uintptr_t x, uintptr_t weight, float eps,
                             uintptr_t dx, uintptr_t dweight, uintptr_t dbias, int threads) {
    LayerNormProblem p{};
    p.dtype = static_cast<DType>(dtype);
    p.rows = rows, p.channels = channels;
    p.eps = eps;
    p.weight = floats(weight);
    p.x = pointer(x), p.dy = pointer(dy), p.dx = pointer(dx);
    p.dweight = static_cast<float*>(pointer(dweight)), p.dbias = static_cast<float*>(pointer(dbias));
    py::gil_scoped_release release;
    return static_cast<int>(layer_norm_backward(p, threads));
}

std::vector<std::string> isas(bool (*holds)(Isa)) {
    std::vector<std::string> names;
    for (int level = 0; level < isa_count; ++level)
        if (holds(static_cast<Isa>(level))) names.emplace_back(isa_name(static_cast<Isa>(level)));
    return names;
}

bool set_isa(const std::string& name) {
    for (int level = 0; level < isa_count; ++level)
        if (name == isa_name(static_cast<Isa>(level))) return isa_set(static_cast<Isa>(level));
    return false;
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
    m.def("isas_built", [] { return isas(isa_built); });
    m.def("isas_supported", [] { return isas(isa_supported); });
    m.def("isa", [] { return std::string(isa_name(isa_active())); });
    m.def("set_isa", set_isa);

    m.def("separable_attention", attention);
    m.def("separable_attention_backward", attention_backward);
    m.def("group_norm", group_normalize);
    m.def("group_norm_backward", group_normalize_backward);
    m.def("layer_norm", layer_normalize);
    m.def("layer_norm_backward", layer_normalize_backward);
    m.def("unfold_patches", patches<unfold_patches>);
    m.def("fold_patches", patches<fold_patches>);
}
