// Whether Python objects are still what they were: thousands of comparisons of pointers, at every call of a module that runs again what it
// ran before. What is compared is chosen in mvit_kernels/swap/obstacles.py.
#include <algorithm>
#include <utility>
#include <vector>

#include "bind.h"

namespace py = pybind11;
using namespace mvit;

namespace {

class Snapshot {
  public:
    // None for a dict stands for that which `holds` is asked about: nothing here keeps it alive.
    void type(py::object object) {
        auto* kind = Py_TYPE(object.ptr());
        types_.emplace_back(std::move(object), py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(kind)));
    }
    void size(const py::object& dict, Py_ssize_t size) { sizes_.emplace_back(owner(dict), size); }
    void item(const py::object& dict, py::str key, py::object value) { items_.push_back({owner(dict), std::move(key), std::move(value)}); }
    // Nor does anything here keep the values of these alive: whoever asks knows whether one of them is gone.
    void values(py::dict dict) {
        auto now = in(dict);
        values_.emplace_back(std::move(dict), std::move(now));
    }

    // What stands in these dicts now, without None.
    py::list present() const {
        py::list all;
        for (const auto& [dict, _] : values_)
            for (PyObject* value : in(dict))
                if (value != Py_None) all.append(py::handle(value));
        return all;
    }

    bool holds(const py::dict& root) {
        const auto of = [&](const py::object& dict) { return dict ? dict.ptr() : root.ptr(); };
        for (const auto& [object, kind] : types_)
            if (reinterpret_cast<PyObject*>(Py_TYPE(object.ptr())) != kind.ptr()) return false;
        for (const auto& [dict, size] : sizes_)
            if (PyDict_GET_SIZE(of(dict)) != size) return false;
        for (const Item& item : items_) {
            PyObject* found = PyDict_GetItemWithError(of(item.dict), item.key.ptr());
            if (!found && PyErr_Occurred()) throw py::error_already_set();
            if (found == item.value.ptr()) continue;
            if (!found || !plain(found) || !plain(item.value.ptr())) return false;
            const int equal = PyObject_RichCompareBool(found, item.value.ptr(), Py_EQ);
            if (equal < 0) throw py::error_already_set();
            if (!equal) return false;
        }
        return std::all_of(values_.begin(), values_.end(), [](const auto& each) { return in(each.first) == each.second; });
    }

  private:
    struct Item {
        py::object dict;
        py::str key;
        py::object value;
    };

    static std::vector<PyObject*> in(const py::dict& dict) {
        std::vector<PyObject*> all;
        Py_ssize_t at = 0;
        for (PyObject *key, *value; PyDict_Next(dict.ptr(), &at, &key, &value);) all.push_back(value);
        return all;
    }
    static py::object owner(const py::object& dict) {
        if (dict.is_none()) return {};
        if (!PyDict_Check(dict.ptr())) throw py::type_error("Snapshot: dict: expected a dict");
        return dict;
    }
    // Numbers, names and tuples are compared by value; whatever else stands there is itself or another one.
    static bool plain(PyObject* x) { return PyLong_Check(x) || PyFloat_Check(x) || PyUnicode_Check(x) || PyTuple_Check(x); }

    std::vector<std::pair<py::object, py::object>> types_;
    std::vector<std::pair<py::object, Py_ssize_t>> sizes_;
    std::vector<Item> items_;
    std::vector<std::pair<py::dict, std::vector<PyObject*>>> values_;
};

}  // namespace

void mvit::bind_snapshot(py::module_& m) {
    py::class_<Snapshot>(m, "Snapshot")
        .def(py::init<>())
        .def("type", &Snapshot::type)
        .def("size", &Snapshot::size)
        .def("item", &Snapshot::item)
        .def("values", &Snapshot::values)
        .def("present", &Snapshot::present)
        .def("holds", &Snapshot::holds);
}
