// Argument checks shared by the CPU and CUDA bindings. A failed check reaches Python as ValueError or IndexError.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>

namespace modernbert_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline const char* dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Bool: return "bool";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Char: return "int8";
    case ScalarType::Short: return "int16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    default: return "a dtype without a kernel";
  }
}

inline std::string shape_text(const Tensor& x) {
  std::ostringstream text;
  text << "(";
  for (int64_t i = 0; i < x.dim(); ++i) text << (i ? ", " : "") << x.size(i);
  text << (x.dim() == 1 ? ",)" : ")");
  return text.str();
}

/// How a part of a message is written: a tensor as its shape, anything else as itself.
template <class Part>
const Part& shown(const Part& part) {
  return part;
}
inline std::string shown(const Tensor& x) { return shape_text(x); }

template <class Error, class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << shown(parts));
  throw Error(text.str());
}

/// Throws ValueError with the concatenated parts unless ok.
template <class... Parts>
void check(bool ok, const Parts&... parts) {
  if (!ok) fail<std::invalid_argument>(parts...);
}

/// Throws IndexError with the concatenated parts unless ok.
template <class... Parts>
void check_index(bool ok, const Parts&... parts) {
  if (!ok) fail<std::out_of_range>(parts...);
}

inline void check_dim(const Tensor& x, const char* name, int64_t dim) {
  check(x.dim() == dim, name, " must have ", dim, " dimensions, got shape ", x);
}

/// shape in words, such as "(T, C)", is what the sizes stand for.
inline void check_shape(const Tensor& x, const char* name, std::initializer_list<int64_t> sizes, const char* shape) {
  bool same = x.dim() == static_cast<int64_t>(sizes.size());
  int64_t axis = 0;
  for (int64_t size : sizes) same = same && x.size(axis++) == size;
  if (same) return;
  std::ostringstream wanted;
  for (int64_t size : sizes) wanted << (wanted.tellp() > 0 ? ", " : "") << size;
  fail<std::invalid_argument>(name, " must be ", shape, " = (", wanted.str(),
                              sizes.size() == 1 ? ",), got " : "), got ", x);
}

inline void check_dtype(const Tensor& x, const char* name, std::initializer_list<ScalarType> allowed) {
  for (ScalarType dtype : allowed)
    if (x.scalar_type() == dtype) return;
  std::ostringstream names;
  for (ScalarType dtype : allowed) {
    if (names.str() == dtype_name(dtype)) continue;  // an allowed dtype that happens to equal another
    names << (names.tellp() > 0 ? ", " : "") << dtype_name(dtype);
  }
  fail<std::invalid_argument>(name, " must be ", names.str(), ", got ", dtype_name(x.scalar_type()));
}

inline void check_floating(const Tensor& x, const char* name) {
  check_dtype(x, name, {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16, ScalarType::Half});
}

inline void check_same_device(const Tensor& x, const char* name, const Tensor& like, const char* like_name) {
  check(x.device() == like.device(), name, " and ", like_name, " must be on the same device");
}

}  // namespace modernbert_fast
