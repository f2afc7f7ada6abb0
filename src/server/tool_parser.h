// Takes an answer apart, as it grows, into text for the reader and calls of functions.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "server/tools.h"

namespace baton::server {

// A part of an answer: some text, or a part of one call.
struct AnswerPart {
  std::string text;
  int call = -1;          // of the answer's calls; -1: this is text
  std::string name;       // of the function, where the call begins; otherwise empty
  std::string arguments;  // the JSON text of the call's arguments, continued
  std::string id;         // of the call
};

class ToolParser {
 public:
  ToolParser() = default;  // all is text
  ToolParser(ToolStyle style, const Tools& tools);

  // What the next piece of the answer's text adds. What may yet turn out to be a call is held back.
  std::vector<AnswerPart> Push(std::string_view text);
  // The rest: what was held back and is no call is text.
  std::vector<AnswerPart> End();

 private:
  enum class State {
    kText,  // until a tag, or to the end
    kCall,  // within the JSON of a call
    kTail,  // behind it: until the closing tag, or another call (Llama, Mistral)
  };
  void TextStep(bool last);
  void Character(char c);
  void EndValue();
  void EndCall();
  void AddText(std::string_view text);
  void AddArguments(std::string_view text);
  void BackToText();  // what looked like a call is none

  ToolStyle style_ = ToolStyle::kNone;
  std::string_view open_, close_;  // tags around calls
  std::vector<std::string> names_;
  State state_ = State::kText;
  std::vector<AnswerPart> parts_;
  std::string held_;  // kText: what may begin a tag; kTail: what may end it
  int calls_ = 0;
  bool any_text_ = false;         // so far
  bool any_text_behind_ = false;  // the latest call

  // Of the call at hand: its text, and where the scan of its JSON is.
  std::string raw_;
  bool in_list_ = false;  // of a Mistral's calls
  int depth_ = 0;
  bool in_string_ = false, escaped_ = false, in_value_ = false;
  std::string key_, value_;
  bool begun_ = false;  // its name was known and reported
  bool has_arguments_ = false;
  std::string waiting_;  // arguments that came before the name
};

}  // namespace baton::server
