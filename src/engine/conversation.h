// The cache of the latest chat request of Engine::Generate, for the chat's next turn. Beside the
// prefix cache it also has what was generated, and rings and routed layers as they stand.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "baton/engine.h"
#include "engine/sequence.h"

namespace baton {

class Conversation {
 public:
  // What a request goes on from: a cache that holds the first `length` tokens of its prompt.
  struct Start {
    std::shared_ptr<KvStore> store;
    KvSequence kv;
    int64_t length = 0;
    ResolvedPlan plan;  // as routing left it
    std::optional<RoutingReport> routing;
  };
  // Hands the cache out where a prompt of `tokens` under this plan goes on from it; then nothing is
  // kept, so that a request that fails leaves no conversation behind.
  std::optional<Start> Take(const std::string& plan_hash, std::span<const int32_t> tokens);
  // Takes over the cache of a request that has ended, the first `length` tokens of it, in place of
  // what was kept; none of it where rings have dropped what the next turn would need.
  void Keep(Sequence& s, int64_t length, const std::string& plan_hash,
            std::optional<RoutingReport> routing);
  void Drop();

  int64_t length() const { return kept_.kv.length(); }

 private:
  Start kept_;
  std::vector<int32_t> tokens_;  // what the cache holds
  std::string plan_hash_;
  int64_t prompt_tokens_ = 0;  // of tokens_; the rest was generated
};

}  // namespace baton
