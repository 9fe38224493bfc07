// Python's door to the kernels: conversion of arguments, nothing else.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <atomic>
#include <string>
#include <vector>

#include "counts.h"
#include "cpu/units.h"
#include "cpu/whole.h"
#include "cuda/pieces.h"
#include "kernels.h"
#include "moments.h"
#include "tensors.h"
#ifdef FASTINIT_CUDA
#include "cuda/launch.h"
#endif

namespace py = pybind11;

namespace {

// Set when the module is imported. Whoever forces another does so while others fill: each call takes it once.
std::atomic<const Isa*> chosen = nullptr;

// A law with the parameters of one dtype, converted once and used by many calls.
struct PreparedLaw {
  int law, dtype;
  Params params;
};

PreparedLaw prepare(int law, int dtype, const std::array<float, 10>& p) {
  return {law, dtype, {p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9]}};
}

Window make_window(const PreparedLaw& law, uintptr_t data, uint64_t seed, uint64_t stream) {
  Window w{};
  w.data = reinterpret_cast<void*>(data);
  w.law = law.law;
  w.dtype = law.dtype;
  w.params = law.params;
  w.seed = seed;
  w.stream = stream;
  return w;
}

// Nobody is trusted: elements without an address are an error, whatever stands above.
void check_address(uintptr_t data, int64_t elements) {
  if (data == 0 && elements != 0)
    throw std::invalid_argument("a tensor of " + std::to_string(elements) +
                                " elements has no address");
}

int64_t product(const std::vector<int64_t>& sizes) {
  int64_t all = 1;
  for (int64_t size : sizes) all *= size;
  return all;
}

// A contiguous tensor that is the whole of its stream's elements 0, 1, ...: the short way.
void fill_run(const PreparedLaw& law, uintptr_t data, int64_t n, uint64_t seed, uint64_t stream,
              int threads) {
  if (n == 0) return;
  check_address(data, n);
  Window w = make_window(law, data, seed, stream);
  w.dims = 1;
  w.size[0] = n;
  w.local[0] = w.global[0] = 1;
  if (n < 4096) {  // not worth letting another thread in
    chosen.load()->fill_tile(w, tiling(w), 0);
    return;
  }
  py::gil_scoped_release nogil;
  fill_many_cpu(*chosen, &w, 1, threads);
}

PyObject* fill_contiguous(PyObject*, PyObject* const* given, Py_ssize_t count) try {
  if (count != 6) throw py::type_error("fill_contiguous takes 6 arguments");
  uint64_t numbers[5];
  for (int i = 0; i < 5; ++i) numbers[i] = PyLong_AsUnsignedLongLong(given[i + 1]);
  if (PyErr_Occurred()) return nullptr;
  fill_run(py::handle(given[0]).cast<const PreparedLaw&>(), numbers[0], (int64_t)numbers[1],
           numbers[2], numbers[3], (int)numbers[4]);
  Py_RETURN_NONE;
} catch (const py::builtin_exception& error) {
  error.set_error();
  return nullptr;
} catch (const std::exception& error) {
  PyErr_SetString(PyExc_ValueError, error.what());
  return nullptr;
}

typedef std::vector<int64_t> Ints;
typedef std::tuple<PreparedLaw, uintptr_t, uint64_t, uint64_t, uint64_t, Ints, Ints, Ints> Request;

// Each request: law, address, seed, stream, offset, sizes, local strides, global strides.
std::vector<Window> make_windows(const std::vector<Request>& requests) {
  std::vector<Window> windows;
  for (const Request& r : requests) {
    const auto& [law, data, seed, stream, offset, size, local, global] = r;
    if (size.size() > MAX_DIMS || size.size() != local.size() || size.size() != global.size())
      throw std::invalid_argument("a window has at most " + std::to_string(MAX_DIMS) +
                                  " dimensions, with one stride of each kind");
    check_address(data, product(size));
    Window w = make_window(law, data, seed, stream);
    w.offset = offset;
    w.dims = (int)size.size();
    for (int d = 0; d < w.dims; ++d)
      w.size[d] = size[d], w.local[d] = local[d], w.global[d] = global[d];
    windows.push_back(canonical(w));
  }
  return windows;
}

void fill_many(const std::vector<Request>& requests, int threads) {
  const std::vector<Window> windows = make_windows(requests);
  py::gil_scoped_release nogil;
  fill_many_cpu(*chosen, windows.data(), (int64_t)windows.size(), threads);
}

