#include "profile/corpus.h"

#include <algorithm>
#include <numeric>
#include <unordered_set>

#include "base/sha256.h"
#include "profile/texts.h"

namespace baton {
namespace {

// Two files belong together when a tenth of the smaller one's 12-token passages occur in the other.
// One passage in eight is kept, chosen by its hash.
constexpr size_t kPassage = 12;
constexpr size_t kSampled = 8;
constexpr double kShared = 0.1;
// Text with fewer distinct passages than this share tells little; with far fewer, nothing.
constexpr double kRepetitive = 0.5, kRepeated = 0.1;
constexpr int64_t kMinTokens = 3 * 1024;
constexpr size_t kMostKinds = 16;  // each costs contexts of its own in every split
constexpr double kShares[] = {0.5, 0.25, 0.25};

using Tokens = std::vector<int32_t>;

struct File {
  size_t kind = 0;
  std::string path;
  Tokens tokens;
  std::unordered_set<uint64_t> passages;  // the sample
  size_t sampled = 0;                     // with repetitions
};

void SamplePassages(File& file) {
  for (size_t i = 0; i + kPassage <= file.tokens.size(); ++i) {
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t j = 0; j < kPassage; ++j)
      h = (h ^ static_cast<uint32_t>(file.tokens[i + j])) * 0x100000001b3u;
    h ^= h >> 29;
    if (h % kSampled != 0) continue;
    file.passages.insert(h);
    ++file.sampled;
  }
}

bool Related(const std::unordered_set<uint64_t>& a, const std::unordered_set<uint64_t>& b) {
  const auto& small = a.size() < b.size() ? a : b;
  const auto& large = a.size() < b.size() ? b : a;
  const auto common =
      std::count_if(small.begin(), small.end(), [&](uint64_t h) { return large.contains(h); });
  return static_cast<double>(common) > kShared * static_cast<double>(small.size());
}

// Related files, as indices, with the number of tokens of each kind.
struct Family {
  std::vector<size_t> files;
  std::vector<double> tokens;
  double Total() const { return std::accumulate(tokens.begin(), tokens.end(), 0.0); }
};

// Largest first.
std::vector<Family> Families(const std::vector<File>& files, size_t kinds) {
  std::vector<size_t> parent(files.size());
  std::iota(parent.begin(), parent.end(), size_t{0});
  const auto root = [&](size_t i) {
    while (parent[i] != i) i = parent[i];
    return i;
  };
  for (size_t i = 0; i < files.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      if (Related(files[i].passages, files[j].passages)) parent[root(i)] = root(j);
    }
  }
  std::vector<Family> families(files.size());
  for (Family& f : families) f.tokens.assign(kinds, 0);
  for (size_t i = 0; i < files.size(); ++i) {
    Family& f = families[root(i)];
    f.files.push_back(i);
    f.tokens[files[i].kind] += static_cast<double>(files[i].tokens.size());
  }
  std::erase_if(families, [](const Family& f) { return f.Total() == 0; });
  std::stable_sort(families.begin(), families.end(),
                   [](const Family& a, const Family& b) { return a.Total() > b.Total(); });
  return families;
}

void Append(Tokens& to, const Tokens& from) { to.insert(to.end(), from.begin(), from.end()); }

// Too few families to fill every split: consecutive parts of the kind's text instead. Of related
// files the longest alone, so that no part repeats another.
void Cut(Corpus::Kind& kind, size_t index, const std::vector<File>& files,
         const std::vector<Family>& families) {
  Tokens all;
  for (const Family& family : families) {
    const File* longest = nullptr;
    for (const size_t i : family.files) {
      const File& file = files[i];
      if (file.kind == index && (!longest || file.tokens.size() > longest->tokens.size()))
        longest = &file;
    }
    if (longest) Append(all, longest->tokens);
  }
  kind.cut = true;
  size_t begin = 0;
  for (int s = 0; s < Corpus::kSplits; ++s) {
    const size_t end =
        s + 1 == Corpus::kSplits
            ? all.size()
            : begin + static_cast<size_t>(kShares[s] * static_cast<double>(all.size()));
    kind.tokens[s].assign(all.begin() + static_cast<ptrdiff_t>(begin),
                          all.begin() + static_cast<ptrdiff_t>(end));
    begin = end;
  }
}

// Each family goes where its kinds miss most.
void Split(const std::vector<File>& files, const std::vector<double>& totals, Corpus& corpus) {
  const std::vector<Family> families = Families(files, corpus.kinds.size());
  corpus.families = static_cast<int>(families.size());
  const auto missing = [&](size_t kind, int s) {  // of the kind's tokens
    return kShares[s] - static_cast<double>(corpus.kinds[kind].tokens[s].size()) / totals[kind];
  };
  for (const Family& family : families) {
    const auto need = [&](int s) {
      double sum = 0;
      for (size_t k = 0; k < totals.size(); ++k) sum += family.tokens[k] > 0 ? missing(k, s) : 0;
      return sum;
    };
    int to = 0;
    for (int s = 1; s < Corpus::kSplits; ++s) {
      if (need(s) > need(to)) to = s;
    }
    for (const size_t i : family.files)
      Append(corpus.kinds[files[i].kind].tokens[to], files[i].tokens);
  }
  for (size_t k = 0; k < totals.size(); ++k) {
    bool short_of = false;
    for (int s = 0; s < Corpus::kSplits; ++s) short_of |= missing(k, s) > 0.15;
    if (short_of) Cut(corpus.kinds[k], k, files, families);
  }
}

