// The way from a call with tensors to the plan that runs it again, in one function of C: what mvit_kernels/ops/replay.py does op by op in
// Python, for replays that depend on nothing but their inputs and a few weights. Tensors are read through DLPack's table of functions,
// which torch has since 2.10 (`torch.Tensor.__dlpack_c_exchange_api__`): nothing here is compiled against torch.
#include <algorithm>
#include <exception>
#include <memory>
#include <utility>
#include <vector>

#include "bind.h"
#include "bind_replay.h"
#include "engine/recording.h"

namespace py = pybind11;
using namespace mvit;

namespace {

// DLPack 1.x, as far as it is read here.
struct DLTensor {
    void* data;
    int32_t device_type, device_id, ndim;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *shape, *strides;
    uint64_t byte_offset;
};
struct DLExchange {
    uint32_t major, minor;
    void *previous, *allocate, *from_object, *to_object;
    int (*view)(void* object, DLTensor* out);  // 0, or -1 with an exception
    void* stream;
};
constexpr int32_t on_cpu = 1;
constexpr uint32_t known_major = 1;
constexpr char capsule_name[] = "mvit_kernels.Forms";
constexpr Py_ssize_t most_tensors = 12, most_axes = 4;
constexpr Py_ssize_t most_words = most_tensors * (3 + 2 * most_axes);

// What of torch is called and asked.
struct Torch {
    const DLExchange* exchange;
    py::object tensor, parameter, is_neg, requires_grad, version, empty, threads, dtype, grad_enabled, level_of, level, backend;
    std::vector<py::object> watchers;
};

struct Form {
    std::vector<int64_t> key;
    py::object backend;
    py::tuple result;  // its size, stride and dtype, and what the replay needs
    py::object owner;
    Replay* replay;  // of its owner
};

struct Forms {
    std::shared_ptr<const Torch> torch;
    Py_ssize_t known;  // so many tensors behind the inputs are weights, and must be what they were
    std::vector<Form> all;
};

// Whether something may want to see the call (`library.watched`); -1 with an exception.
int watched(const Torch& torch) {
    for (const py::object& each : torch.watchers) {
        PyObject* answer = PyObject_CallNoArgs(each.ptr());
        if (!answer) return -1;
        const int yes = answer == Py_None || answer == Py_False ? 0 : PyObject_IsTrue(answer);
        Py_DECREF(answer);
        if (yes != 0) return yes;
    }
    PyObject* level = PyObject_GetAttr(torch.level_of.ptr(), torch.level.ptr());
    if (!level) return -1;
    const long value = PyLong_AsLong(level);
    Py_DECREF(level);
    return value >= 0;
}

// Whether x.name() is true; -1 with an exception.
int says(PyObject* x, const py::object& name) {
    PyObject* answer = PyObject_CallMethodNoArgs(x, name.ptr());
    if (!answer) return -1;
    const int yes = PyObject_IsTrue(answer);
    Py_DECREF(answer);
    return yes;
}

// x.name, a number; -1 with an exception.
int64_t number(PyObject* x, const py::object& name) {
    PyObject* answer = PyObject_GetAttr(x, name.ptr());
    if (!answer) return -1;
    const int64_t value = PyLong_AsLongLong(answer);
    Py_DECREF(answer);
    return value;
}

// Whether a call on weights may be differentiated, should one of its tensors need that; -1 with an exception.
int differentiates(const Forms& forms) {
    if (forms.known == 0) return 0;
    PyObject* answer = PyObject_CallNoArgs(forms.torch->grad_enabled.ptr());
    if (!answer) return -1;
    const int yes = PyObject_IsTrue(answer);
    Py_DECREF(answer);
    return yes;
}

// The form of the inputs and what the weights behind them are, in words of `key`, and the addresses of those inputs that there are. 0 where
// a tensor is not what its memory holds or needs a gradient, or too large a form; -1 with an exception, as of weights without a version.
Py_ssize_t read(const Forms& forms, PyObject* const* tensors, Py_ssize_t count, int64_t* key, void** addresses, size_t* there) {
    const Torch& torch = *forms.torch;
    Py_ssize_t words = 0;
    *there = 0;
    if (count > most_tensors || count < forms.known) return 0;
    const int gradients = differentiates(forms);
    if (gradients < 0) return -1;
    for (Py_ssize_t i = 0; i < count; ++i) {
        PyObject* x = tensors[i];
        if (x == Py_None) {
            key[words++] = -1;
            continue;
        }
        const auto* type = reinterpret_cast<PyObject*>(Py_TYPE(x));
        if (type != torch.tensor.ptr() && type != torch.parameter.ptr()) return 0;
        DLTensor t;
        if (torch.exchange->view(x, &t) != 0) return -1;                         // of sparse ones, and of those without memory
        if (t.device_type != on_cpu || t.ndim > most_axes || !t.data) return 0;  // zeros without memory, or nothing
        if (const int no = says(x, torch.is_neg); no != 0) return no < 0 ? -1 : 0;
        if (gradients > 0) {
            if (const int64_t needs = number(x, torch.requires_grad); needs != 0) return needs < 0 ? -1 : 0;
        }
        key[words++] = (int64_t{t.code} << 16 | int64_t{t.bits} << 8) + t.ndim;
        for (int axis = 0; axis < t.ndim; ++axis) key[words++] = t.shape[axis];
        for (int axis = 0; axis < t.ndim; ++axis) key[words++] = t.strides[axis];
        char* address = static_cast<char*>(t.data) + t.byte_offset;
        if (i < count - forms.known) {
            addresses[(*there)++] = address;
            continue;
        }
        const int64_t version = number(x, torch.version);
        if (version < 0) return -1;
        key[words++] = reinterpret_cast<int64_t>(address);
        key[words++] = version;
    }
    return words;
}

const Form* find(const Forms& forms, const int64_t* key, Py_ssize_t words, PyObject* backend) {
    for (const Form& form : forms.all) {
        const bool same = form.key.size() == static_cast<size_t>(words) && std::equal(form.key.begin(), form.key.end(), key);
        if (same && PyObject_RichCompareBool(form.backend.ptr(), backend, Py_EQ) == 1) return &form;
    }
    return nullptr;
}

PyObject* run(const Torch& torch, const Form& form, void* const* addresses) {
    const py::object owner = form.owner, result = form.result;  // the form may be forgotten meanwhile
    Replay& replay = *form.replay;
    PyObject* const arguments[] = {PyTuple_GET_ITEM(result.ptr(), 0), PyTuple_GET_ITEM(result.ptr(), 1), PyTuple_GET_ITEM(result.ptr(), 2)};
    const auto y = py::reinterpret_steal<py::object>(PyObject_Vectorcall(torch.empty.ptr(), arguments, 2, torch.dtype.ptr()));
    DLTensor to;
    if (!y || torch.exchange->view(y.ptr(), &to) != 0) return nullptr;
    const auto threads = py::reinterpret_steal<py::object>(PyObject_CallNoArgs(torch.threads.ptr()));
    if (!threads) return nullptr;
    const long many = PyLong_AsLong(threads.ptr());
    const Status status = run_again(replay, addresses, static_cast<char*>(to.data) + to.byte_offset, nullptr, static_cast<int>(many));
    return (status == Status::ok ? y : py::none()).inc_ref().ptr();
}

// What the call gives, or None: it is to be made in Python, which also says what is wrong.
PyObject* again(PyObject* capsule, PyObject* const* tensors, Py_ssize_t count) {
    const auto& forms = *static_cast<const Forms*>(PyCapsule_GetPointer(capsule, capsule_name));
    if (forms.all.empty() || Recording::current()) Py_RETURN_NONE;  // what is part of another call is written down there
    const Torch& torch = *forms.torch;
    int64_t key[most_words];
    void* addresses[most_tensors];
    size_t there;
    PyObject* backend = nullptr;
    PyObject* y = nullptr;
    if (const int sees = watched(torch); sees == 0) {
        const Py_ssize_t words = read(forms, tensors, count, key, addresses, &there);
        if (words > 0 && PyContextVar_Get(torch.backend.ptr(), nullptr, &backend) == 0 && backend) {
            const Form* form = find(forms, key, words, backend);
            Py_DECREF(backend);
            try {
                if (form && form->replay->inputs == there) y = run(torch, *form, addresses);
            } catch (const std::exception&) {  // out of memory, or of threads
            }
        }
    }
    if (y) return y;
    PyErr_Clear();
    Py_RETURN_NONE;
}

PyMethodDef again_definition = {"again", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(again)), METH_FASTCALL, nullptr};

