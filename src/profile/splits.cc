#include "profile/splits.h"

#include <algorithm>
#include <cmath>

namespace baton {

CalibrationContext::Spec ContextSpec(const Corpus& corpus, Corpus::Split split, int index,
                                     const ProfileOptions& options) {
  const std::vector<int32_t>& text = corpus.tokens[split];
  const int contexts = kContexts[split];
  CalibrationContext::Spec spec;
  spec.text = text;
  const auto total = static_cast<int64_t>(text.size());
  // A short split gives shorter contexts rather than text that repeats itself.
  spec.length = std::min(options.context, std::max<int64_t>(total, 512));
  spec.offset = index * total / contexts;
  spec.text_rows = std::min(kTextRows, spec.length / 8);
  const int all = split == Corpus::kProfile ? options.probes : (options.probes * 2 + 2) / 3;
  const int mine = (all * (index + 1)) / contexts - (all * index) / contexts;
  spec.probes =
      MakeProbes(mine, options.seed * 1000 + static_cast<uint64_t>(split * 100 + index), false);
  return spec;
}

int RequiredProbes(double share, int dense_found) {
  return static_cast<int>(std::ceil(share * dense_found - 1e-9));  // 0.97 of 100 is 97
}

}  // namespace baton
