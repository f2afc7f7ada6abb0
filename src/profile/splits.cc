#include "profile/splits.h"

#include <algorithm>
#include <cmath>

namespace baton {

namespace {

constexpr int kContexts[] = {3, 2, 2};
// Of several kinds, of each: the test split speaks for text that nobody gave, and few plans are
// decoded on it. More places tell more than more rows: files of one kind differ by half their mean
// (docs/quality.md).
constexpr int kContextsOfEach[] = {1, 1, 4};
constexpr int64_t kTextRows[] = {96, 96, 144};   // at least, of each context
constexpr int64_t kAllRows[] = {288, 192, 384};  // at least, of all contexts of a split

// `length` tokens from `offset` on, around the end if need be; what the kind itself lacks comes
// before its text, from the others in turn.
std::vector<int32_t> Filler(const Corpus& corpus, Corpus::Split split, size_t kind, int64_t offset,
                            int64_t length) {
  const std::vector<int32_t>& own = corpus.kinds[kind].tokens[split];
  const int64_t borrowed = std::max<int64_t>(0, length - std::ssize(own));
  std::vector<int32_t> filler;
  for (size_t k = 1; k < corpus.kinds.size(); ++k) {
    const auto& other = corpus.kinds[(kind + k) % corpus.kinds.size()].tokens[split];
    const int64_t count = std::min(borrowed - std::ssize(filler), std::ssize(other));
    filler.insert(filler.end(), other.begin(), other.begin() + count);
  }
  for (int64_t i = 0; !own.empty() && std::ssize(filler) < length; ++i)
    filler.push_back(own[static_cast<size_t>((offset + i) % std::ssize(own))]);
  return filler;
}

}  // namespace

int Contexts(const Corpus& corpus, Corpus::Split split) {
  const auto kinds = static_cast<int>(corpus.kinds.size());
  return kinds == 1 ? kContexts[split]
                    : kinds * std::max(kContextsOfEach[split], kContexts[split] / kinds);
}

int64_t TextRows(const Corpus& corpus, Corpus::Split split, int64_t length) {
  const int64_t rows = std::max(kTextRows[split], kAllRows[split] / Contexts(corpus, split));
  return std::min(rows, length / 8);
}

int64_t ContextLength(const Corpus& corpus, Corpus::Split split, const ProfileOptions& options) {
  return std::min(options.context, std::max<int64_t>(corpus.Tokens(split), 512));
}

std::vector<std::string> ShortKinds(const Corpus& corpus, const ProfileOptions& options) {
  std::vector<std::string> warnings;
  for (const Corpus::Kind& kind : corpus.kinds) {
    int64_t all = 0, least = options.context;
    for (const auto& split : kind.tokens) {
      all += std::ssize(split);
      least = std::min(least, std::ssize(split));
    }
    if (corpus.kinds.size() > 1 && least < options.context)
      warnings.push_back(fmt::format(
          "kind {}: {} tokens are too few for contexts of {}: text of other kinds comes first, and "
          "what the kind loses over long distances is not seen; give it {} tokens or more",
          kind.name, all, options.context, 4 * options.context));
  }
  return warnings;
}

int ProbesOf(Corpus::Split split, const ProfileOptions& options) {
  return split == Corpus::kProfile ? options.probes : (options.probes * 2 + 2) / 3;
}

CalibrationContext::Spec ContextSpec(const Corpus& corpus, Corpus::Split split, int index,
                                     const ProfileOptions& options) {
  const auto kinds = static_cast<int>(corpus.kinds.size());
  const int contexts = Contexts(corpus, split);
  const auto kind = static_cast<size_t>(index % kinds);
  CalibrationContext::Spec spec;
  spec.length = ContextLength(corpus, split, options);
  spec.text_rows = TextRows(corpus, split, spec.length);
  const int64_t total = std::ssize(corpus.kinds[kind].tokens[split]);
  spec.text = Filler(corpus, split, kind, index / kinds * total / (contexts / kinds), spec.length);
  const int all = ProbesOf(split, options);
  const int mine = (all * (index + 1)) / contexts - (all * index) / contexts;
  spec.probes =
      MakeProbes(mine, options.seed * 1000 + static_cast<uint64_t>(split * 100 + index), false);
  return spec;
}

int RequiredProbes(double share, int dense_found) {
  return static_cast<int>(std::ceil(share * dense_found - 1e-9));  // 0.97 of 100 is 97
}

}  // namespace baton
