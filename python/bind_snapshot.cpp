// Whether a torch module is still what it was: thousands of comparisons of pointers, at every call of a module that runs again what it ran
// before. What is looked at is chosen in mvit_kernels/swap/obstacles.py.
#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bind.h"

namespace py = pybind11;
using namespace mvit;

namespace {

py::object interned(const char* name) { return py::reinterpret_steal<py::object>(PyUnicode_InternFromString(name)); }

struct Names {
    py::object parameters = interned("_parameters"), buffers = interned("_buffers"), modules = interned("_modules");
    py::object hooks[4] = {interned("_forward_hooks"), interned("_forward_pre_hooks"), interned("_backward_hooks"),
                           interned("_backward_pre_hooks")};
};

const Names& names() {
    static const auto* all = new Names;  // never destroyed: Python may be gone by then
    return *all;
}

py::object attributes(PyObject* module) {
    auto dict = py::reinterpret_steal<py::object>(PyObject_GenericGetDict(module, nullptr));
    if (!dict) throw py::error_already_set();
    return dict;
}

// The dict that stands under a name in another one, borrowed; null where there is none.
PyObject* table(PyObject* dict, const py::object& name) {
    PyObject* found = PyDict_GetItemWithError(dict, name.ptr());
    if (!found && PyErr_Occurred()) throw py::error_already_set();
    return found && PyDict_Check(found) ? found : nullptr;
}

template <class Take>
void each(PyObject* dict, const Take& take) {
    Py_ssize_t at = 0;
    for (PyObject *key, *value; PyDict_Next(dict, &at, &key, &value);) take(key, value);
}

std::vector<PyObject*> values(PyObject* dict) {
    std::vector<PyObject*> all;
    if (dict) each(dict, [&](PyObject*, PyObject* value) { all.push_back(value); });
    return all;
}

bool holds_values(PyObject* dict, const std::vector<PyObject*>& expected) {
    if (!dict || PyDict_GET_SIZE(dict) != static_cast<Py_ssize_t>(expected.size())) return false;
    size_t i = 0;
    bool same = true;
    each(dict, [&](PyObject*, PyObject* value) { same &= value == expected[i++]; });
    return same;
}

// The same object, or an equal number, name or tuple of these: no code of anybody's runs here.
bool same(PyObject* a, PyObject* b) {
    if (a == b) return true;
    if (Py_TYPE(a) != Py_TYPE(b)) return false;
    if (PyTuple_CheckExact(a)) {
        if (PyTuple_GET_SIZE(a) != PyTuple_GET_SIZE(b)) return false;
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(a); ++i)
            if (!same(PyTuple_GET_ITEM(a, i), PyTuple_GET_ITEM(b, i))) return false;
        return true;
    }
    if (!PyLong_CheckExact(a) && !PyFloat_CheckExact(a) && !PyUnicode_CheckExact(a)) return false;
    return PyObject_RichCompareBool(a, b, Py_EQ) == 1;
}

// A module and those inside of it that are looked at. It keeps none of them alive, nor their dicts or tensors, any of which may know who
// keeps this: it finds them by the way that leads there from the module that is asked about. A tensor is told by its address, so who asks
// must know that none is gone.
class Snapshot {
  public:
    using Children = std::vector<std::shared_ptr<Snapshot>>;

    // watched: names of attributes. children: of each child in order, or null where it is not looked at. hooked: whether hooks are allowed.
    Snapshot(const py::object& module, const std::vector<std::string>& watched, Children children, bool hooked)
        : type_(py::type::of(module)), children_(std::move(children)), hooked_(hooked) {
        const py::object dict = attributes(module.ptr());
        each(dict.ptr(), [&](PyObject* key, PyObject*) { keys_.push_back(py::reinterpret_borrow<py::object>(key)); });
        for (const std::string& name : watched) {
            py::object key = interned(name.c_str());
            items_.emplace_back(key, dict[key]);
        }
        parameters_ = values(table(dict.ptr(), names().parameters));
        buffers_ = values(table(dict.ptr(), names().buffers));
        for (PyObject* child : values(table(dict.ptr(), names().modules))) nothing_.push_back(child == Py_None);
        if (nothing_.size() != children_.size()) throw py::value_error("Snapshot: children: expected as many as the module has");
    }

    bool holds(PyObject* module) const {
        if (reinterpret_cast<PyObject*>(Py_TYPE(module)) != type_.ptr()) return false;
        const py::object dict = attributes(module);
        if (PyDict_GET_SIZE(dict.ptr()) != static_cast<Py_ssize_t>(keys_.size())) return false;
        size_t i = 0;
        bool equal = true;
        each(dict.ptr(), [&](PyObject* key, PyObject*) { equal &= key == keys_[i++].ptr(); });
        if (!equal) return false;
        for (const auto& [key, value] : items_) {
            PyObject* found = PyDict_GetItemWithError(dict.ptr(), key.ptr());
            if (!found || !same(found, value.ptr())) return false;
        }
        if (!hooked_)
            for (const py::object& name : names().hooks)
                if (PyObject* hooks = table(dict.ptr(), name); !hooks || PyDict_GET_SIZE(hooks) != 0) return false;
        return holds_values(table(dict.ptr(), names().parameters), parameters_) &&
               holds_values(table(dict.ptr(), names().buffers), buffers_) && children_hold(table(dict.ptr(), names().modules));
    }

    // Parameters and buffers of a module that it holds for.
    void tensors(PyObject* module, py::list& all) const {
        const py::object dict = attributes(module);
        for (const py::object* name : {&names().parameters, &names().buffers})
            for (PyObject* value : values(table(dict.ptr(), *name)))
                if (value != Py_None) all.append(py::handle(value));
        const auto modules = owned(table(dict.ptr(), names().modules));
        for (size_t i = 0; i < std::min(modules.size(), children_.size()); ++i)
            if (children_[i]) children_[i]->tensors(modules[i].ptr(), all);
    }

  private:
    static std::vector<py::object> owned(PyObject* dict) {
        std::vector<py::object> all;
        if (dict) each(dict, [&](PyObject*, PyObject* value) { all.push_back(py::reinterpret_borrow<py::object>(value)); });
        return all;
    }

    bool children_hold(PyObject* dict) const {
        if (!dict || PyDict_GET_SIZE(dict) != static_cast<Py_ssize_t>(children_.size())) return false;
        if (children_.empty()) return true;
        const auto modules = owned(dict);
        for (size_t i = 0; i < modules.size(); ++i) {
            if ((modules[i].ptr() == Py_None) != nothing_[i]) return false;
            if (children_[i] && !children_[i]->holds(modules[i].ptr())) return false;
        }
        return true;
    }

    py::object type_;
    std::vector<py::object> keys_;
    std::vector<std::pair<py::object, py::object>> items_;
    std::vector<PyObject*> parameters_, buffers_;
    std::vector<bool> nothing_;  // whether a child is None
    Children children_;
    bool hooked_;
};

}  // namespace

void mvit::bind_snapshot(py::module_& m) {
    py::class_<Snapshot, std::shared_ptr<Snapshot>>(m, "Snapshot")
        .def(py::init<py::object, std::vector<std::string>, Snapshot::Children, bool>())
        .def("holds", [](const Snapshot& snapshot, const py::object& module) { return snapshot.holds(module.ptr()); })
        .def("tensors", [](const Snapshot& snapshot, const py::object& module) {
            py::list all;
            snapshot.tensors(module.ptr(), all);
            return all;
        });
}
