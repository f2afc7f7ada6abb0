#include "model/spec/checkpoint_storage.h"

namespace baton {

Result<Tokenizer> Checkpoint::LoadTokenizer() const {
  if (!storage->folder && storage->metadata.String("tokenizer.ggml.model") == nullptr)
    return Error::NotFound("{}: no tokenizer in the file", path)
        .Hint("give token ids instead of text");
  // Fewer tokens than rows is padding; those past the rows are left out, as they have no embedding.
  Result<Tokenizer> tokenizer = storage->folder ? Tokenizer::FromFolder(path, config.vocab)
                                                : Tokenizer::FromGguf(storage->metadata);
  if (!tokenizer.ok()) return std::move(tokenizer).error().At(path);
  if (tokenizer->vocab_size() > config.vocab)
    return Error::Corrupt("{}: the tokenizer has {} tokens, the model {}", path,
                          tokenizer->vocab_size(), config.vocab);
  return tokenizer;
}

}  // namespace baton
