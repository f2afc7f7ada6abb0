// Tiny models of every architecture in a temporary folder, and runs that return logits.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "baton/engine.h"
#include "engine/session.h"
#include "model/spec/synthetic.h"
#include "tests/have_gpu.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define BATON_TEST_SLOW_BUILD 1
#else
#define BATON_TEST_SLOW_BUILD 0
#endif

namespace baton::test {

// Sanitizers make tests five to fifteen times slower: sweeps have fewer cases, but no property is
// left out.
constexpr bool kSlowBuild = BATON_TEST_SLOW_BUILD;

class TempFolder {
 public:
  TempFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "baton-test-XXXXXX").string();
    path_ = ::mkdtemp(name.data());
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  std::string File(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

inline const TempFolder& Scratch() {
  static const TempFolder folder;
  return folder;
}

inline std::string WriteFile(const std::string& name, const std::string& text) {
  const std::string path = Scratch().File(name);
  std::ofstream(path, std::ios::binary) << text;
  return path;
}

struct BackendCase {
  const char* name;
  Backend backend;
  KvType kv;
  double tolerance;  // of one logit, between two ways of computing the same
};

// Logits of the synthetic models have a deviation of about 1. The reference differs by summation
// order only; on the fast backends a last-bit difference may also flip the bf16 rounding of a
// cached key.
inline std::vector<BackendCase> BackendCases() {
  std::vector<BackendCase> cases = {{"ref", Backend::kReference, KvType::kF32, 2e-4}};
#if BATON_WITH_CPU
  cases.push_back({"cpu", Backend::kCpu, KvType::kBF16, 6e-2});
#endif
  if (HaveGpu()) cases.push_back({"cuda", Backend::kCuda, KvType::kBF16, 6e-2});
  return cases;
}

inline std::string NameOf(const ::testing::TestParamInfo<BackendCase>& info) {
  return info.param.name;
}
inline void PrintTo(const BackendCase& c, std::ostream* out) { *out << c.name; }

// Six layers that the plan may change freely; gemma3 has two such of twelve (every sixth).
inline SyntheticSpec TinySpec(const std::string& architecture = "llama") {
  SyntheticSpec spec;
  spec.architecture = architecture;
  spec.layers = architecture == "gemma3" ? 12 : 6;
  spec.width = 64;
  spec.heads = 4;
  spec.kv_heads = 2;
  spec.head_dim = 32;
  spec.ffn_width = 64;
  spec.vocab = 300;
  spec.context = 4096;
  spec.window = 96;
  return spec;
}

inline std::string ModelFile(const SyntheticSpec& s) {
  const std::string path = Scratch().File(fmt::format(
      "{}-{}-{}-{}-{}-{}.gguf", s.architecture, s.layers, s.heads, s.kv_heads, s.context, s.seed));
  if (!std::filesystem::exists(path)) {
    const Status written = WriteSyntheticGguf(path, s);
    EXPECT_TRUE(written.ok()) << written.error().ToString();
  }
  return path;
}

inline std::unique_ptr<Engine> LoadEngine(const SyntheticSpec& spec, const BackendCase& c,
                                          EngineOptions options = {}) {
  options.backend = c.backend;
  options.kv = c.kv;
  if (options.threads == 0) options.threads = 2;
  auto engine = Engine::Load(ModelFile(spec), options);
  EXPECT_TRUE(engine.ok()) << engine.error().ToString();
  return std::move(engine).value();
}

inline std::vector<int32_t> RandomTokens(int64_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  for (int32_t& t : tokens) t = static_cast<int32_t>(random() % 256);
  return tokens;
}

inline ResolvedPlan Resolved(Engine& engine, const Plan& plan) {
  auto resolved = engine.impl().ResolvePlan(plan, nullptr);
  EXPECT_TRUE(resolved.ok()) << resolved.error().ToString();
  return std::move(resolved).value();
}

inline Session NewSession(Engine& engine, int64_t max_tokens) {
  std::vector<CacheSpec> all = engine.impl().model_plan.caches;
  for (CacheSpec& c : all) c.low_bit = true;
  auto session = Session::Create(engine, all, max_tokens);
  EXPECT_TRUE(session.ok()) << session.error().ToString();
  return std::move(session).value();
}

using Logits = std::vector<float>;  // [rows, vocab]

inline Logits Decode(Session& session, std::span<const int32_t> tokens, const ResolvedPlan* plan,
                     Watch* watch = nullptr) {
  Logits all;
  Session::DecodeOptions options;
  options.plan = plan;
  options.watch = watch;
  options.on_logits = [&](int64_t, View<const float> logits) {
    all.insert(all.end(), logits.data(), logits.data() + logits.size());
  };
  const Status status = session.Decode(tokens, options);
  EXPECT_TRUE(status.ok()) << status.error().ToString();
  return all;
}

inline Logits Prefill(Session& session, std::span<const int32_t> tokens,
                      const ResolvedPlan* plan = nullptr) {
  Logits last;
  const Status status = session.Prefill(tokens, plan, [&](int64_t, View<const float> logits) {
    last.assign(logits.data(), logits.data() + logits.size());
  });
  EXPECT_TRUE(status.ok()) << status.error().ToString();
  return last;
}

inline double LargestDifference(const Logits& a, const Logits& b) {
  EXPECT_EQ(a.size(), b.size());
  EXPECT_FALSE(a.empty());
  double largest = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    const double d = std::abs(static_cast<double>(a[i]) - b[i]);
    if (!(d <= largest)) largest = d;  // NaN is kept
  }
  return largest;
}

}  // namespace baton::test
