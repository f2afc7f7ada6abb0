#include "engine/prompt/prompt_pace.h"

#include <gtest/gtest.h>

namespace baton {
namespace {

TEST(PromptPace, GivesPromptsTheirShareOfTheTime) {
  PromptPace pace;
  EXPECT_EQ(pace.Budget(0.5), 1);  // nothing is known
  pace.BeginRound();
  pace.Decoded(0.004);
  pace.Decoded(0.006);
  pace.Ran({.rows = 500, .layers = 2}, 0.001);  // a microsecond for each row of a layer
  EXPECT_NEAR(static_cast<double>(pace.Budget(0.5)), 10'000, 1);
  EXPECT_NEAR(static_cast<double>(pace.Budget(0.2)), 2'500, 1);
  EXPECT_EQ(pace.Budget(1), kWholePass);
}

// Short rounds, as a GPU's, count as long as nobody notices.
TEST(PromptPace, ShortRoundsCountAsFiveMilliseconds) {
  PromptPace pace;
  pace.Ran({.rows = 500, .layers = 2}, 0.001);
  for (const double seconds : {0.0, 0.002, 0.003}) {
    pace.Decoded(seconds);
    EXPECT_NEAR(static_cast<double>(pace.Budget(0.5)), 5'000, 1);
  }
  pace.Decoded(0.002);
  EXPECT_NEAR(static_cast<double>(pace.Budget(0.5)), 7'000, 1);
}

TEST(PromptPace, GoesByTheSlowestLayerOfLate) {
  PromptPace pace;
  pace.Decoded(0.01);
  pace.Ran({.rows = 1000, .layers = 1}, 0.004);
  pace.Ran({}, 1);  // no layers
  pace.Ran({.rows = 1000, .layers = 1}, 0.001);
  EXPECT_NEAR(static_cast<double>(pace.Budget(0.5)), 2'500 / 0.9, 2);
  for (int i = 0; i < 20; ++i) pace.Ran({.rows = 1000, .layers = 1}, 0.001);
  EXPECT_NEAR(static_cast<double>(pace.Budget(0.5)), 10'000, 1);
}

// The last rows of a prompt say little about a chunk.
TEST(PromptPace, FewRowsCountAsSome) {
  PromptPace pace;
  pace.Decoded(0.01);
  pace.Ran({.rows = 1, .layers = 10}, 0.00064);
  EXPECT_NEAR(static_cast<double>(pace.Budget(0.5)), 10'000, 1);
}

}  // namespace
}  // namespace baton
