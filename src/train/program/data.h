// Token files, and where a run computes.
#pragma once

#include <string>

#include "baton/error.h"
#include "train/torch.h"

namespace baton::train {

// [tokens] of a file of 16-bit ids, as `baton-train encode` writes it: ids below `vocab`, more of
// them than a row's `n`.
Result<Tensor> ReadTokenFile(const std::string& path, int64_t vocab, int64_t n,
                             torch::Device device);
// Tokens of a tokenizer's folder, including the control tokens of the tasks.
Result<int64_t> VocabularyOf(const std::string& folder);
// "auto", "cpu" or "cuda".
Result<torch::Device> DeviceOf(const std::string& name);
Result<std::string> ReadFileText(const std::string& path);

}  // namespace baton::train
