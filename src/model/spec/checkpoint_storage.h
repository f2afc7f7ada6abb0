// The data that a Checkpoint points into.
#pragma once

#include <vector>

#include "base/mapped_file.h"
#include "formats/gguf.h"
#include "model/spec/checkpoint.h"

namespace baton {

struct Checkpoint::Storage {
  std::vector<MappedFile> files;
  std::vector<TensorInfo> tensors;
  Metadata metadata;    // of the GGUF file, or config.json
  bool folder = false;  // Hugging Face form
};
using CheckpointStorage = Checkpoint::Storage;

}  // namespace baton
