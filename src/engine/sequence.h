// What a request keeps between forward passes: its cache, its plan and its tokens.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "attention/attention.h"
#include "kv/kv_store.h"
#include "plan/resolved.h"

namespace baton {

struct Sequence {
  Sequence() = default;
  Sequence(const Sequence&) = delete;  // a watch and a cache have one address: passes point at them

  std::shared_ptr<KvStore> store;  // null before admission; declared before `kv`, which needs it
  KvSequence kv;
  int64_t kv_limit = 0;  // most positions `kv` may hold
  ResolvedPlan plan;     // the request's own copy: routing changes it
  Watch watch;
  std::vector<int32_t> tokens;  // the prompt, then what was generated
  int64_t prompt_tokens = 0;    // of `tokens`
  int64_t prompt_position = 0;  // prompt tokens that need no further pass

  Watch* watch_or_null() { return watch.interval > 0 ? &watch : nullptr; }

  // Error::Resource where the request may not have `length` positions.
  Status CheckLimit(int64_t length) const {
    if (length <= kv_limit) return Status::Ok();
    return Error::Resource("KV cache: the request needs {} tokens, the cache holds {}", length,
                           kv_limit)
        .Hint("lower the request's max tokens or raise the engine's kv_tokens");
  }
  // Frees the cache, and the store when this was its last user.
  void Release() {
    kv = {};
    store.reset();
  }
};

}  // namespace baton
