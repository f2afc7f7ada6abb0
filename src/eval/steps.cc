#include "eval/steps.h"

#include <algorithm>
#include <numeric>

namespace baton {

std::optional<int32_t> BosToken(const Engine& engine) {
  const std::vector<int32_t> empty = engine.Tokenize("", true, false);
  if (empty.size() != 1) return std::nullopt;
  return empty[0];
}

std::vector<int32_t> TextWindow(std::span<const int32_t> tokens, int64_t begin, int64_t count,
                                std::optional<int32_t> bos) {
  const auto part = tokens.subspan(static_cast<size_t>(begin), static_cast<size_t>(count));
  std::vector<int32_t> window(part.begin(), part.end());
  if (bos && !window.empty()) window[0] = *bos;
  return window;
}

Status DecodeRows(Session& session, const DecodeRowsParams& p, const Session::OnLogits& on_logits) {
  const auto total = static_cast<int64_t>(p.tokens.size());
  std::vector<int64_t> wanted;
  for (int64_t begin = 0; begin < total; begin += p.rows) {
    const int64_t count = std::min(p.rows, total - begin);
    const int64_t skip = std::clamp<int64_t>(p.first_wanted - begin, 0, count);
    wanted.resize(static_cast<size_t>(count - skip));
    std::iota(wanted.begin(), wanted.end(), skip);
    Session::DecodeOptions options;
    options.plan = p.plan;
    if (!wanted.empty() && on_logits) {
      options.logit_rows = wanted;
      options.on_logits = [&](int64_t first, View<const float> logits) {
        on_logits(begin + skip + first, logits);
      };
    }
    BATON_TRY(session.Decode(
        p.tokens.subspan(static_cast<size_t>(begin), static_cast<size_t>(count)), options));
  }
  return Status::Ok();
}

std::vector<size_t> DensePromptsFirst(std::span<const ResolvedPlan> plans) {
  std::vector<size_t> order(plans.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_partition(order.begin(), order.end(),
                        [&](size_t p) { return !plans[p].prefill.sparse; });
  return order;
}

}  // namespace baton
