// The torch-free module modernbert_fast._host: what the machine is, how this was built, how to pack texts.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <vector>

#include "../cpu/isa/cpuid.h"
#include "packing.h"

namespace py = pybind11;

namespace modernbert_fast::host {

using Integers = py::array_t<int64_t, py::array::c_style | py::array::forcecast>;

static std::vector<std::string> cpu_flags() {
  size_t count;
  const cpu::CpuFlag* flags = cpu::cpu_flags(&count);
  std::vector<std::string> present;
  for (size_t i = 0; i < count; ++i)
    if (flags[i].present) present.emplace_back(flags[i].name);
  return present;
}

static py::dict build_info() {
  py::dict info;
  info["compiler"] = MODERNBERT_FAST_COMPILER;
  info["flags"] = MODERNBERT_FAST_FLAGS;
  info["isas"] = MODERNBERT_FAST_ISAS;
  return info;
}

static Integers array(const std::vector<int64_t>& values) {
  return Integers(static_cast<py::ssize_t>(values.size()), values.data());
}

static Integers best_fit_array(const Integers& lengths, int64_t capacity) {
  std::vector<int64_t> bins;
  {
    py::gil_scoped_release release;
    bins = best_fit(lengths.data(), lengths.size(), capacity);
  }
  return array(bins);
}

static py::tuple arrays(const Packed& bins) { return py::make_tuple(array(bins.items), array(bins.bounds)); }

static py::tuple add(Bins& bins, const Integers& items, const Integers& lengths, int64_t capacity) {
  if (items.size() != lengths.size()) throw py::value_error("as many items as lengths");
  return arrays(bins.add(items.data(), lengths.data(), items.size(), capacity));
}

static py::tuple flush(Bins& bins) {
  const Packed open = bins.open();
  bins.clear();
  return arrays(open);
}

static py::tuple state(const Bins& bins) {
  const Packed open = bins.open();
  const auto [rooms, numbers] = bins.keys();
  return py::make_tuple(array(open.items), array(open.bounds), array(rooms), array(numbers));
}

// Checked in Python: modernbert_fast/packing.py.
static void load(Bins& bins, const Integers& items, const Integers& bounds, const Integers& rooms,
                 const Integers& numbers, int64_t opened) {
  bins.load(items.data(), bounds.data(), rooms.data(), numbers.data(), rooms.size(), opened);
}

}  // namespace modernbert_fast::host

PYBIND11_MODULE(_host, m) {
  using namespace modernbert_fast::host;
  m.def("cpu_flags", &cpu_flags, "Names of the instruction sets that this processor and operating system support.");
  m.def("build_info", &build_info, "Compiler, flags and instruction sets of the CPU operators.");
  m.def("best_fit", &best_fit_array, py::arg("lengths"), py::arg("capacity"),
        "lengths (N,) int64, each at most capacity -> the bin of each text (N,) int64.");
  py::class_<Bins>(m, "Bins", "What modernbert_fast.packing.Packer is made of; arrays are int64, checked there.")
      .def(py::init<size_t>(), py::arg("limit"))
      .def_property_readonly("opened", &Bins::opened)
      .def("add", &add, py::arg("items"), py::arg("lengths"), py::arg("capacity"), "-> items, bounds")
      .def("flush", &flush, "-> items, bounds")
      .def("state", &state, "-> items, bounds, rooms, numbers")
      .def("load", &load, py::arg("items"), py::arg("bounds"), py::arg("rooms"), py::arg("numbers"), py::arg("opened"));
}