// The function of forms that lives as long as somebody has it, and they with it.
py::object function_of(const std::shared_ptr<Forms>& forms) {
    auto* kept = new std::shared_ptr<Forms>(forms);
    const auto end = [](PyObject* capsule) { delete static_cast<std::shared_ptr<Forms>*>(PyCapsule_GetContext(capsule)); };
    const auto capsule = py::reinterpret_steal<py::object>(PyCapsule_New(forms.get(), capsule_name, end));
    if (!capsule || PyCapsule_SetContext(capsule.ptr(), kept) != 0) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(PyCFunction_New(&again_definition, capsule.ptr()));
}

// Nothing where the call would not be found again, or where `holds()`, asked once the key is made, is false: what the key says of weights
// is what was packed of them only as long as nobody has changed one in between.
void add(Forms& forms, const py::tuple& tensors, const py::object& backend, const py::object& holds, const py::object& replay,
         const py::tuple& result) {
    std::vector<PyObject*> objects;
    for (const py::handle& each : tensors) objects.push_back(each.ptr());
    int64_t key[most_words];
    void* addresses[most_tensors];
    size_t there;
    const Py_ssize_t words = read(forms, objects.data(), static_cast<Py_ssize_t>(objects.size()), key, addresses, &there);
    if (words < 0) PyErr_Clear();
    if (words > 0 && holds().cast<bool>()) forms.all.push_back({{key, key + words}, backend, result, replay, replay.cast<Replay*>()});
}

