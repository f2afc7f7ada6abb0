// A real model against facts computed elsewhere in float32 (tests/golden/README.md): token ids,
// log-probabilities and greedy continuations of SmolLM2-135M-Instruct, on the reference backend
// exactly and on the fast one within the budget of docs/numerics.md.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "baton/engine.h"
#include "engine/session.h"
#include "tests/have_gpu.h"

namespace baton {
namespace {

const char kModel[] = "models/SmolLM2-135M-Instruct.Q4_1.gguf";

nlohmann::json Golden() {
  std::ifstream in("tests/golden/smollm2-135m-q4_1.json");
  return nlohmann::json::parse(in);
}

std::unique_ptr<Engine> Load(Backend backend, KvType kv) {
  EngineOptions options;
  options.backend = backend;
  options.kv = kv;
  auto engine = Engine::Load(kModel, options);
  EXPECT_TRUE(engine.ok()) << engine.error().ToString();
  return std::move(engine).value();
}

bool HaveModel() { return std::ifstream(kModel).good(); }
#define NEED_MODEL() \
  if (!HaveModel()) GTEST_SKIP() << "needs " << kModel << ": run scripts/get-model smollm2"

std::vector<double> LogSoftmax(const float* x, int64_t n) {
  double largest = x[0], sum = 0;
  for (int64_t i = 1; i < n; ++i) largest = std::max<double>(largest, x[i]);
  for (int64_t i = 0; i < n; ++i) sum += std::exp(x[i] - largest);
  std::vector<double> y(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) y[static_cast<size_t>(i)] = x[i] - largest - std::log(sum);
  return y;
}

void CheckPrompts(Engine& engine, double tolerance, bool greedy) {
  for (const auto& p : Golden()["prompts"]) {
    const auto ids = p["ids"].get<std::vector<int32_t>>();
    EXPECT_EQ(engine.Tokenize(p["text"].get<std::string>(), false, true), ids) << p["text"];
    auto session = Session::Create(engine, engine.impl().model_plan.caches, 256);
    ASSERT_TRUE(session.ok());
    ASSERT_TRUE(
        session.value()
            .Prefill(ids, nullptr,
                     [&](int64_t, View<const float> logits) {
                       const auto lp = LogSoftmax(logits.data(), logits.dim(1));
                       for (const auto& top : p["top10"]) {
                         EXPECT_NEAR(lp[top[0].get<size_t>()], top[1].get<double>(), tolerance)
                             << p["text"];
                       }
                     })
            .ok());
    if (!greedy) continue;
    Request request;
    request.tokens = ids;
    request.max_tokens = 16;
    request.ignore_end = true;
    auto result = engine.Generate(request);
    ASSERT_TRUE(result.ok()) << result.error().ToString();
    EXPECT_EQ(result->tokens, p["greedy16"].get<std::vector<int32_t>>()) << p["text"];
    EXPECT_EQ(result->text, p["greedy_text"].get<std::string>());
  }
}

void CheckLicence(Engine& engine, double tolerance) {
  std::ifstream in("/usr/share/common-licenses/GPL-3");
  if (!in.good()) GTEST_SKIP() << "needs /usr/share/common-licenses/GPL-3 (Debian base-files)";
  std::stringstream text;
  text << in.rdbuf();
  const auto golden = Golden()["gpl3"];
  auto ids = engine.Tokenize(text.str(), false, false);
  ASSERT_EQ(static_cast<int64_t>(ids.size()), golden["tokens"].get<int64_t>());
  ids.resize(1024);
  auto session = Session::Create(engine, engine.impl().model_plan.caches, 2048);
  ASSERT_TRUE(session.ok());
  double nll = 0;
  for (int64_t first = 0; first < 1024; first += 256) {
    Session::DecodeOptions options;
    options.on_logits = [&](int64_t row, View<const float> logits) {
      for (int64_t i = 0; i < logits.dim(0); ++i) {
        const auto next = static_cast<size_t>(first + row + i + 1);
        if (next < ids.size())
          nll -= LogSoftmax(logits.row(i), logits.dim(1))[static_cast<size_t>(ids[next])];
      }
    };
    ASSERT_TRUE(session.value()
                    .Decode(std::span(ids).subspan(static_cast<size_t>(first), 256), options)
                    .ok());
  }
  EXPECT_NEAR(nll / 1023, golden["nll_mean_first1024"].get<double>(), tolerance);
}

TEST(Golden, ReferenceReproducesLogProbabilitiesAndGreedyText) {
  NEED_MODEL();
  auto engine = Load(Backend::kReference, KvType::kF32);
  CheckPrompts(*engine, 2e-3, true);
}

TEST(Golden, ReferenceReproducesTheLikelihoodOfALicence) {
  NEED_MODEL();
  auto engine = Load(Backend::kReference, KvType::kF32);
  CheckLicence(*engine, 0.005);
}

#if BATON_WITH_CPU
TEST(Golden, CpuStaysWithinItsNumericsBudget) {
  NEED_MODEL();
  auto engine = Load(Backend::kCpu, KvType::kBF16);
  CheckPrompts(*engine, 0.3, false);
  CheckLicence(*engine, 0.02);
}
#endif

// Prompts and decode of the cuda backend round in other places; its greedy text is the goldens'.
TEST(Golden, CudaStaysWithinItsNumericsBudget) {
  NEED_MODEL();
  if (!test::HaveGpu()) GTEST_SKIP() << "needs the cuda backend and a GPU";
  CheckPrompts(*Load(Backend::kCuda, KvType::kF32), 0.3, true);
  auto engine = Load(Backend::kCuda, KvType::kBF16);
  CheckPrompts(*engine, 0.3, false);
  CheckLicence(*engine, 0.02);
}

}  // namespace
}  // namespace baton
