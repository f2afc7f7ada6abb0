#include "profile/splits.h"

#include <algorithm>
#include <cmath>

namespace baton {

int64_t ContextLength(const Corpus& corpus, Corpus::Split split, const ProfileOptions& options) {
  return std::min(options.context, std::max<int64_t>(std::ssize(corpus.tokens[split]), 512));
}

int ProbesOf(Corpus::Split split, const ProfileOptions& options) {
  return split == Corpus::kProfile ? options.probes : (options.probes * 2 + 2) / 3;
}

CalibrationContext::Spec ContextSpec(const Corpus& corpus, Corpus::Split split, int index,
                                     const ProfileOptions& options) {
  const std::vector<int32_t>& text = corpus.tokens[split];
  const int contexts = kContexts[split];
  CalibrationContext::Spec spec;
  spec.text = text;
  const auto total = static_cast<int64_t>(text.size());
  spec.length = ContextLength(corpus, split, options);
  spec.offset = index * total / contexts;
  spec.text_rows = std::min(kTextRows, spec.length / 8);
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
