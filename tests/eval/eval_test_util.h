// A small random model with a byte tokenizer, so that evaluation runs without a download.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <string>

#include "baton/engine.h"
#include "model/spec/synthetic.h"

namespace baton::testing {

inline std::string SyntheticModel(const std::string& architecture = "llama") {
  const std::string path =
      ::testing::TempDir() + "eval-" + architecture + "-" + std::to_string(::getpid()) + ".gguf";
  if (!std::filesystem::exists(path)) {
    SyntheticSpec spec;
    spec.architecture = architecture;
    spec.layers = 4;
    spec.head_dim = 32;
    spec.heads = 4;
    spec.kv_heads = 2;
    spec.width = 64;
    spec.context = 2048;
    const Status written = WriteSyntheticGguf(path, spec);
    EXPECT_TRUE(written.ok()) << written.error().ToString();
  }
  return path;
}

inline std::unique_ptr<Engine> LoadSynthetic(
    EngineOptions options = {.backend = Backend::kReference, .kv = KvType::kF32},
    const std::string& architecture = "llama") {
  auto engine = Engine::Load(SyntheticModel(architecture), options);
  EXPECT_TRUE(engine.ok()) << engine.error().ToString();
  return std::move(engine).value();
}

// The quickest backend of this build: tests over long contexts take minutes on the reference under
// a sanitizer.
inline EngineOptions Quick() {
#if BATON_WITH_CPU
  return {.backend = Backend::kCpu};
#else
  return {.backend = Backend::kReference};
#endif
}

// Text without a period, so that no two windows are alike.
inline std::string MadeUpText(size_t bytes) {
  std::string text;
  uint64_t state = 12345;
  while (text.size() < bytes) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    text += static_cast<char>(state >> 60 < 3 ? ' ' : 'a' + (state >> 33) % 26);
  }
  return text;
}

// Layer 0 full, 1 select, 2 and 3 reuse layer 1's ranking.
inline Plan ReusePlan(int64_t budget) {
  Plan plan = Plan::Dense(4);
  plan.budget = {budget, 0};
  plan.sink = 2;
  plan.recent = 8;
  plan.min_context = 0;
  plan.layers[1].role = Role::kSelect;
  for (size_t l : {2, 3}) plan.layers[l] = {.role = Role::kReuse, .source = 1};
  return plan;
}

inline Plan WindowPlan(int64_t sink, int64_t recent) {
  Plan plan = Plan::Dense(4);
  plan.min_context = 0;
  for (LayerRole& l : plan.layers) l = {.role = Role::kWindow, .sink = sink, .recent = recent};
  return plan;
}

}  // namespace baton::testing
