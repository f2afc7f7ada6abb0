#include "train/program/data.h"

#include "base/mapped_file.h"
#include "formats/tokenizer.h"

namespace baton::train {

Result<Tensor> ReadTokenFile(const std::string& path, int64_t vocab, int64_t n,
                             torch::Device device) {
  BATON_ASSIGN(const MappedFile file, MappedFile::Open(path));
  const auto count = static_cast<int64_t>(file.bytes().size() / sizeof(uint16_t));
  if (count <= n)
    return Error::InvalidArgument("{}: {} tokens, expected more than a row of {}", path, count, n);
  // LibTorch has no unsigned type of 16 bits.
  const Tensor ids =
      torch::from_blob(const_cast<std::byte*>(file.bytes().data()), {count}, torch::kInt16)
          .to(torch::kInt32)
          .bitwise_and(0xffff);
  if (const int64_t most = ids.max().item<int64_t>(); most >= vocab)
    return Error::Corrupt("{}: token {}, the vocabulary has {}", path, most, vocab)
        .Hint("encode the text with the tokenizer that the model gets");
  return ids.to(device);
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
