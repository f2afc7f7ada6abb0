// A Hugging Face folder: which of its files hold the tokenizer.
#include <filesystem>
#include <string>
#include <string_view>

#include "base/mapped_file.h"
#include "formats/end_tokens.h"
#include "formats/tokenizer.h"
#include "formats/tokenizer_spec.h"

namespace baton {
namespace {

std::string_view Chars(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

bool Exists(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}

Result<TokenizerSpec> ReadModel(const std::string& folder) {
  const std::string json = folder + "/tokenizer.json";
  const std::string pieces = folder + "/tokenizer.model";
  const bool is_json = Exists(json);
  if (!is_json && !Exists(pieces)) {
    return Error::NotFound("{}: no tokenizer.json and no tokenizer.model", folder)
        .Hint(Exists(folder + "/vocab.json")
                  ? "vocab.json and merges.txt are not read; save the tokenizer again with a newer "
                    "transformers, which writes tokenizer.json"
                  : "copy the tokenizer files of the model into the folder");
  }
  const std::string& path = is_json ? json : pieces;
  BATON_ASSIGN(const MappedFile file, MappedFile::Open(path));
  auto spec = is_json ? SpecFromJson(Chars(file)) : SpecFromSentencePiece(Chars(file));
  if (!spec.ok()) return std::move(spec).error().At(path);
  // tokenizer.json contains these itself.
  const std::string added = folder + "/added_tokens.json";
  if (!is_json && Exists(added)) {
    BATON_ASSIGN(const MappedFile tokens, MappedFile::Open(added));
    const std::string map = folder + "/special_tokens_map.json";
    MappedFile special;
    if (Exists(map)) {
      BATON_ASSIGN(special, MappedFile::Open(map));
    }
    if (Status s = ApplyAddedTokens(Chars(tokens), Chars(special), *spec); !s.ok()) {
      return std::move(s).error().At(folder);
    }
  }
  return spec;
}

}  // namespace

Result<Tokenizer> Tokenizer::FromFolder(const std::string& folder, int64_t rows) {
  BATON_ASSIGN(TokenizerSpec spec, ReadModel(folder));
  const std::string config = folder + "/tokenizer_config.json";
  if (Exists(config)) {
    BATON_ASSIGN(const MappedFile file, MappedFile::Open(config));
    if (Status s = ApplyTokenizerConfig(Chars(file), spec); !s.ok()) {
      return std::move(s).error().At(config);
    }
  }
  BATON_TRY(AddEndsOfFolder(folder, spec));
  MarkEndTexts(spec);
  KeepFirstTokens(spec, rows);
  auto tokenizer = FromSpec(spec);
  if (!tokenizer.ok()) return std::move(tokenizer).error().At(folder);
  return tokenizer;
}

}  // namespace baton
