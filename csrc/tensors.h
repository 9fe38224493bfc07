// What a tensor says of itself, asked by Python's C API: nothing of libtorch is linked.
#pragma once
#include <Python.h>

// Looks up what will be asked, once. Throws what an import does.
void look_up_torch();

// The short ways through the one gate, for what is called often; 0 says nothing.
// The address of what is certainly contiguous memory of the CPU or of a CUDA device.
PyObject* plain_address(PyObject* module, PyObject* tensor);
// And of the CPU's.
PyObject* plain_cpu_address(PyObject* module, PyObject* tensor);
// The same of what is certainly all of its parameter, and no temporary.
PyObject* whole_address(PyObject* module, PyObject* tensor);
PyObject* whole_cpu_address(PyObject* module, PyObject* tensor);
// Whether it, or what it is a view of, has attributes.
PyObject* is_marked(PyObject* module, PyObject* tensor);
