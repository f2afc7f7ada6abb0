// Real models against llama.cpp: `llama-perplexity -c 1024 --chunks 2` of the same files and text
// (docs/quality.md).
#include <gtest/gtest.h>

#include <fstream>

#include "base/sha256.h"
#include "baton/eval.h"
#include "profile/texts.h"

namespace baton {
namespace {

struct Case {
  const char* model;
  double perplexity;  // llama.cpp's
};

class PeerPerplexity : public ::testing::TestWithParam<Case> {};

TEST_P(PeerPerplexity, WithinOnePercent) {
#if !BATON_WITH_CPU
  GTEST_SKIP() << "takes minutes on the reference backend";
#endif
  const std::string model = std::string("models/") + GetParam().model;
  if (!std::ifstream(model).good()) GTEST_SKIP() << "needs " << model << ": run scripts/get-model";
  std::string text;
  for (const char* name : {"GPL-3", "MPL-1.1"}) {
    const auto part = ReadText(std::string("/usr/share/common-licenses/") + name);
    if (!part.ok()) GTEST_SKIP() << part.error().ToString();
    text += *part;
  }
  text.resize(60000);
  if (Sha256Hex(text) != "db4283aa57050e7cf017a15e931b3b486dbec73b7bef310bbe4d4c9e47a42970")
    GTEST_SKIP() << "this system's licence texts differ from those measured";

  auto engine = Engine::Load(model, {});
  ASSERT_TRUE(engine.ok()) << engine.error().ToString();
  const auto result = MeasurePerplexity(**engine, text, {.context = 1024, .chunks = 2});
  ASSERT_TRUE(result.ok()) << result.error().ToString();
  EXPECT_EQ(result->tokens_scored, 1022);
  EXPECT_NEAR(result->perplexity, GetParam().perplexity, 0.01 * GetParam().perplexity);
}

INSTANTIATE_TEST_SUITE_P(Models, PeerPerplexity,
                         ::testing::Values(Case{"SmolLM2-135M-Instruct.Q4_1.gguf", 22.1047},
                                           Case{"gemma-3-270m-q4_k_m.gguf", 18.4405}),
                         [](const auto& info) {
                           return std::string(info.index ? "gemma3" : "smollm2");
                         });

}  // namespace
}  // namespace baton
