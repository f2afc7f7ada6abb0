// Token files, and where a run computes.
#pragma once

#include <string>

#include "baton/error.h"
#include "train/torch.h"

namespace baton::train {

// [tokens] of a file of 16-bit ids, as `baton-train encode` writes it.
Result<Tensor> ReadTokenFile(const std::string& path, torch::Device device);
// Tokens of a tokenizer's folder, including the control tokens of the tasks.
Result<int64_t> VocabularyOf(const std::string& folder);
// "auto", "cpu" or "cuda".
Result<torch::Device> DeviceOf(const std::string& name);
Result<std::string> ReadFileText(const std::string& path);

}  // namespace baton::train