// Of blocks: packed values, scales; sizes in blocks, strides of packed values in bytes, of scales, and global
// ones and the offset in elements; the format and the tensor's scale.
typedef std::tuple<PreparedLaw, uintptr_t, uintptr_t, uint64_t, uint64_t, uint64_t, Ints, Ints,
                   Ints, Ints, int, float>
    BlockRequest;

void fill_blocks(const std::vector<BlockRequest>& requests, int threads) {
  std::vector<BlockWindow> windows;
  for (const BlockRequest& r : requests) {
    const auto& [law, data, scale, seed, stream, offset, size, local, scale_local, global, format,
                 tensor_scale] = r;
    const size_t dims = size.size();
    if (dims < 1 || dims > MAX_DIMS || dims != local.size() || dims != scale_local.size() ||
        dims != global.size())
      throw std::invalid_argument("blocks have 1 to " + std::to_string(MAX_DIMS) +
                                  " dimensions, with one stride of each kind");
    check_address(data, product(size));
    check_address(scale, product(size));
    BlockWindow b{make_window(law, data, seed, stream),
                  reinterpret_cast<uint8_t*>(scale),
                  {},
                  format,
                  tensor_scale};
    b.window.offset = offset;
    b.window.dims = (int)dims;
    for (size_t d = 0; d < dims; ++d) {
      b.window.size[d] = size[d], b.window.local[d] = local[d], b.window.global[d] = global[d];
      b.scale_local[d] = scale_local[d];
    }
    windows.push_back(b);
  }
  py::gil_scoped_release nogil;
  fill_blocks_cpu(*chosen, windows.data(), (int64_t)windows.size(), threads);
}

// What the CUDA kernel gets for requests. There without CUDA too, for the tests that run the kernel
// on the CPU.
struct Pieces {
  std::vector<Piece> pieces;

  explicit Pieces(const std::vector<Request>& requests) {
    const std::vector<Window> windows = make_windows(requests);
    pieces = cut(windows.data(), (int64_t)windows.size());
  }
  py::bytes bytes() const {
    return py::bytes((const char*)pieces.data(), pieces.size() * sizeof(Piece));
  }
  uint32_t tiles() const { return pieces.empty() ? 0 : pieces.back().end_tile; }
};

// Each: dtype, address, sizes, strides, by column; and where its results go.
typedef std::tuple<int, uintptr_t, Ints, Ints, bool, uintptr_t> Asked;

Read make_read(const Asked& asked) {
  const auto& [dtype, data, size, stride, by_column, result] = asked;
  if (size.empty() || size.size() > MAX_DIMS || size.size() != stride.size())
    throw std::invalid_argument("a tensor has 1 to " + std::to_string(MAX_DIMS) +
                                " dimensions, with one stride each");
  check_address(data, product(size));
  check_address(result, 1);
  Read r{reinterpret_cast<const void*>(data), dtype, by_column, (int)size.size(), {}, {}};
  for (int d = 0; d < r.dims; ++d) r.size[d] = size[d], r.stride[d] = stride[d];
  return r;
}

// The moments of contiguous values: the short way.
void moments_contiguous(int dtype, uintptr_t data, int64_t n, uintptr_t result, bool higher,
                        int threads) {
  check_address(data, n);
  check_address(result, 1);
  const Read read{reinterpret_cast<const void*>(data), dtype, false, 1, {n}, {1}};
  double* const to = reinterpret_cast<double*>(result);
  moments_many_cpu(*chosen, &read, &to, higher, 1, threads);
}

Ints still_units(int dtype, uintptr_t data, int64_t outer, int64_t units, int64_t inner,
                 bool from_zero) {
  check_address(data, outer * units * inner);
  return still_units_cpu(reinterpret_cast<const void*>(data), dtype, outer, units, inner,
                         from_zero);
}

void zero_smallest(uintptr_t keys, int64_t rows, int64_t columns, int64_t zeros, uintptr_t elements,
                   int64_t size, int threads) {
  check_address(keys, rows * columns);
  check_address(elements, rows * columns);
  zero_smallest_cpu((const uint32_t*)keys, rows, columns, zeros, (void*)elements, size, threads);
}

void orthonormal_rows(bool float64, uintptr_t gaussians, int64_t few, int64_t many, double gain,
                      double least) {
  check_address(gaussians, few * many);
  orthonormal_rows_cpu((void*)gaussians, float64, few, many, gain, least);
}

