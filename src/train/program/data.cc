#include "train/program/data.h"

#include "base/mapped_file.h"
#include "formats/tokenizer.h"

namespace baton::train {

Result<Tensor> ReadTokenFile(const std::string& path, torch::Device device) {
  BATON_ASSIGN(const MappedFile file, MappedFile::Open(path));
  const auto count = static_cast<int64_t>(file.bytes().size() / sizeof(uint16_t));
  if (count < 2) return Error::InvalidArgument("{}: holds {} tokens, expected more", path, count);
  // Ids are below 2^15, so both 16-bit types say the same.
  const Tensor ids =
      torch::from_blob(const_cast<std::byte*>(file.bytes().data()), {count}, torch::kInt16);
  return ids.to(torch::kInt32).to(device);
}

Result<int64_t> VocabularyOf(const std::string& folder) {
  BATON_ASSIGN(const Tokenizer tokenizer, Tokenizer::FromFolder(folder));
  return tokenizer.vocab_size();
}

Result<torch::Device> DeviceOf(const std::string& name) {
  const bool found = torch::cuda::is_available();
  if (name == "cuda" && !found)
    return Error::Unsupported("this LibTorch finds no GPU").Hint("train with --device cpu");
  return name == "cuda" || (name == "auto" && found) ? torch::Device(torch::kCUDA, 0)
                                                     : torch::Device(torch::kCPU);
}

Result<std::string> ReadFileText(const std::string& path) {
  BATON_ASSIGN(const MappedFile file, MappedFile::Open(path));
  return std::string(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
}

}  // namespace baton::train