Result<std::vector<File>> TokenizeAll(const Engine& engine, const std::vector<SourceText>& texts,
                                      Corpus& corpus) {
  std::vector<File> files;
  for (const SourceText& source : texts) {
    corpus.sha256.push_back(Sha256Hex(source.text));
    const auto kind = std::find_if(corpus.kinds.begin(), corpus.kinds.end(),
                                   [&](const Corpus::Kind& k) { return k.name == source.kind; });
    File file;
    file.kind = static_cast<size_t>(kind - corpus.kinds.begin());
    if (kind == corpus.kinds.end()) corpus.kinds.push_back({.name = source.kind, .tokens = {}});
    file.path = source.path;
    file.tokens = engine.Tokenize(source.text, false, false);
    SamplePassages(file);
    const auto distinct = static_cast<double>(file.passages.size()) /
                          static_cast<double>(std::max<size_t>(1, file.sampled));
    if (file.sampled > 0 && distinct < kRepeated)
      return Error::InvalidArgument("{}: the text repeats itself: {:.0f} % of it is new", file.path,
                                    100 * distinct)
          .Hint("leave the file out");
    if (file.sampled > 0 && distinct < kRepetitive)
      corpus.warnings.push_back(fmt::format("{}: {:.0f} % of the text repeats earlier parts of it",
                                            file.path, 100 * (1 - distinct)));
    files.push_back(std::move(file));
  }
  return files;
}

std::vector<double> TokensByKind(const std::vector<File>& files, size_t kinds) {
  std::vector<double> totals(kinds, 0);
  for (const File& f : files) totals[f.kind] += static_cast<double>(f.tokens.size());
  return totals;
}

Status JoinShortKinds(const std::vector<SourceText>& sources, std::vector<File>& files,
                      Corpus& corpus) {
  const std::vector<double> totals = TokensByKind(files, corpus.kinds.size());
  const double total = std::accumulate(totals.begin(), totals.end(), 0.0);
  if (total < kMinTokens)
    return Error::InvalidArgument("the texts have {} tokens, at least {} are needed", total,
                                  kMinTokens)
        .Hint(
            "give more or longer --text files; 18,000 tokens of several kinds make a dependable "
            "plan");
  const auto longest =
      static_cast<size_t>(std::max_element(totals.begin(), totals.end()) - totals.begin());
  std::vector<size_t> becomes(totals.size());  // kinds that stay keep their order
  std::vector<Corpus::Kind> kinds;
  for (size_t k = 0; k < totals.size(); ++k) {
    if (totals[k] < kMinTokens && k != longest) continue;
    becomes[k] = kinds.size();
    kinds.push_back(corpus.kinds[k]);
  }
  for (size_t i = 0; i < files.size(); ++i) {
    const size_t kind = files[i].kind;
    const bool stays = totals[kind] >= kMinTokens || kind == longest;
    if (!stays && sources[i].named)
      return Error::InvalidArgument("kind {} has {} tokens, at least {} are needed",
                                    sources[i].kind, totals[kind], kMinTokens)
          .Hint("give it more or longer files");
    files[i].kind = becomes[stays ? kind : longest];
  }
  if (kinds.size() > kMostKinds)
    return Error::InvalidArgument("{} kinds of text, at most {} can be told apart", kinds.size(),
                                  kMostKinds)
        .Hint("group files into kinds: --text KIND=FOLDER");
  corpus.kinds = std::move(kinds);
  return Status::Ok();
}

}  // namespace

int64_t Corpus::Tokens(Split split) const {
  int64_t sum = 0;
  for (const Kind& kind : kinds) sum += std::ssize(kind.tokens[split]);
  return sum;
}

Status Corpus::Keep(const std::vector<std::string>& names) {
  std::vector<std::string> known;
  for (const Kind& kind : kinds) known.push_back(kind.name);
  for (const std::string& name : names) {
    if (std::find(known.begin(), known.end(), name) == known.end())
      return Error::InvalidArgument("the profile has no kind of text named {}", name)
          .Hint(fmt::format("it has: {}", fmt::join(known, ", ")));
  }
  std::erase_if(kinds, [&](const Kind& kind) {
    return std::find(names.begin(), names.end(), kind.name) == names.end();
  });
  return Status::Ok();
}

Result<Corpus> LoadCorpus(const Engine& engine, const std::vector<std::string>& texts) {
  Corpus corpus;
  BATON_ASSIGN(std::vector<SourceText> sources, GatherTexts(texts, corpus.warnings));
  BATON_ASSIGN(std::vector<File> files, TokenizeAll(engine, sources, corpus));
  BATON_TRY(JoinShortKinds(sources, files, corpus));
  for (const File& file : files)
    corpus.texts.push_back(fmt::format("{}={}", corpus.kinds[file.kind].name, file.path));
  Split(files, TokensByKind(files, corpus.kinds.size()), corpus);
  return corpus;
}

}  // namespace baton
