// What the tests of caches share.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <utility>
#include <vector>

#include "kv/kv_store.h"

namespace baton::test {

inline std::shared_ptr<KvStore> MakeStore(std::vector<KvCacheSpec> caches, int64_t max_tokens) {
  auto store = KvStore::Create(std::move(caches), max_tokens);
  EXPECT_TRUE(store.ok());
  return std::move(store).value();
}

}  // namespace baton::test
