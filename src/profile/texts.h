// The calibration files and the kind of text that each belongs to.
#pragma once

#include <string>
#include <vector>

#include "baton/error.h"

namespace baton {

struct SourceText {
  std::string kind, path, text;
  bool named = false;  // the kind was given, not found
};

Result<std::string> ReadText(const std::string& path);

// Each of `given` is PATH or KIND=PATH. A folder stands for the text files below it, hidden ones
// left out; of more than kMostFiles, as many are taken at even distances in the order of their
// paths. Without a name the kind of a folder is the folder's name, and that of a file its extension
// if it has one of letters, else the name of its folder. A file that is empty or no text is an
// error where it is named, and left out of a folder with a warning.
constexpr size_t kMostFiles = 100;
Result<std::vector<SourceText>> GatherTexts(const std::vector<std::string>& given,
                                            std::vector<std::string>& warnings);

// Why these bytes are no text that a model could read, "" if they are.
std::string TextProblem(const std::string& text);

}  // namespace baton
