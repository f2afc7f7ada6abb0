#include "formats/chat.h"

#include <jinja/lexer.h>
#include <jinja/parser.h>
#include <jinja/runtime.h>
#include <jinja/value.h>

#include <algorithm>
#include <ctime>
#include <nlohmann/json.hpp>
#include <utility>

#include "formats/printable.h"

namespace baton {
namespace {

using Json = nlohmann::ordered_json;  // templates print members in the order they were given
using jinja::mk_val;

constexpr size_t kMaxSource = size_t{1} << 18;
constexpr int64_t kMaxSteps = 300'000, kStepsPerTurn = 2'000;
constexpr int64_t kMaxBytes = int64_t{1} << 25, kBytesPerTurn = 1 << 16;
constexpr int64_t kBytesPerByte = 256;  // bytes allowed per byte of the conversation
// The parser and the tree's destructor recurse; published templates stay below a tenth of these.
constexpr int kMaxBrackets = 40, kMaxBlocks = 200, kMaxBlockTokens = 1500;
constexpr int kMaxJsonDepth = 64;
constexpr const char* kRawHint =
    "use --raw to continue the prompt as plain text, or --chat-template FILE";

std::string FirstLine(std::string_view text) { return Printable(text.substr(0, text.find('\n'))); }

// The engine's messages have several lines: the problem follows "Error: ", its place follows " at
// "; for lexer and parser errors the second line shows the source.
Error TemplateError(const std::exception& e) {
  const std::string_view what = e.what();
  constexpr std::string_view kError = "\nError: ", kRaised = "Jinja Exception: ", kAt = " at line ";
  const size_t error = what.rfind(kError);
  if (error == what.npos) {
    const size_t line = what.find('\n');
    const std::string near =
        line == what.npos ? "" : fmt::format(", near '{}'", FirstLine(what.substr(line + 1)));
    return Error::Unsupported("chat template: {}{}", FirstLine(what), near).Hint(kRawHint);
  }
  std::string_view message = what.substr(error + kError.size());
  if (message.starts_with(kRaised)) {
    return Error::InvalidArgument("the chat template refuses this conversation: {}",
                                  FirstLine(message.substr(kRaised.size())))
        .Hint("the model was not made for such turns; --raw continues plain text");
  }
  std::string place;
  if (const size_t at = what.find(kAt); at < error) {
    const std::string_view rest = what.substr(at + kAt.size());
    place = fmt::format(" (line {})", FirstLine(rest.substr(0, rest.find(" in source"))));
  }
  return Error::Unsupported("chat template: {}{}", FirstLine(message), place).Hint(kRawHint);
}

// Nesting depth of a statement. An elif counts as an if inside the preceding one, because the
// parser builds it so.
class BlockDepth {
 public:
  // `at`: index of the statement's first token, after its "{%".
  int Enter(const std::vector<jinja::token>& tokens, size_t at) {
    if (at >= tokens.size()) return depth_;
    const std::string& name = tokens[at].value;
    if (name.starts_with("end")) {
      if (!open_.empty()) depth_ -= open_.back(), open_.pop_back();
    } else if (name == "elif") {
      if (!open_.empty()) ++open_.back(), ++depth_;
    } else if (name == "if" || name == "for" || name == "macro" || name == "call" ||
               name == "filter" || (name == "set" && HasBody(tokens, at))) {
      open_.push_back(1), ++depth_;
    }
    return depth_;
  }

