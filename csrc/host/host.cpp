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

using Lengths = py::array_t<int64_t, py::array::c_style | py::array::forcecast>;

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

static py::array_t<int64_t> best_fit_array(const Lengths& lengths, int64_t capacity) {
  std::vector<int64_t> bins;
  {
    py::gil_scoped_release release;
    bins = best_fit(lengths.data(), lengths.size(), capacity);
  }
  return py::array_t<int64_t>(static_cast<py::ssize_t>(bins.size()), bins.data());
}

}  // namespace modernbert_fast::host

PYBIND11_MODULE(_host, m) {
  using namespace modernbert_fast::host;
  m.def("cpu_flags", &cpu_flags, "Names of the instruction sets that this processor and operating system support.");
  m.def("build_info", &build_info, "Compiler, flags and instruction sets of the CPU operators.");
  m.def("best_fit", &best_fit_array, py::arg("lengths"), py::arg("capacity"),
        "lengths (N,) int64, each at most capacity -> the bin of each text (N,) int64.");
}
