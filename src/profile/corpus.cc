#include "profile/corpus.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <sstream>
#include <unordered_set>

#include "base/sha256.h"

namespace baton {
namespace {

// Two files belong together when a tenth of the smaller one's 12-token passages occur in the other.
// One passage in eight is kept, chosen by its hash.
constexpr size_t kPassage = 12;
constexpr double kShared = 0.1;
constexpr int64_t kMinTokens = 3 * 1024;

std::unordered_set<uint64_t> Passages(const std::vector<int32_t>& tokens) {
  std::unordered_set<uint64_t> set;
  for (size_t i = 0; i + kPassage <= tokens.size(); ++i) {
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t j = 0; j < kPassage; ++j)
      h = (h ^ static_cast<uint32_t>(tokens[i + j])) * 0x100000001b3u;
    h ^= h >> 29;
    if (h % 8 == 0) set.insert(h);
  }
  return set;
}

bool Related(const std::unordered_set<uint64_t>& a, const std::unordered_set<uint64_t>& b) {
  const auto& small = a.size() < b.size() ? a : b;
  const auto& large = a.size() < b.size() ? b : a;
  const auto common =
      std::count_if(small.begin(), small.end(), [&](uint64_t h) { return large.contains(h); });
  return static_cast<double>(common) > kShared * static_cast<double>(small.size());
}

using Tokens = std::vector<int32_t>;

// Joins related files, in the order given.
std::vector<Tokens> Families(const std::vector<Tokens>& files) {
  std::vector<std::unordered_set<uint64_t>> passages;
  for (const Tokens& f : files) passages.push_back(Passages(f));
  std::vector<size_t> parent(files.size());
  std::iota(parent.begin(), parent.end(), size_t{0});
  const auto root = [&](size_t i) {
    while (parent[i] != i) i = parent[i];
    return i;
  };
  for (size_t i = 0; i < files.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      if (Related(passages[i], passages[j])) parent[root(i)] = root(j);
    }
  }
  std::vector<Tokens> families(files.size());
  for (size_t i = 0; i < files.size(); ++i) {
    Tokens& f = families[root(i)];
    f.insert(f.end(), files[i].begin(), files[i].end());
  }
  std::erase_if(families, [](const Tokens& f) { return f.empty(); });
  std::stable_sort(families.begin(), families.end(),
                   [](const Tokens& a, const Tokens& b) { return a.size() > b.size(); });
  return families;
}

}  // namespace

Result<std::string> ReadText(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in.good())
    return Error::NotFound("{}: cannot open the text file", path)
        .Hint("check the path and its permissions");
  // A folder opens, and reads as if it were empty.
  if (std::error_code ec; std::filesystem::is_directory(path, ec))
    return Error::Io("{}: expected a text file, got a folder", path);
  std::stringstream text;
  text << in.rdbuf();
  if (in.bad() || !in.good()) return Error::Io("{}: cannot read the text file", path);
  return text.str();
}

Result<Corpus> LoadCorpus(const Engine& engine, const std::vector<std::string>& paths) {
  if (paths.empty())
    return Error::InvalidArgument("no text files given").Hint("name some with --text FILE");
  Corpus corpus;
  std::vector<Tokens> files;
  int64_t total = 0;
  for (const std::string& path : paths) {
    BATON_ASSIGN(std::string text, ReadText(path));
    corpus.sha256.push_back(Sha256Hex(text));
    files.push_back(engine.Tokenize(text, false, false));
    total += static_cast<int64_t>(files.back().size());
  }
  if (total < kMinTokens) {
    return Error::InvalidArgument("the texts have {} tokens, at least {} are needed", total,
                                  kMinTokens)
        .Hint(
            "give more or longer --text files; 18,000 tokens of several kinds make a dependable "
            "plan");
  }
  std::vector<Tokens> families = Families(files);
  corpus.families = static_cast<int>(families.size());
  const double share[] = {0.5, 0.25, 0.25};
  const auto missing = [&](int s) {
    return share[s] * static_cast<double>(total) - static_cast<double>(corpus.tokens[s].size());
  };
  for (const Tokens& f : families) {
    int to = 0;
    for (int s = 1; s < Corpus::kSplits; ++s) {
      if (missing(s) > missing(to)) to = s;
    }
    corpus.tokens[to].insert(corpus.tokens[to].end(), f.begin(), f.end());
  }
  // Too few families to fill every split: cut the whole text into consecutive parts instead.
  for (int s = 0; s < Corpus::kSplits; ++s)
    corpus.cut |= missing(s) > 0.15 * static_cast<double>(total);
  if (corpus.cut) {
    Tokens all;
    for (const Tokens& f : families) all.insert(all.end(), f.begin(), f.end());
    size_t begin = 0;
    for (int s = 0; s < Corpus::kSplits; ++s) {
      const size_t end = s + 1 == Corpus::kSplits
                             ? all.size()
                             : begin + static_cast<size_t>(share[s] * static_cast<double>(total));
      corpus.tokens[s].assign(all.begin() + static_cast<ptrdiff_t>(begin),
                              all.begin() + static_cast<ptrdiff_t>(end));
      begin = end;
    }
  }
  return corpus;
}

}  // namespace baton
