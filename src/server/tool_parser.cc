#include "server/tool_parser.h"

#include <algorithm>
#include <utility>

namespace baton::server {
namespace {

constexpr std::string_view kMembers[] = {"type", "name", "arguments", "parameters", "id"};

bool IsSpace(char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }

// The length of the longest end of `text` that `tag` begins with.
size_t Begins(std::string_view text, std::string_view tag) {
  for (size_t n = std::min(text.size(), tag.size() - 1); n > 0; --n)
    if (text.ends_with(tag.substr(0, n))) return n;
  return 0;
}

}  // namespace

ToolParser::ToolParser(ToolStyle style, const Tools& tools) : style_(style) {
  if (!tools.on()) style_ = ToolStyle::kNone;
  if (style_ == ToolStyle::kHermes) open_ = "<tool_call>", close_ = "</tool_call>";
  if (style_ == ToolStyle::kMistral) open_ = "[TOOL_CALLS]", close_ = "]";
  for (const Tool& tool : tools.list) names_.push_back(tool.name);
}

std::vector<AnswerPart> ToolParser::Push(std::string_view text) {
  if (style_ == ToolStyle::kNone) {
    AddText(text);
    return std::exchange(parts_, {});
  }
  for (const char c : text) {
    switch (state_) {
      case State::kText:
        held_ += c;
        // Only these end what is held back, or begin it.
        if (open_.ends_with(c) || c == '{' || held_.size() > 64) TextStep(false);
        break;
      case State::kCall:
        Character(c);
        break;
      case State::kTail:
        held_ += c;
        if (!close_.empty() && held_.ends_with(close_)) {
          held_.clear();
          in_list_ = false;
          state_ = State::kText;
        } else if (style_ == ToolStyle::kHermes && held_.ends_with(open_)) {
          raw_ = std::exchange(held_, {});  // the closing tag was left out
          state_ = State::kCall;
        } else if (style_ != ToolStyle::kHermes && c == '{') {
          raw_ = std::exchange(held_, {});
          raw_.pop_back();
          state_ = State::kCall;
          Character(c);
        }
        break;
    }
  }
  if (state_ == State::kText) TextStep(false);
  return std::exchange(parts_, {});
}

std::vector<AnswerPart> ToolParser::End() {
  if (state_ == State::kText) TextStep(true);
  if (state_ == State::kCall && !begun_) AddText(raw_);
  if (state_ == State::kTail && !close_.starts_with(held_)) AddText(held_);
  return std::exchange(parts_, {});
}

// Passes on what cannot be part of a tag; white space before one, and before the first text behind
// one, is of the tag.
void ToolParser::TextStep(bool last) {
  if (style_ == ToolStyle::kLlama) {
    const size_t first = std::find_if_not(held_.begin(), held_.end(), IsSpace) - held_.begin();
    if (first == held_.size() && !last) return;
    if (!any_text_ && first < held_.size() && held_[first] == '{') {
      raw_ = held_.substr(0, first);
      const std::string rest = held_.substr(first);
      held_.clear();
      state_ = State::kCall;
      for (const char c : rest) Character(c);
      return;
    }
    return AddText(std::exchange(held_, {}));
  }
  if (const size_t tag = held_.find(open_); tag != held_.npos) {
    size_t end = tag;
    while (end > 0 && IsSpace(held_[end - 1])) --end;
    AddText(std::string_view(held_).substr(0, end));
    raw_ = held_.substr(end);
    held_.clear();
    state_ = State::kCall;
    return;
  }
  size_t keep = last ? 0 : Begins(held_, open_);
  while (keep < held_.size() && IsSpace(held_[held_.size() - keep - 1]) && (!last || calls_ > 0))
    ++keep;
  AddText(std::string_view(held_).substr(0, held_.size() - keep));
  held_.erase(0, held_.size() - keep);
}

void ToolParser::AddText(std::string_view text) {
  if (calls_ > 0 && !any_text_behind_) {
    while (!text.empty() && IsSpace(text.front())) text.remove_prefix(1);
  }
  if (text.empty()) return;
  any_text_ = any_text_behind_ = true;
  if (parts_.empty() || parts_.back().call >= 0) parts_.emplace_back();
  parts_.back().text += text;
}

void ToolParser::AddArguments(std::string_view text) {
  if (text.empty()) return;
  if (!begun_) {
    waiting_ += text;
    return;
  }
  if (parts_.empty() || parts_.back().call != calls_) parts_.push_back({.call = calls_});
  parts_.back().arguments += text;
}

// Scans the JSON of a call: the values of its outermost members `name` and `arguments`, whatever
// their order; the latter's characters are passed on as they come.
void ToolParser::Character(char c) {
  raw_ += c;
  if (depth_ == 0) {
    if (style_ == ToolStyle::kMistral && !in_list_ && c == '[') {
      in_list_ = true;
    } else if (c == '{' && (style_ != ToolStyle::kMistral || in_list_)) {
      depth_ = 1;
    } else if (!IsSpace(c)) {
      BackToText();
    }
    return;
  }
  const bool arguments = in_value_ && (key_ == "arguments" || key_ == "parameters");
  if (in_string_) {
    if (escaped_) {
      escaped_ = false;
    } else if (c == '\\') {
      escaped_ = true;
    } else if (c == '"') {
      in_string_ = false;
    }
  } else if (c == '"') {
    in_string_ = true;
  } else if (c == '{' || c == '[') {
    ++depth_;
  } else if (c == '}' || c == ']') {
    if (--depth_ == 0) {
      EndValue();
      return EndCall();
    }
  } else if (depth_ == 1 && c == ',') {
    return EndValue();
  } else if (depth_ == 1 && c == ':' && !in_value_) {
    const Json key = Json::parse(value_, nullptr, false);
    key_ = key.is_string() ? key.get<std::string>() : "";
    value_.clear();
    in_value_ = true;
    if (std::ranges::find(kMembers, key_) == std::end(kMembers)) BackToText();
    return;
  }
  if (depth_ == 1 && !in_string_ && IsSpace(c)) return;
  if (!arguments) {
    value_ += c;
    return;
  }
  has_arguments_ = true;
  AddArguments(std::string_view(&c, 1));
}

void ToolParser::EndValue() {
  if (in_value_ && key_ == "name" && !begun_) {
    const Json name = Json::parse(value_, nullptr, false);
    if (name.is_string() && std::ranges::find(names_, name.get<std::string>()) != names_.end()) {
      begun_ = true;
      parts_.push_back({.call = calls_, .name = name.get<std::string>()});
      AddArguments(std::exchange(waiting_, {}));
    }
  }
  in_value_ = false;
  key_.clear();
  value_.clear();
}

void ToolParser::EndCall() {
  if (!begun_) return BackToText();
  if (!has_arguments_) AddArguments("{}");
  ++calls_;
  any_text_behind_ = false;
  raw_.clear();
  held_.clear();
  depth_ = 0;
  begun_ = has_arguments_ = false;
  state_ = State::kTail;
}

void ToolParser::BackToText() {
  const std::string text = std::exchange(raw_, {});
  depth_ = 0;
  in_string_ = escaped_ = in_value_ = has_arguments_ = in_list_ = false;
  key_.clear();
  value_.clear();
  waiting_.clear();
  state_ = State::kText;
  AddText(text);
}

}  // namespace baton::server
