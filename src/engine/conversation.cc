#include "engine/conversation.h"

#include <algorithm>
#include <utility>

namespace baton {

void Conversation::Drop() {
  kept_.kv = {};  // before its store
  *this = {};
}

std::optional<Conversation::Start> Conversation::Take(const std::string& plan_hash,
                                                      std::span<const int32_t> tokens) {
  if (!kept_.store || plan_hash_ != plan_hash) return std::nullopt;
  // The common prefix stays; the last token of the prompt is always run, for its logits.
  const size_t most = std::min(tokens_.size(), tokens.size() - 1);
  size_t common = 0;
  while (common < most && tokens_[common] == tokens[common]) ++common;
  // Rings cannot go back behind what they dropped: such a prompt starts anew. So does another
  // conversation that begins alike, where layers are routed by what the whole prompt asks.
  const bool continues = !kept_.routing || static_cast<int64_t>(common) >= prompt_tokens_;
  if (common == 0 || !continues || !kept_.kv.CanTruncate(static_cast<int64_t>(common)))
    return std::nullopt;
  Start start = std::move(kept_);
  start.length = static_cast<int64_t>(common);
  Drop();
  return start;
}

void Conversation::Keep(Sequence& s, int64_t length, const std::string& plan_hash,
                        std::optional<RoutingReport> routing) {
  Drop();
  if (length <= 0 || !s.kv.CanTruncate(length)) return;
  s.kv.Truncate(length);
  tokens_.assign(s.tokens.begin(),
                 s.tokens.begin() + std::min(std::ssize(s.tokens), static_cast<ptrdiff_t>(length)));
  plan_hash_ = plan_hash;
  prompt_tokens_ = s.prompt_tokens;
  kept_ = {.store = s.store,
           .kv = std::exchange(s.kv, {}),
           .length = length,
           .plan = s.plan,
           .routing = std::move(routing)};
}

}  // namespace baton