 private:
  static bool HasBody(const std::vector<jinja::token>& tokens, size_t at) {
    while (at < tokens.size() && tokens[at].t != jinja::token::close_statement) {
      if (tokens[at++].t == jinja::token::equals) return false;
    }
    return true;
  }
  std::vector<int> open_;
  int depth_ = 0;
};

Status CheckNesting(const std::vector<jinja::token>& tokens) {
  using Token = jinja::token;
  const auto bad = [](const char* what, int most) {
    return Error::Unsupported("chat template: more than {} {}", most, what).Hint(kRawHint);
  };
  BlockDepth blocks;
  int brackets = 0, length = 0;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const Token::type t = tokens[i].t;
    if (t == Token::open_statement || t == Token::open_expression) brackets = length = 0;
    if (t == Token::open_statement && blocks.Enter(tokens, i + 1) > kMaxBlocks)
      return bad("blocks inside each other", kMaxBlocks);
    if (t == Token::open_paren || t == Token::open_square_bracket || t == Token::open_curly_bracket)
      ++brackets;
    if (t == Token::close_paren || t == Token::close_square_bracket ||
        t == Token::close_curly_bracket)
      --brackets;
    if (brackets > kMaxBrackets) return bad("brackets inside each other", kMaxBrackets);
    if (++length > kMaxBlockTokens) return bad("parts of one expression", kMaxBlockTokens);
  }
  return Status::Ok();
}

struct JsonToValue {
  bool input;  // strings are marked as the user's
  bool deep = false;

  jinja::value operator()(const Json& j, int depth = 0) {
    if (depth > kMaxJsonDepth) deep = true;
    if (deep || j.is_null()) return mk_val<jinja::value_none>();
    if (j.is_boolean()) return mk_val<jinja::value_bool>(j.get<bool>());
    if (j.is_number_integer()) return mk_val<jinja::value_int>(j.get<int64_t>());
    if (j.is_number_float()) return mk_val<jinja::value_float>(j.get<double>());
    if (j.is_string()) return Text(j.get_ref<const std::string&>());
    if (j.is_array()) {
      auto array = mk_val<jinja::value_array>();
      for (const Json& item : j) array->push_back((*this)(item, depth + 1));
      return array;
    }
    auto object = mk_val<jinja::value_object>();
    for (const auto& [key, value] : j.items()) object->insert(Text(key), (*this)(value, depth + 1));
    return object;
  }
  jinja::value Text(const std::string& text) const {
    return mk_val<jinja::value_string>(jinja::string(text, input));
  }
};

Result<Json> ParseJson(const std::string& text, const std::string& what, bool array) {
  Json j = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (array ? !j.is_array() : !j.is_object())
    return Error::InvalidArgument("{}: expected a JSON {}", what, array ? "array" : "object");
  return j;
}

Result<jinja::value> Converted(const Json& j, const std::string& what, bool input) {
  JsonToValue convert{.input = input};
  jinja::value value = convert(j);
  if (convert.deep)
    return Error::InvalidArgument("{}: nested more than {} deep", what, kMaxJsonDepth);
  return value;
}

// Roles become part of control sequences ('<|' + role + '|>'), so only words are allowed.
bool IsWord(std::string_view role) {
  return !role.empty() && role.size() <= 64 && std::ranges::all_of(role, [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-';
  });
}

Result<jinja::value> Messages(const std::vector<ChatTurn>& turns) {
  if (turns.empty())
    return Error::InvalidArgument("conversation is empty, expected at least one user message");
  auto messages = mk_val<jinja::value_array>();
  for (size_t i = 0; i < turns.size(); ++i) {
    const ChatTurn& turn = turns[i];
    if (!IsWord(turn.role)) {
      return Error::InvalidArgument("message {} has role '{}', expected a word such as user", i,
                                    Printable(turn.role));
    }
    auto message = mk_val<jinja::value_object>();
    message->insert("role", mk_val<jinja::value_string>(turn.role));
    message->insert("content", mk_val<jinja::value_string>(jinja::string(turn.content, true)));
    if (!turn.members.empty()) {
      const std::string what = fmt::format("message {}", i);
      BATON_ASSIGN(const Json members, ParseJson(turn.members, what, /*array=*/false));
      BATON_ASSIGN(const jinja::value more, Converted(members, what, /*input=*/true));
      for (const auto& [key, value] : more->as_ordered_object()) message->insert(key, value);
    }
    messages->push_back(jinja::value(message));
  }
  return jinja::value(messages);
}

jinja::value StrftimeNow(std::optional<int64_t> unix_time) {
  return mk_val<jinja::value_func>("strftime_now", [unix_time](const jinja::func_args& args) {
    args.ensure_vals<jinja::value_string>();
    const std::string format = args.get_pos(0)->as_string().str();
    const std::time_t now = unix_time ? static_cast<std::time_t>(*unix_time) : std::time(nullptr);
    std::tm local{};
    localtime_r(&now, &local);
    char text[256];
    const size_t size = std::strftime(text, sizeof text, format.c_str(), &local);
    if (size == 0 && !format.empty())
      throw jinja::raised_exception("strftime_now: the date is longer than 255 bytes");
    return jinja::value(mk_val<jinja::value_string>(std::string(text, size)));
  });
}

// Variables are named and filled as transformers' apply_chat_template does it.
Status SetVariables(const std::vector<ChatTurn>& turns, const ChatOptions& options,
                    const ChatVariables& variables, jinja::context& context) {
  BATON_ASSIGN(const jinja::value messages, Messages(turns));
  context.set_val("messages", messages);
  jinja::value tools = mk_val<jinja::value_none>();
  if (!options.tools.empty()) {
    BATON_ASSIGN(const Json j, ParseJson(options.tools, "tools", /*array=*/true));
    BATON_ASSIGN(tools, Converted(j, "tools", /*input=*/true));
  }
  context.set_val("tools", tools);
  context.set_val("documents", mk_val<jinja::value_none>());
  context.set_val("add_generation_prompt", mk_val<jinja::value_bool>(true));
  context.set_val("strftime_now", StrftimeNow(variables.unix_time));
  for (const auto& [name, text] : {std::pair{"bos_token", &variables.bos},
                                   {"eos_token", &variables.eos},
                                   {"unk_token", &variables.unknown}}) {
    if (!text->empty()) context.set_val(name, mk_val<jinja::value_string>(*text));
  }
  if (options.variables.empty()) return Status::Ok();
  BATON_ASSIGN(const Json j,
               ParseJson(options.variables, "variables of the chat template", /*array=*/false));
  BATON_ASSIGN(const jinja::value more,
               Converted(j, "variables of the chat template", /*input=*/false));
  for (const auto& [key, value] : more->as_ordered_object()) context.set_val(key, value);
  return Status::Ok();
}

ChatText Collected(const jinja::value& output) {
  ChatText chat;
  const jinja::value_string whole = jinja::runtime::gather_string_parts(output);
  for (const jinja::string_part& part : whole->val_str.parts) {
    const size_t begin = chat.text.size();
    chat.text += part.val;
    if (part.is_input && !part.val.empty()) chat.plain.push_back({begin, chat.text.size()});
  }
  return chat;
}

void SetBudget(int64_t turns, int64_t conversation_bytes) {
  jinja_support::budget = {
      .steps = kMaxSteps + kStepsPerTurn * turns,
      .bytes = kMaxBytes + kBytesPerTurn * turns + kBytesPerByte * conversation_bytes};
}

}  // namespace

