// GGUF v2 and v3: a memory-mapped file of metadata and tensors. Nothing in it is trusted before it
// is checked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/dtype.h"
#include "baton/error.h"

namespace baton {

// One tensor of a file. `shape` is row-major, outermost dimension first (GGUF stores the reverse).
struct TensorInfo {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  const std::byte* data = nullptr;  // inside the mapping; may be unaligned in safetensors
  int64_t bytes = 0;
  int64_t elements() const {
    int64_t n = 1;
    for (int64_t d : shape) n *= d;
    return n;
  }
};

// Integers of every width become int64_t, floats double; arrays of numbers and strings are kept,
// nested arrays refused.
using MetaValue = std::variant<int64_t, double, bool, std::string, std::vector<int64_t>,
                               std::vector<double>, std::vector<std::string>>;

class Metadata {
 public:
  std::map<std::string, MetaValue, std::less<>> values;

  // Absent or of another kind: nullopt / nullptr. Int accepts bools, Float accepts ints.
  std::optional<int64_t> Int(std::string_view key) const;
  std::optional<double> Float(std::string_view key) const;
  std::optional<bool> Bool(std::string_view key) const;
  const std::string* String(std::string_view key) const;
  const std::vector<int64_t>* Ints(std::string_view key) const;
  const std::vector<double>* Floats(std::string_view key) const;
  const std::vector<std::string>* Strings(std::string_view key) const;
};

struct GgufFile {
  int version = 0;
  Metadata metadata;
  std::vector<TensorInfo> tensors;  // data points into the bytes given to ParseGguf
};

// Checks every count, length, offset and type against the size of `bytes`; errors name the offset
// and the tensor or key.
Result<GgufFile> ParseGguf(std::span<const std::byte> bytes);

}  // namespace baton
