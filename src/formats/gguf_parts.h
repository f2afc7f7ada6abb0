// A model in one GGUF file or in several.
#pragma once

#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "baton/error.h"
#include "formats/gguf.h"

namespace baton {

struct GgufModel {
  std::vector<MappedFile> files;
  std::vector<TensorInfo> tensors;  // of all files; data points into them
  Metadata metadata;                // of the first file
};

// `path` is the file, or any of NAME-00001-of-0000N.gguf, whose others lie beside it. Errors: a
// part that is missing, belongs to another model, or lacks tensors; a tensor in two parts.
Result<GgufModel> OpenGgufModel(const std::string& path);

}  // namespace baton
