// A model on disk, GGUF file or Hugging Face folder, checked: config, every tensor by its role, and
// the tokenizer.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "baton/error.h"
#include "formats/chat_source.h"
#include "formats/gguf.h"
#include "formats/tokenizer.h"
#include "model/spec/config.h"
#include "model/spec/router.h"
#include "model/spec/tensors.h"

namespace baton {

struct Checkpoint {
  ModelConfig config;
  TensorSet model;  // tensors that exist once; kOutput is the embedding when tied
  std::vector<TensorSet> layers;
  std::string fingerprint;  // "sha256:<hex>" over config, tensor names, types, shapes and a sample
                            // of each tensor's bytes
  std::string path;

  // Set for a folder that holds layer routers beside the model; otherwise null.
  std::shared_ptr<const RouterFile> router;

  // Opens `path` (a .gguf file or a folder with config.json), checks names, types and shapes of all
  // tensors and reports every mismatch in one error. The tokenizer is loaded separately, because
  // tests and converters need only the tensors. A folder with layer routers needs their flavour
  // (PublishedRouter), others take none.
  static Result<Checkpoint> Open(const std::string& path, std::string_view router_flavour = {});
  // kNotFound: the model comes without a tokenizer; it runs on token ids.
  Result<Tokenizer> LoadTokenizer() const;
  // The chat templates that came with it, perhaps none.
  Result<ChatSource> LoadChatSource() const;
  // For a tensor that is not read again soon: drops its pages from the process's resident memory.
  void Release(const TensorInfo& tensor) const;

  // Keeps the mapped files and the tensor table alive.
  struct Storage;
  std::shared_ptr<const Storage> storage;
};

}  // namespace baton
