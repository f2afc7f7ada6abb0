// baton tokenize, baton detokenize: text to ids and back. Neither loads weights.
#include "apps/command.h"
#include "formats/printable.h"

namespace baton::apps {
namespace {

struct TokenizeOptions {
  EngineFlags engine;
  TextSource text;
  bool bos = false, json = false;
};

struct DetokenizeOptions {
  EngineFlags engine;
  std::string file;
  std::vector<int32_t> ids;
  bool special = false;
};

void AddTokenizeOptions(CLI::App* command, TokenizeOptions& o) {
  o.engine.AddModel(command);
  o.text.Add(command);
  command->add_flag("--bos", o.bos, "Put BOS first where the model adds one");
  AddJsonFlag(command, o.json);
  o.engine.Add(command);
}

void AddDetokenizeOptions(CLI::App* command, DetokenizeOptions& o) {
  o.engine.AddModel(command);
  CLI::Option* ids =
      command->add_option("IDS", o.ids, "Token ids; without them they are read from --token-file");
  command
      ->add_option("--token-file", o.file,
                   "JSON array of token ids; -, the default: standard input")
      ->excludes(ids);
  command->add_flag("--special", o.special, "Write control tokens too");
}

Result<std::unique_ptr<Engine>> LoadTokenizer(EngineFlags flags) {
  flags.options.weights = false;
  BATON_ASSIGN(auto engine, flags.Load());
  if (!engine->info().has_tokenizer)
    return Error::NotFound("{}: the model has no tokenizer", flags.model);
  return engine;
}

// As a JSON string; what a terminal would act on is escaped, though JSON allows much of it.
std::string Quoted(const std::string& text) {
  const std::string json = Json(text).dump(-1, ' ', false, Json::error_handler_t::replace);
  std::string out;
  for (size_t at = 0; at < json.size();) {
    const Utf8Char c = DecodeUtf8(std::string_view(json).substr(at));
    const std::string bytes = json.substr(at, static_cast<size_t>(c.length));
    out += Displayable(bytes) == bytes ? bytes
                                       : fmt::format("\\u{:04x}", static_cast<uint32_t>(c.code));
    at += bytes.size();
  }
  return out;
}

Result<int> Tokenize(const TokenizeOptions& o, const Invocation&) {
  BATON_ASSIGN(const std::string text, o.text.Read());
  BATON_ASSIGN(auto engine, LoadTokenizer(o.engine));
  const std::vector<int32_t> tokens = engine->Tokenize(text, o.bos, /*special=*/true);
  if (o.json) {
    BATON_TRY(Print(Json{{"tokens", tokens}}.dump() + "\n"));
    return 0;
  }
  std::string out;
  for (const int32_t token : tokens) {
    const std::string piece = engine->Detokenize(std::span(&token, 1), /*special=*/true);
    out += fmt::format("{:>7}  {}\n", token, Quoted(piece));
  }
  BATON_TRY(Print(out));
  Note(fmt::format("{} tokens", Count(static_cast<int64_t>(tokens.size()))));
  return 0;
}

Result<int> Detokenize(const DetokenizeOptions& o, const Invocation&) {
  std::vector<int32_t> ids = o.ids;
  if (ids.empty()) {
    BATON_ASSIGN(ids, ReadTokens(o.file.empty() ? "-" : o.file));
  }
  BATON_ASSIGN(auto engine, LoadTokenizer(o.engine));
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= engine->info().vocab)
      return Error::InvalidArgument("token {} at position {} is outside the vocabulary of {}",
                                    ids[i], i, engine->info().vocab);
  }
  BATON_TRY(Print(engine->Detokenize(ids, o.special)));
  return 0;
}

}  // namespace

void AddTokenize(CLI::App& app, Action& action) {
  CLI::App* command = AddCommand(app, "tokenize", "Tokens of a text; control tokens are parsed",
                                 "  baton tokenize model.gguf --prompt 'Hello world'\n"
                                 "  baton tokenize model.gguf --file book.txt --bos --json");
  AddCommandWith<TokenizeOptions>(command, action, AddTokenizeOptions, Tokenize);
}

void AddDetokenize(CLI::App& app, Action& action) {
  CLI::App* command = AddCommand(app, "detokenize", "The text of token ids, byte for byte",
                                 "  baton detokenize model.gguf 504 3575 282 4649\n"
                                 "  baton detokenize model.gguf --token-file ids.json --special");
  AddCommandWith<DetokenizeOptions>(command, action, AddDetokenizeOptions, Detokenize);
}

}  // namespace baton::apps
