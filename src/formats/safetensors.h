// Safetensors: one file, or shards named by model.safetensors.index.json. Nothing in them is
// trusted before it is checked.
#pragma once

#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "baton/error.h"
#include "formats/gguf.h"

namespace baton {

// The tensors of one file in the order of their data; types F32, F16, BF16. Errors: a header that
// is not JSON or too long, an unknown type, bytes that disagree with shape x type, ranges outside
// the data or overlapping, a name given twice.
// `metadata`, if given, receives the header's own keys; those that are not strings are left out.
using SafetensorsMetadata = std::map<std::string, std::string, std::less<>>;
Result<std::vector<TensorInfo>> ParseSafetensors(std::span<const std::byte> bytes,
                                                 SafetensorsMetadata* metadata = nullptr);

struct SafetensorsFolder {
  std::vector<MappedFile> files;
  std::vector<TensorInfo> tensors;  // of all files; data points into them
  SafetensorsMetadata metadata;     // of all files; a key's first value
};

// model.safetensors, or the shards of model.safetensors.index.json. A shard that lacks a tensor the
// index promises, and a shard outside the folder, are errors, and so are shards whose metadata
// differ.
Result<SafetensorsFolder> OpenSafetensorsFolder(const std::string& folder);

// One tensor to be written; `data` holds shape x type bytes.
struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  std::vector<std::byte> data;
};
Status WriteSafetensors(const std::string& path, const std::vector<SafetensorsEntry>& tensors,
                        const SafetensorsMetadata& metadata = {});

}  // namespace baton
