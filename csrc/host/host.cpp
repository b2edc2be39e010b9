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

static void add(Waiting& waiting, const Integers& items, const Integers& lengths) {
  if (items.size() != lengths.size()) throw py::value_error("as many items as lengths");
  waiting.add(items.data(), lengths.data(), items.size());
}

static Integers take(Waiting& waiting, int64_t capacity, size_t texts, int64_t tokens) {
  return array(waiting.take(capacity, texts, tokens));
}

static py::tuple texts(const Waiting& waiting) {
  const auto [items, lengths] = waiting.texts();
  return py::make_tuple(array(items), array(lengths));
}

}  // namespace modernbert_fast::host

PYBIND11_MODULE(_host, m) {
  using namespace modernbert_fast::host;
  m.def("cpu_flags", &cpu_flags, "Names of the instruction sets that this processor and operating system support.");
  m.def("build_info", &build_info, "Compiler, flags and instruction sets of the CPU operators.");
  m.def("best_fit", &best_fit_array, py::arg("lengths"), py::arg("capacity"),
        "lengths (N,) int64, each at most capacity -> the bin of each text (N,) int64.");
  py::class_<Waiting>(m, "Waiting", "What modernbert_fast.packing.Packer is made of; arrays are int64, checked there.")
      .def(py::init<>())
      .def("add", &add, py::arg("items"), py::arg("lengths"))
      .def("take", &take, py::arg("capacity"), py::arg("texts"), py::arg("tokens"), "-> items of a bin")
      .def("texts", &texts, "-> items, lengths");
}
