#include "formats/chat_source.h"

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/mapped_file.h"

namespace baton {
namespace {

using Json = nlohmann::json;
constexpr const char* kDefault = "default";

// No such file: nothing.
Result<std::optional<std::string>> ReadText(const std::string& path) {
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) return std::optional<std::string>();
  BATON_ASSIGN(const MappedFile file, MappedFile::Open(path));
  return std::optional<std::string>(
      std::in_place, reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
}

void AddTemplates(const Json& chat, ChatSource& source) {
  if (chat.is_string()) source.by_name[kDefault] = chat.get<std::string>();
  if (!chat.is_array()) return;
  for (const Json& t : chat) {
    if (!t.is_object() || !t.contains("name") || !t.contains("template")) continue;
    if (t["name"].is_string() && t["template"].is_string())
      source.by_name[t["name"].get<std::string>()] = t["template"].get<std::string>();
  }
}

}  // namespace

const std::string* ChatSource::Choose(bool tools) const {
  for (const char* name : {tools ? "tool_use" : kDefault, kDefault}) {
    const auto it = by_name.find(name);
    if (it != by_name.end() && !it->second.empty()) return &it->second;
  }
  return by_name.size() == 1 && !by_name.begin()->second.empty() ? &by_name.begin()->second
                                                                 : nullptr;
}

ChatSource ChatSourceOfGguf(const Metadata& metadata) {
  constexpr std::string_view kKey = "tokenizer.chat_template";
  ChatSource source;
  if (const std::string* chat = metadata.String(kKey)) source.by_name[kDefault] = *chat;
  const std::string prefix = std::string(kKey) + ".";
  for (auto it = metadata.values.lower_bound(prefix);
       it != metadata.values.end() && it->first.starts_with(prefix); ++it) {
    if (const auto* chat = std::get_if<std::string>(&it->second))
      source.by_name[it->first.substr(prefix.size())] = *chat;
  }
  return source;
}

Result<ChatSource> ChatSourceOfFolder(const std::string& folder) {
  ChatSource source;
  for (const char* name : {"tokenizer_config.json", "chat_template.json"}) {
    BATON_ASSIGN(const auto text, ReadText(folder + "/" + name));
    if (!text) continue;
    const Json j = Json::parse(*text, nullptr, /*allow_exceptions=*/false);
    if (j.is_object() && j.contains("chat_template")) AddTemplates(j["chat_template"], source);
  }
  BATON_ASSIGN(auto jinja, ReadText(folder + "/chat_template.jinja"));
  if (jinja) source.by_name[kDefault] = *std::move(jinja);
  std::error_code ignored;
  const std::filesystem::path more = folder + "/additional_chat_templates";
  for (const auto& entry : std::filesystem::directory_iterator(more, ignored)) {
    if (entry.path().extension() != ".jinja") continue;
    BATON_ASSIGN(auto text, ReadText(entry.path().string()));
    if (text) source.by_name[entry.path().stem().string()] = *std::move(text);
  }
  return source;
}

}  // namespace baton
