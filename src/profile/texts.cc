#include "profile/texts.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "formats/unicode.h"

namespace baton {
namespace {

namespace fs = std::filesystem;

// More invalid bytes than this are another encoding or no text; a few are damage.
constexpr double kInvalidBytes = 0.05;

bool IsFolder(const fs::path& path) {
  std::error_code ec;
  return fs::is_directory(path, ec);
}

struct Named {
  std::string kind;
  fs::path path;
};

Named SplitName(const std::string& given) {
  std::error_code ec;
  const size_t equals = given.find('=');
  if (equals == std::string::npos || equals == 0 || fs::exists(given, ec)) return {"", given};
  return {given.substr(0, equals), given.substr(equals + 1)};
}

std::string FolderName(const fs::path& folder) {
  std::error_code ec;
  const fs::path whole = fs::weakly_canonical(folder, ec);
  return whole.filename().empty() ? "text" : whole.filename().string();
}

std::string KindOfFile(const fs::path& path) {
  std::string extension = path.extension().string();
  if (extension.size() > 1 && std::all_of(extension.begin() + 1, extension.end(),
                                          [](unsigned char c) { return std::isalpha(c); }))
    return extension.substr(1);
  return FolderName(path.has_parent_path() ? path.parent_path() : fs::path("."));
}

Result<std::vector<fs::path>> FilesBelow(const fs::path& folder) {
  std::vector<fs::path> files;
  std::error_code ec;
  auto at = fs::recursive_directory_iterator(folder, ec);
  for (; !ec && at != fs::recursive_directory_iterator(); at.increment(ec)) {
    if (at->path().filename().string().starts_with('.')) {
      at.disable_recursion_pending();
    } else if (std::error_code unknown; at->is_regular_file(unknown)) {
      files.push_back(at->path());
    }
  }
  if (ec) return Error::Io("{}: cannot list the folder: {}", folder.string(), ec.message());
  std::sort(files.begin(), files.end());
  if (files.size() <= kMostFiles) return files;
  std::vector<fs::path> some;
  for (size_t i = 0; i < kMostFiles; ++i) some.push_back(files[i * files.size() / kMostFiles]);
  return some;
}

Status AddFolder(const Named& given, std::vector<SourceText>& texts,
                 std::vector<std::string>& warnings) {
  const std::string kind = given.kind.empty() ? FolderName(given.path) : given.kind;
  BATON_ASSIGN(const std::vector<fs::path> files, FilesBelow(given.path));
  size_t left_out = 0;
  for (const fs::path& file : files) {
    BATON_ASSIGN(std::string text, ReadText(file.string()));
    const bool good = TextProblem(text).empty();
    left_out += !good;
    if (good) texts.push_back({kind, file.string(), std::move(text), !given.kind.empty()});
  }
  if (left_out == files.size())
    return Error::InvalidArgument("{}: no text files in this folder", given.path.string());
  if (left_out > 0)
    warnings.push_back(fmt::format("{}: left out {} of {} files, which are empty or no text",
                                   given.path.string(), left_out, files.size()));
  return Status::Ok();
}

}  // namespace

Result<std::string> ReadText(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in.good())
    return Error::NotFound("{}: cannot open the text file", path)
        .Hint("check the path and its permissions");
  // A folder opens, and reads as if it were empty.
  if (IsFolder(path)) return Error::Io("{}: expected a text file, got a folder", path);
  std::stringstream text;
  text << in.rdbuf();
  if (in.bad() || !in.good()) return Error::Io("{}: cannot read the text file", path);
  return text.str();
}

std::string TextProblem(const std::string& text) {
  if (text.find_first_not_of(" \t\r\n") == std::string::npos) return "the file is empty";
  if (const size_t at = text.find('\0'); at != std::string::npos)
    return fmt::format("no text: byte {} is 0", at);
  size_t invalid = 0;
  for (std::string_view rest = text; !rest.empty();) {
    const Utf8Char c = DecodeUtf8(rest);
    if (c.kind != Utf8Char::Kind::kValid) invalid += static_cast<size_t>(c.length);
    rest.remove_prefix(static_cast<size_t>(c.length));
  }
  if (static_cast<double>(invalid) <= kInvalidBytes * static_cast<double>(text.size())) return "";
  return fmt::format("no text: {} of {} bytes are not UTF-8", invalid, text.size());
}

Result<std::vector<SourceText>> GatherTexts(const std::vector<std::string>& given,
                                            std::vector<std::string>& warnings) {
  if (given.empty())
    return Error::InvalidArgument("no text files given").Hint("name some with --text FILE");
  std::vector<SourceText> texts;
  for (const std::string& one : given) {
    const Named named = SplitName(one);
    if (IsFolder(named.path)) {
      BATON_TRY(AddFolder(named, texts, warnings));
      continue;
    }
    BATON_ASSIGN(std::string text, ReadText(named.path.string()));
    if (const std::string problem = TextProblem(text); !problem.empty())
      return Error::InvalidArgument("{}: {}", named.path.string(), problem)
          .Hint("leave the file out, or convert it to UTF-8 text");
    texts.push_back({named.kind.empty() ? KindOfFile(named.path) : named.kind, named.path.string(),
                     std::move(text), !named.kind.empty()});
  }
  return texts;
}

}  // namespace baton
