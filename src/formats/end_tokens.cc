#include "formats/end_tokens.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/mapped_file.h"
#include "base/parse.h"
#include "formats/python_json.h"

namespace baton {
namespace {

using Json = nlohmann::json;

constexpr std::string_view kEndTexts[] = {"<|im_end|>",
                                          "<|endoftext|>",
                                          "<|end_of_text|>",
                                          "<|eot_id|>",
                                          "<|eom_id|>",
                                          "<|end|>",
                                          "<end_of_turn>",
                                          "</s>",
                                          "<eos>",
                                          "<|EOT|>",
                                          "<|return|>",
                                          "<EOT>",
                                          "_<EOT>",
                                          "[EOT]",
                                          "[EOS]",
                                          "<turn|>",
                                          "<|eot|>",
                                          "<|eom|>",
                                          "<end_of_utterance>",
                                          "<|END_OF_TURN_TOKEN|>",
                                          "<\uff5cend\u2581of\u2581sentence\uff5c>"};
// End texts that end an answer only if a file says so, or if they are control tokens.
constexpr std::string_view kMarkup[] = {"</s>", "<eos>", "<EOT>", "[EOT]", "[EOS]"};

bool IsUnmistakable(std::string_view text) {
  return IsEndText(text) && std::ranges::find(kMarkup, text) == std::end(kMarkup);
}

// Compares texts as they are, although byte-level vocabularies spell bytes 0 to 32 and some above
// differently. Of the end texts only DeepSeek's has such bytes, and as an added token it is spelt
// as it is.
bool MergesMake(const TokenizerSpec& spec, std::string_view text) {
  return std::ranges::any_of(spec.merges, [&](const auto& merge) {
    return merge.first.size() + merge.second.size() == text.size() &&
           text.starts_with(merge.first) && text.ends_with(merge.second);
  });
}

// Null for a file that is absent.
Result<Json> ReadJson(const std::string& path) {
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) return Json();
  BATON_ASSIGN(const MappedFile file, MappedFile::Open(path));
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()),
                              file.bytes().size());
  return ParseJsonObject(text, path);
}

// A number, perhaps written as text.
std::optional<int64_t> Integer(const Json& j) {
  if (j.is_number_integer()) return j.get<int64_t>();
  return j.is_string() ? ParseWhole<int64_t>(j.get_ref<const std::string&>()) : std::nullopt;
}

void AddIds(const Json& ids, TokenizerSpec& spec) {
  if (ids.is_array()) {
    for (const Json& id : ids) AddIds(id, spec);
  } else if (const std::optional<int64_t> given = Integer(ids); given) {
    const int64_t id = *given;
    if (id >= 0 && id < std::ssize(spec.tokens)) spec.more_end_ids.push_back(id);
  }
}

// "</s>" or {"content": "</s>", ...}.
std::string TextOf(const Json& token) {
  if (token.is_object() && token.contains("content")) return TextOf(token["content"]);
  return token.is_string() ? token.get<std::string>() : "";
}

}  // namespace

bool IsEndText(std::string_view text) {
  return std::ranges::find(kEndTexts, text) != std::end(kEndTexts);
}

void MarkEndTexts(TokenizerSpec& spec) {
  for (TokenSpec& token : spec.tokens) {
    const bool ordinary = token.type == TokenType::kNormal || token.type == TokenType::kUserDefined;
    if (ordinary && IsUnmistakable(token.text) && !MergesMake(spec, token.text))
      token.type = TokenType::kControl;
  }
}

Status AddEndsOfFolder(const std::string& folder, TokenizerSpec& spec) {
  for (const char* name : {"/config.json", "/generation_config.json"}) {
    BATON_ASSIGN(const Json config, ReadJson(folder + name));
    if (config.contains("eos_token_id")) AddIds(config["eos_token_id"], spec);
  }
  BATON_ASSIGN(const Json map, ReadJson(folder + "/special_tokens_map.json"));
  if (!map.contains("eos_token")) return Status::Ok();
  const std::string text = TextOf(map["eos_token"]);
  for (int64_t id = 0; !text.empty() && id < std::ssize(spec.tokens); ++id) {
    if (spec.tokens[static_cast<size_t>(id)].text == text) spec.more_end_ids.push_back(id);
  }
  return Status::Ok();
}

}  // namespace baton
