// Shared by the tests of profiles: random text and one engine.
#pragma once

#include <memory>
#include <random>
#include <string>

#include "tests/attention/engine_test_util.h"

namespace baton::test {

// Lower-case letters.
inline std::string RandomText(int64_t bytes, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::string text;
  for (int64_t i = 0; i < bytes; ++i) text += static_cast<char>('a' + random() % 26);
  return text;
}

inline Engine& AnyEngine() {
  static const std::unique_ptr<Engine> engine = LoadEngine(TinySpec(), BackendCases()[0]);
  return *engine;
}

}  // namespace baton::test
