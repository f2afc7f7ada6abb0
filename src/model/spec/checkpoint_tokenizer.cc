#include "model/spec/checkpoint_storage.h"

namespace baton {

Result<Tokenizer> Checkpoint::LoadTokenizer() const {
  if (!storage->folder && storage->metadata.String("tokenizer.ggml.model") == nullptr)
    return Error::NotFound("{}: no tokenizer in the file", path)
        .Hint("give token ids instead of text");
  // A vocabulary with fewer tokens than rows is padded. Tokens past the rows have no embedding and
  // are left out.
  Result<Tokenizer> tokenizer = storage->folder ? Tokenizer::FromFolder(path, config.vocab)
                                                : Tokenizer::FromGguf(storage->metadata);
  if (!tokenizer.ok()) return std::move(tokenizer).error().At(path);
  if (tokenizer->vocab_size() > config.vocab)
    return Error::Corrupt("{}: the tokenizer has {} tokens, the model {}", path,
                          tokenizer->vocab_size(), config.vocab);
  return tokenizer;
}

}  // namespace baton
