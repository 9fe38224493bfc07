#include "tensors.h"

#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace {

// Classes whose tensors have no operators of their own.
PyObject *tensor_class, *parameter_class;

// What is asked of a tensor, as its class has it.
struct Question {
  const char* name;
  bool answer;  // of plain memory
  PyObject* how;
};
Question of_plain[] = {{"is_contiguous", true, nullptr},
                       {"is_nested", false, nullptr},
                       {"is_neg", false, nullptr},
                       {"is_quantized", false, nullptr}};
PyObject *is_cpu, *is_cuda, *version, *untyped_storage, *storage_nbytes, *nbytes, *storage_offset,
    *itemsize, *data_ptr, *base, *is_leaf;

// A new reference, or null and an error.
PyObject* ask(PyObject* how, PyObject* of) {
  if (PyCallable_Check(how)) return PyObject_CallOneArg(how, of);
  return Py_TYPE(how)->tp_descr_get(how, of, (PyObject*)Py_TYPE(of));
}

bool is(bool wanted, PyObject* answer) {
  Py_XDECREF(answer);
  return answer == (wanted ? Py_True : Py_False);
}

bool number(PyObject* answer, int64_t* to) {
  if (!answer) return false;
  *to = PyLong_AsLongLong(answer);
  Py_DECREF(answer);
  return *to >= 0;
}

// Whether it was not made for inference: is_inference() lets other threads in, and takes twice as long.
bool has_version(PyObject* tensor) {
  int64_t so_far;
  return number(ask(version, tensor), &so_far);
}

// Whether its storage reaches as far as its elements: other layouts have none, and it may be freed.
bool has_memory(PyObject* tensor) {
  PyObject* const storage = ask(untyped_storage, tensor);
  int64_t there, needed, before, size;
  const bool known = storage && number(ask(storage_nbytes, storage), &there);
  Py_XDECREF(storage);
  if (!known || !number(ask(nbytes, tensor), &needed) ||
      !number(ask(storage_offset, tensor), &before))
    return false;
  if (before == 0) return there >= needed;
  return number(ask(itemsize, tensor), &size) && there >= needed + before * size;
}

// CUDA's memory is as plain as the CPU's, for whoever does not read it here.
enum Where { ON_CPU, ON_CPU_OR_CUDA };

bool is_plain(PyObject* tensor, Where where) {
  PyObject* const kind = (PyObject*)Py_TYPE(tensor);
  if (kind != tensor_class && kind != parameter_class) return false;
  if (!is(true, ask(is_cpu, tensor)) && (where == ON_CPU || !is(true, ask(is_cuda, tensor))))
    return false;
  for (const Question& q : of_plain)
    if (!is(q.answer, ask(q.how, tensor))) return false;
  return has_version(tensor) && has_memory(tensor);
}

bool has_attributes(PyObject* tensor) {
  PyObject* const all = PyObject_GenericGetDict(tensor, nullptr);
  const bool some = !all || PyDict_GET_SIZE(all) != 0;
  Py_XDECREF(all);
  return some;
}

// What a tensor is a view of, or itself; null and an error.
PyObject* source(PyObject* tensor) {
  PyObject* const of = ask(base, tensor);
  if (of != Py_None) return of;
  Py_DECREF(of);
  Py_INCREF(tensor);
  return tensor;
}

bool marked(PyObject* tensor, PyObject* of) {
  return has_attributes(tensor) || (of != tensor && has_attributes(of));
}

// Whether it carries no mark, nor is the result of a computation. A view is not asked for that itself: see
// fastinit/fills/seeded.py.
bool is_whole(PyObject* tensor) {
  PyObject* const of = source(tensor);
  const bool whole = of && !marked(tensor, of) && is(true, ask(is_leaf, of));
  Py_XDECREF(of);
  return whole;
}

PyObject* address(bool asked_for, PyObject* tensor) {
  // 0 of what has a storage for show, such as an immutable zero.
  PyObject* const found = asked_for ? ask(data_ptr, tensor) : nullptr;
  if (found) return found;
  // A RuntimeError where there is no storage to ask: inside torch.func, say.
  if (PyErr_Occurred()) {
    if (!PyErr_ExceptionMatches(PyExc_RuntimeError)) return nullptr;
    PyErr_Clear();
  }
  return PyLong_FromLong(0);
}

}  // namespace

void look_up_torch() {
  const py::module_ torch = py::module_::import("torch");
  const auto kept = [](const py::object& found) { return py::object(found).release().ptr(); };
  const py::object tensor = torch.attr("Tensor");
  tensor_class = kept(tensor);
  parameter_class = kept(torch.attr("nn").attr("Parameter"));
  for (Question& q : of_plain) q.how = kept(tensor.attr(q.name));
  is_cpu = kept(tensor.attr("is_cpu"));
  is_cuda = kept(tensor.attr("is_cuda"));
  version = kept(tensor.attr("_version"));
  untyped_storage = kept(tensor.attr("untyped_storage"));
  storage_nbytes = kept(torch.attr("UntypedStorage").attr("nbytes"));
  nbytes = kept(tensor.attr("nbytes"));
  storage_offset = kept(tensor.attr("storage_offset"));
  itemsize = kept(tensor.attr("itemsize"));
  data_ptr = kept(tensor.attr("data_ptr"));
  base = kept(tensor.attr("_base"));
  is_leaf = kept(tensor.attr("is_leaf"));
}

PyObject* plain_address(PyObject*, PyObject* tensor) {
  return address(is_plain(tensor, ON_CPU_OR_CUDA), tensor);
}

PyObject* plain_cpu_address(PyObject*, PyObject* tensor) {
  return address(is_plain(tensor, ON_CPU), tensor);
}

PyObject* whole_address(PyObject*, PyObject* tensor) {
  return address(is_plain(tensor, ON_CPU_OR_CUDA) && is_whole(tensor), tensor);
}

PyObject* whole_cpu_address(PyObject*, PyObject* tensor) {
  return address(is_plain(tensor, ON_CPU) && is_whole(tensor), tensor);
}

PyObject* is_marked(PyObject*, PyObject* tensor) {
  PyObject* const of = source(tensor);
  const bool found = of && marked(tensor, of);
  Py_XDECREF(of);
  return PyErr_Occurred() ? nullptr : PyBool_FromLong(found);
}
