// Cutting a sequence back: what follows is what would have followed without the tokens that were
// cut off, whatever prompt schedule and rings the sequence has.
#include <gtest/gtest.h>

#include "tests/engine/native_test_util.h"

namespace baton {
namespace {

using namespace test;

const BackendCase kReference = BackendCases()[0];

// After a prompt (with early exit and suffix), m drafted tokens are decoded, rejected, and others
// follow.
TEST(Rollback, RejectedDraftsLeaveNoTrace) {
  for (const SyntheticSpec& spec : NativeSpecs()) {
    auto engine = LoadNative(spec, kReference);
    const std::vector<int32_t> tokens = RandomTokens(300, 21), drafts = RandomTokens(300, 22);
    for (const int64_t n : {9, 130}) {
      const auto prompt = std::span(tokens).first(static_cast<size_t>(n));
      for (const int64_t m : {1, 8}) {
        Session never = NewNativeSession(*engine, 512), session = NewNativeSession(*engine, 512, m);
        RunPrompt(*engine, never.sequence(), prompt, {});
        RunPrompt(*engine, session.sequence(), prompt, {});
        for (int64_t at = n; at < n + (kSlowBuild ? 24 : 80); at += 8) {
          // Drafts are verified in one pass; some of them are right.
          std::vector<int32_t> rows(tokens.begin() + at, tokens.begin() + at + 1);
          rows.insert(rows.end(), drafts.begin() + at, drafts.begin() + at + m);
          const Logits all = Decode(session, rows, nullptr);
          ASSERT_TRUE(session.sequence().CanTruncate(at + 1))
              << Describe(spec) << " n " << n << " at " << at << " m " << m;
          session.Truncate(at + 1);
          const auto next = std::span(tokens).subspan(static_cast<size_t>(at), 8);
          const Logits expected = DecodeSteps(never, next);
          Logits got(all.begin(), all.begin() + spec.vocab);
          const Logits rest = DecodeSteps(session, next.subspan(1));
          got.insert(got.end(), rest.begin(), rest.end());
          ASSERT_EQ(LargestDifference(got, expected), 0)
              << Describe(spec) << " n " << n << " at " << at << " m " << m;
        }
      }
    }
  }
}

// A cut into the prompt itself, where the sequence allows one: conversations do that.
TEST(Rollback, CutsIntoAPromptAreExactOrRefused) {
  int64_t cuts = 0;
  for (const SyntheticSpec& spec : NativeSpecs()) {
    auto engine = LoadNative(spec, kReference);
    const std::vector<int32_t> tokens = RandomTokens(200, 23), others = RandomTokens(200, 24);
    for (const int64_t n : {7, 21, 150}) {
      for (const int64_t wanted : {1, 4}) {
        for (int64_t cut = std::max<int64_t>(0, n - 12); cut <= n; ++cut) {
          Session session = NewNativeSession(*engine, 512);
          RunPrompt(*engine, session.sequence(), std::span(tokens).first(static_cast<size_t>(n)),
                    {.wanted = wanted});
          if (kSlowBuild && cut % 3 != 0) continue;
          if (!session.sequence().CanTruncate(cut)) continue;
          session.Truncate(cut);
          const auto more = std::span(others).first(9);
          std::vector<int32_t> all(tokens.begin(), tokens.begin() + cut);
          all.insert(all.end(), more.begin(), more.end());
          Session whole = NewNativeSession(*engine, 512);
          const Logits expected = RunWhole(*engine, whole.sequence(), all);
          const auto rows = LastRows(expected, 9, spec.vocab);
          cuts += cut < n;
          EXPECT_EQ(
              LargestDifference(Decode(session, more, nullptr), Logits(rows.begin(), rows.end())),
              0)
              << Describe(spec) << " n " << n << " wanted " << wanted << " cut " << cut;
        }
      }
    }
  }
  EXPECT_GT(cuts, 100);
}

}  // namespace
}  // namespace baton
