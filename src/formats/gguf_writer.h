// Writes GGUF v3: metadata, then tensors streamed from callbacks, so that writing a file of any
// size takes 16 MiB of memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "baton/error.h"
#include "formats/gguf.h"

namespace baton {

class ThreadPool;

struct GgufWriteOptions {
  ThreadPool* threads = nullptr;  // tensors are filled on these
  // Called with tensor bytes as they are written; false stops with Error::Cancelled.
  std::function<bool(int64_t done, int64_t total)> on_bytes;
};

class GgufWriter {
 public:
  // Fills `out` with the tensor's bytes from `offset` on. Both are multiples of the block's bytes.
  // Called in any order, and by several threads when the writer has them.
  using Fill = std::function<void(int64_t offset, std::span<std::byte> out)>;

  // Integers are written as UINT32 where they fit (INT32 if negative, INT64 beyond), floats as
  // FLOAT32, as other readers of the format expect.
  void Set(std::string key, MetaValue value);
  void Set(const Metadata& metadata);

  // `shape` is row-major, outermost first; its last dimension is a multiple of the type's block.
  void AddTensor(std::string name, DType dtype, std::vector<int64_t> shape, Fill fill);
  // As above with the bytes themselves.
  void AddTensor(std::string name, DType dtype, std::vector<int64_t> shape,
                 std::vector<std::byte> bytes);

  // Atomic: the file is complete or unchanged (base/atomic_file.h).
  Status WriteFile(const std::string& path, const GgufWriteOptions& options = {}) const;
  std::vector<std::byte> ToBytes() const;

 private:
  struct Tensor {
    std::string name;
    DType dtype;
    std::vector<int64_t> shape;
    int64_t bytes;
    Fill fill;
  };
  using Sink = std::function<Status(std::span<const std::byte>)>;
  std::vector<std::byte> Head(int64_t alignment) const;
  Status WriteTo(const Sink& sink, const GgufWriteOptions& options) const;

  Metadata metadata_;
  std::vector<Tensor> tensors_;
};

// The number of a type in GGUF files.
uint32_t GgufTypeId(DType dtype);

}  // namespace baton