struct Readings {
  std::vector<Read> reads;
  std::vector<double*> results;
  bool higher;

  Readings(const std::vector<Asked>& readings, bool higher_too) : higher(higher_too) {
    for (const Asked& asked : readings) {
      reads.push_back(make_read(asked));
      results.push_back(reinterpret_cast<double*>(std::get<5>(asked)));
    }
  }
  void measure(int threads) const {
    moments_many_cpu(*chosen, reads.data(), results.data(), higher, (int64_t)reads.size(), threads);
  }
#ifdef FASTINIT_CUDA
  std::vector<Reading> numbered() const {
    std::vector<Moments*> to;
    for (double* result : results) to.push_back(reinterpret_cast<Moments*>(result));
    return number(reads.data(), to.data(), (int64_t)reads.size());
  }
#endif
};

// Each: kept, normal, over, over itself, scaling, block, largest, its exponent.
typedef std::tuple<double, double, double, bool, int, int, float, int> FormatNumbers;

// Each of `counted`: a reading, whose results are counts, and the raw moments.
struct Counts {
  Counting how{};
  std::vector<Counted> counted;

  Counts(const std::vector<FormatNumbers>& formats, bool histogram,
         const std::vector<std::pair<Asked, uintptr_t>>& asked) {
    if (formats.size() > MOST_FORMATS)
      throw std::invalid_argument("at most " + std::to_string(MOST_FORMATS) + " formats");
    int in_blocks = 0;
    for (const FormatNumbers& format : formats) in_blocks += std::get<5>(format) > 0;
    if (in_blocks > MOST_IN_BLOCKS)
      throw std::invalid_argument("at most " + std::to_string(MOST_IN_BLOCKS) +
                                  " formats with blocks");
    how.formats = (int)formats.size();
    how.histogram = histogram;
    for (size_t i = 0; i < formats.size(); ++i) {
      const auto& [kept, normal, over, itself, scaling, block, largest, exponent] = formats[i];
      how.format[i] = {kept, normal, over, itself, scaling, block, largest, exponent};
    }
    for (const auto& [reading, moments] : asked) {
      check_address(moments, 1);
      counted.push_back({make_read(reading), reinterpret_cast<Moments*>(moments),
                         reinterpret_cast<int64_t*>(std::get<5>(reading))});
    }
  }
  void count(int threads) const {
    count_many_cpu(*chosen, how, counted.data(), (int64_t)counted.size(), threads);
  }
  void measure(bool higher, int threads) const {
    measure_and_count_cpu(*chosen, how, counted.data(), (int64_t)counted.size(), higher, threads);
  }
#ifdef FASTINIT_CUDA
  std::vector<Reading> numbered(bool behind) const {
    return number(how, counted.data(), (int64_t)counted.size(), behind);
  }
#endif
};

void force_isa(const std::string& name) {
  for (int i = 0; i < ISA_COUNT; ++i) {
    if (name != ISAS[i].name) continue;
    if (!ISAS[i].usable) throw std::invalid_argument("this CPU cannot run the " + name + " build");
    chosen = &ISAS[i];
    return;
  }
  std::string names;
  for (int i = 0; i < ISA_COUNT; ++i) names += std::string(i ? ", " : "") + ISAS[i].name;
  throw std::invalid_argument("no CPU build is named '" + name + "'; there are " + names);
}

py::dict isas() {
  py::dict all;
  for (int i = 0; i < ISA_COUNT; ++i) all[ISAS[i].name] = ISAS[i].usable;
  return all;
}

