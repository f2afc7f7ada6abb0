#include "engine/prompt_pace.h"

#include <gtest/gtest.h>

namespace baton {
namespace {

TEST(PromptPace, GivesPromptsTheirShareOfTheTime) {
  PromptPace pace;
  EXPECT_EQ(pace.Part(0.5), 1);  // nothing is known
  pace.BeginRound();
  pace.Decoded(0.004);
  pace.Decoded(0.006);
  pace.Ran(1000, 0.001);  // a microsecond for each row of a layer
  EXPECT_NEAR(static_cast<double>(pace.Part(0.5)), 10'000, 1);
  EXPECT_NEAR(static_cast<double>(pace.Part(0.2)), 2'500, 1);
  EXPECT_EQ(pace.Part(1), INT64_MAX);
  pace.BeginRound();
  EXPECT_EQ(pace.Part(0.5), 1);
}

TEST(PromptPace, GoesByTheSlowestLayerOfLate) {
  PromptPace pace;
  pace.Decoded(0.01);
  pace.Ran(1000, 0.004);
  pace.Ran(0, 1);  // no layers
  pace.Ran(1000, 0.001);
  EXPECT_NEAR(static_cast<double>(pace.Part(0.5)), 2'500 / 0.9, 2);
  for (int i = 0; i < 20; ++i) pace.Ran(1000, 0.001);
  EXPECT_NEAR(static_cast<double>(pace.Part(0.5)), 10'000, 1);
}

}  // namespace
}  // namespace baton