// Of torch's names those that replay.py gives; null where its tables are of another version.
std::shared_ptr<Torch> torch_of(const py::object& api, const py::object& tensor, const py::object& parameter, const py::object& empty,
                                const py::object& threads, const py::object& grad_enabled, const py::object& forward_ad,
                                const py::object& backend, std::vector<py::object> watchers) {
    const auto* exchange = static_cast<const DLExchange*>(PyCapsule_GetPointer(api.ptr(), "dlpack_exchange_api"));
    if (!exchange) throw py::error_already_set();
    if (exchange->major != known_major || !exchange->view) return nullptr;
    const auto word = [](const char* text) { return py::reinterpret_steal<py::object>(PyUnicode_InternFromString(text)); };
    return std::make_shared<Torch>(Torch{exchange, tensor, parameter, word("is_neg"), word("requires_grad"), word("_version"), empty,
                                         threads, py::make_tuple(word("dtype")), grad_enabled, forward_ad, word("_current_level"), backend,
                                         std::move(watchers)});
}

}  // namespace

void mvit::bind_forms(py::module_& m) {
    py::class_<Torch, std::shared_ptr<Torch>>(m, "Torch");
    m.def("torch_of", torch_of);
    py::class_<Forms, std::shared_ptr<Forms>>(m, "Forms")
        .def(py::init(
            [](const std::shared_ptr<Torch>& torch, Py_ssize_t known) { return std::make_shared<Forms>(Forms{torch, known, {}}); }))
        .def_property_readonly("again", function_of)
        .def("add", add)
        .def("clear", [](Forms& forms) {
            std::vector<Form> all;
            std::swap(all, forms.all);  // what they held may come back here while it ends
        });
}
