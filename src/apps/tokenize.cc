// baton tokenize: the ids of a text.
#include "apps/command.h"

namespace baton::apps {
namespace {

struct TokenizeOptions {
  EngineFlags engine;
  TextSource text;
  bool bos = false, json = false;
};

void AddOptions(CLI::App* command, TokenizeOptions& o) {
  o.engine.AddModel(command);
  o.text.Add(command);
  command->add_flag("--bos", o.bos, "Put BOS first where the model adds one");
  AddJsonFlag(command, o.json);
  o.engine.Add(command);
}

Result<int> Run(const TokenizeOptions& o, const Invocation&) {
  BATON_ASSIGN(const std::string text, o.text.Read());
  BATON_ASSIGN(auto engine, o.engine.Load());
  const std::vector<int32_t> tokens = engine->Tokenize(text, o.bos, /*special=*/true);
  if (o.json) {
    BATON_TRY(Print(Json{{"tokens", tokens}}.dump() + "\n"));
    return 0;
  }
  std::string out;
  for (const int32_t token : tokens) {
    const std::string piece = engine->Detokenize(std::span(&token, 1), /*special=*/true);
    out += fmt::format("{:>7}  {}\n", token,
                       Json(piece).dump(-1, ' ', false, Json::error_handler_t::replace));
  }
  BATON_TRY(Print(out));
  Note(fmt::format("{} tokens", Count(static_cast<int64_t>(tokens.size()))));
  return 0;
}

}  // namespace

void AddTokenize(CLI::App& app, Action& action) {
  CLI::App* command = AddCommand(app, "tokenize", "Tokens of a text; control tokens are parsed",
                                 "  baton tokenize model.gguf --prompt 'Hello world'\n"
                                 "  baton tokenize model.gguf --file book.txt --bos --json");
  AddCommandWith<TokenizeOptions>(command, action, AddOptions, Run);
}

}  // namespace baton::apps