struct ChatTemplate::Program {
  std::string source;
  jinja::program tree;
};

Result<ChatTemplate> ChatTemplate::Parse(const std::string& jinja) {
  if (jinja.size() > kMaxSource) {
    return Error::Unsupported("chat template: {} bytes, expected at most {}", jinja.size(),
                              kMaxSource)
        .Hint(kRawHint);
  }
  SetBudget(0, 0);
  try {
    jinja::lexer_result source = jinja::lexer().tokenize(jinja);
    BATON_TRY(CheckNesting(source.tokens));
    auto program = std::make_shared<Program>();
    program->tree = jinja::parse_from_tokens(source);
    program->source = std::move(source.source);
    ChatTemplate chat;
    chat.program_ = std::move(program);
    return chat;
  } catch (const std::exception& e) {
    return TemplateError(e);
  }
}

Result<ChatText> ChatTemplate::Render(const std::vector<ChatTurn>& turns,
                                      const ChatOptions& options,
                                      const ChatVariables& variables) const {
  size_t bytes = options.tools.size() + options.variables.size();
  for (const ChatTurn& t : turns) bytes += t.content.size() + t.members.size();
  SetBudget(std::ssize(turns), static_cast<int64_t>(bytes));
  try {
    jinja::context context(program_->source);
    BATON_TRY(SetVariables(turns, options, variables, context));
    return Collected(jinja::runtime(context).execute(program_->tree));
  } catch (const std::exception& e) {
    return TemplateError(e);
  }
}

}  // namespace baton