// What pybind11 would take longer for than the function itself.
PyMethodDef short_ways[] = {
    {"plain_address", plain_address, METH_O, nullptr},
    {"plain_cpu_address", plain_cpu_address, METH_O, nullptr},
    {"whole_address", whole_address, METH_O, nullptr},
    {"whole_cpu_address", whole_cpu_address, METH_O, nullptr},
    {"is_marked", is_marked, METH_O, nullptr},
    {"fill_contiguous", (PyCFunction)(void (*)())fill_contiguous, METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

// All else that the module keeps is written as it is imported, and its objects as they are made.
PYBIND11_MODULE(_native, m, py::mod_gil_not_used()) {
  chosen = &best_isa();
  look_up_torch();
  if (PyModule_AddFunctions(m.ptr(), short_ways)) throw py::error_already_set();
  m.doc() = "fastinit's native kernels";
  m.attr("__version__") = FASTINIT_VERSION;
  m.attr("interface") = FASTINIT_INTERFACE;
  m.attr("cuda_archs") = FASTINIT_CUDA_ARCHS;
  m.attr("cuda_missing") = FASTINIT_CUDA_MISSING;
  m.attr("compiler") = __VERSION__;
  m.attr("MAX_DIMS") = MAX_DIMS;
  py::class_<PreparedLaw>(m, "PreparedLaw")
      .def(py::init(&prepare), py::arg("law"), py::arg("dtype"), py::arg("params"));
  m.def("fill_many", &fill_many);
  m.def("fill_blocks", &fill_blocks);
  m.def("moments_contiguous", &moments_contiguous, py::call_guard<py::gil_scoped_release>());
  m.def("still_units", &still_units, py::call_guard<py::gil_scoped_release>());
  m.def("zero_smallest", &zero_smallest, py::call_guard<py::gil_scoped_release>());
  m.def("orthonormal_rows", &orthonormal_rows);
  py::class_<Readings>(m, "Readings")
      .def(py::init<const std::vector<Asked>&, bool>())
#ifdef FASTINIT_CUDA
      .def_property_readonly(
          "scratch_bytes", [](const Readings& r) { return scratch_bytes(r.numbered(), r.higher); })
      .def("measure_on",
           [](const Readings& r, int device, uintptr_t stream, uintptr_t scratch) {
             py::gil_scoped_release nogil;
             moments_many_cuda(r.numbered(), nullptr, r.higher, device, (void*)stream,
                               (void*)scratch);
           })
#endif
      .def("measure", &Readings::measure, py::call_guard<py::gil_scoped_release>());
  py::class_<Counts>(m, "Counts")
      .def(py::init<const std::vector<FormatNumbers>&, bool,
                    const std::vector<std::pair<Asked, uintptr_t>>&>())
#ifdef FASTINIT_CUDA
      .def("scratch_bytes",
           [](const Counts& c, bool higher) { return scratch_bytes(c.numbered(false), higher); })
      .def("measure_on",
           [](const Counts& c, bool higher, int device, uintptr_t stream, uintptr_t scratch) {
             py::gil_scoped_release nogil;
             moments_many_cuda(c.numbered(false), &c.how, higher, device, (void*)stream,
                               (void*)scratch);
           })
      .def_property_readonly("staged_bytes",
                             [](const Counts& c) { return staged_bytes(c.numbered(true)); })
      .def("count_on",
           [](const Counts& c, int device, uintptr_t stream, uintptr_t scratch) {
             py::gil_scoped_release nogil;
             count_many_cuda(c.numbered(true), c.how, device, (void*)stream, (void*)scratch);
           })
#endif
      .def("count", &Counts::count, py::call_guard<py::gil_scoped_release>())
      .def("measure", &Counts::measure, py::call_guard<py::gil_scoped_release>());
  py::class_<Pieces>(m, "Pieces")
      .def(py::init<const std::vector<Request>&>())
      .def("__len__", [](const Pieces& p) { return p.pieces.size(); })
      .def("__bytes__", &Pieces::bytes)
#ifdef FASTINIT_CUDA
      .def_property_readonly("staged_bytes", [](const Pieces& p) { return staged_bytes(p.pieces); })
      .def("fill",
           [](const Pieces& p, int device, uintptr_t stream, uintptr_t staging) {
             py::gil_scoped_release nogil;
             fill_many_cuda(p.pieces, device, (void*)stream, (void*)staging);
           })
#endif
      .def_property_readonly("tiles", &Pieces::tiles);
#ifdef FASTINIT_CUDA
  m.attr("nvcc") = FASTINIT_NVCC;
  m.def("cuda_missing_on", [](int device) { return cuda_missing(device, FASTINIT_CUDA_ARCHS); });
  m.def("cuda_driver", &cuda_driver);
#endif
  // How CUDA's pieces travel and are written.
  m.attr("THREADS") = THREADS;
  m.attr("SLOTS") = SLOTS;
  m.attr("FEW") = FEW;
  m.attr("PARCEL") = PARCEL;
  // The order of the sums of moments.
  m.attr("LANES") = LANES;
  m.attr("SHORT") = SHORT;
  m.attr("CHUNK") = CHUNK;
  m.attr("CHUNKS") = CHUNKS;
  m.def("isa", [] { return chosen.load()->name; });
  m.def("isas", &isas);
  m.def("force_isa", &force_isa);
}
