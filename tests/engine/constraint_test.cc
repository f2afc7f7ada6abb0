// Constrained answers: tokens that may not come never do, in any company, drafted or not, and the
// answer ends where the constraint says so.
#include "baton/constraint.h"

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "formats/byte_tokenizer.h"
#include "tests/engine/test_requests.h"

namespace baton {
namespace {

using namespace test;
using testing::HasSubstr;

// The letters of a text in turn, then whatever `end` says.
class Spelling final : public Constraint {
 public:
  enum class End { kToken, kNothing, kStuck };
  Spelling(std::string text, End end) : text_(std::move(text)), end_(end) {}

  class State final : public ConstraintState {
   public:
    explicit State(const Spelling& spelling) : s_(spelling) {}
    Result<bool> Next(std::span<uint32_t> mask) override {
      std::fill(mask.begin(), mask.end(), 0u);
      if (at_ > s_.text_.size()) return false;
      if (at_ == s_.text_.size()) {
        if (s_.end_ == End::kStuck) return Error::Unsupported("stuck after {} tokens", at_);
        if (s_.end_ == End::kNothing) return false;
      }
      mask[static_cast<size_t>(Wanted()) / 32] |= 1u << (Wanted() % 32);
      return true;
    }
    bool Accept(int32_t token) override {
      if (at_ > s_.text_.size() || token != Wanted()) return false;
      return ++at_, true;
    }
    void Rollback(int tokens) override {
      ASSERT_LE(static_cast<size_t>(tokens), at_);
      at_ -= static_cast<size_t>(tokens);
    }

   private:
    int32_t Wanted() const {
      return at_ < s_.text_.size() ? static_cast<unsigned char>(s_.text_[at_])
                                   : static_cast<int32_t>(kByteEos);
    }
    const Spelling& s_;
    size_t at_ = 0;
  };
  std::unique_ptr<ConstraintState> Begin() const override { return std::make_unique<State>(*this); }

 private:
  const std::string text_;
  const End end_;
};

class ConstraintTest : public ::testing::TestWithParam<BackendCase> {
 protected:
  std::unique_ptr<Engine> engine_ = LoadEngine(TinySpec(), GetParam());
  Generation Must(const Request& r) {
    auto g = engine_->Generate(r);
    EXPECT_TRUE(g.ok()) << g.error().ToString();
    return g.ok() ? *std::move(g) : Generation{};
  }
};

constexpr const char* kSchema =
    R"({"type": "object", "properties": {"name": {"type": "string", "maxLength": 8},
        "sizes": {"type": "array", "items": {"enum": ["small", "large"]}, "minItems": 1,
        "maxItems": 2}, "ok": {"type": "boolean"}},
        "required": ["name", "sizes", "ok"], "additionalProperties": false})";

TEST_P(ConstraintTest, AnAnswerIsWhatItsConstraintSpells) {
  for (const auto end : {Spelling::End::kToken, Spelling::End::kNothing}) {
    for (const float temperature : {0.0f, 1.0f}) {
      Request r = TokensRequest(30, 1, 50);
      r.sampling = {.temperature = temperature, .top_k = 3, .repetition_penalty = 1.5, .seed = 4};
      r.constraint = std::make_shared<Spelling>("as it is spelt", end);
      r.logprobs = 2;
      const Generation g = Must(r);
      EXPECT_EQ(g.text, "as it is spelt");
      EXPECT_EQ(g.stop, Generation::Stop::kEndOfText) << "also where ends are ignored";
      ASSERT_EQ(g.logprobs.size(), g.text.size());
      EXPECT_NE(g.logprobs[0].chosen.logprob, 0) << "of the model's own distribution";
    }
  }
}

TEST_P(ConstraintTest, AConstraintWithoutAWayOnEndsItsRequestAlone) {
  Request stuck = TokensRequest(30, 1, 50);
  stuck.constraint = std::make_shared<Spelling>("abc", Spelling::End::kStuck);
  const Request other = TokensRequest(40, 2, 20);
  const std::string alone = Fingerprint(Must(other));
  Seen failed, fine;
  Submit(*engine_, stuck, failed);
  Submit(*engine_, other, fine);
  StepUntilIdle(*engine_);
  ASSERT_TRUE(failed.done());
  EXPECT_FALSE(failed.ok());
  EXPECT_THAT(failed.result->error().ToString(), HasSubstr("stuck after 3 tokens"));
  EXPECT_EQ(failed.text, "abc");
  ASSERT_TRUE(fine.ok());
  EXPECT_EQ(Fingerprint(fine.generation()), alone);
}

// Random weights write no JSON of their own accord.
TEST_P(ConstraintTest, EveryAnswerIsWhatTheSchemaDescribesInAnyCompany) {
  const auto constraint = engine_->CompileGrammar({.schema = kSchema, .around = ""});
  ASSERT_TRUE(constraint.ok()) << constraint.error().ToString();
  std::vector<Request> requests = MixedRequests();
  for (Request& r : requests) {
    r.constraint = *constraint;
    r.max_tokens = 400;
    r.sampling.logit_bias = {{' ', -10}, {'\n', -10}, {'\t', -10}, {'\r', -10}};
  }
  requests.push_back(TokensRequest(50, 9, 30));
  std::vector<std::string> alone;
  for (const Request& r : requests) {
    const Generation g = Must(r);
    alone.push_back(Fingerprint(g));
    if (!r.constraint) continue;
    ASSERT_EQ(g.stop, Generation::Stop::kEndOfText) << g.text;
    const auto json = nlohmann::json::parse(g.text, nullptr, false);
    ASSERT_TRUE(json.is_object()) << g.text;
    EXPECT_TRUE(json["ok"].is_boolean());
    for (const auto& size : json["sizes"]) EXPECT_TRUE(size == "small" || size == "large");
    EXPECT_GT(g.stats.constraint_seconds, 0);
  }
  const auto together = engine_->GenerateBatch(requests);
  ASSERT_TRUE(together.ok()) << together.error().ToString();
  for (size_t i = 0; i < requests.size(); ++i)
    EXPECT_EQ(Fingerprint((*together)[i]), alone[i]) << i;
}

// Also where a rule may take so many tokens: then the grammar remembers what it allowed last.
TEST_P(ConstraintTest, ExactAnswersAreThoseOfDenseDecoding) {
  const char* const kBudget = "answer ::= lead root\nlead[max_tokens=6] ::= [a-z ]*\n";
  int64_t accepted = 0;
  for (uint64_t seed = 1; seed < 7; ++seed) {
    const auto constraint =
        engine_->CompileGrammar({.schema = kSchema, .around = seed > 4 ? kBudget : ""});
    ASSERT_TRUE(constraint.ok()) << constraint.error().ToString();
    Request dense = TokensRequest(60, seed, 300);
    dense.ignore_end = false;
    dense.constraint = *constraint;
    dense.sampling.logit_bias = {{' ', -10}, {'\n', -10}, {'\t', -10}, {'\r', -10}};
    if (seed % 2) {
      dense.sampling.temperature = 0.8f;
      dense.sampling.seed = seed;
    }
    const Generation expected = Must(dense);
    for (const bool plan : {false, true}) {
      Request exact = dense;
      if (plan) exact.plan = SparsePlan(16);
      exact.exact = ExactOptions{.plan = plan, .lookup = !plan, .most_drafts = 5};
      const Generation g = Must(exact);
      EXPECT_EQ(g.tokens, expected.tokens) << plan << " " << seed;
      EXPECT_EQ(g.stats.logits_hash, expected.stats.logits_hash);
      EXPECT_EQ(g.stop, expected.stop);
      accepted += g.stats.exact->accepted;
    }
  }
  EXPECT_GT(accepted, 0);
}

TEST_P(ConstraintTest, StopStringsLimitsAndCancelsEndConstrainedAnswers) {
  const auto constraint =
      engine_->CompileGrammar({.schema = R"({"type": "object"})", .around = ""});
  ASSERT_TRUE(constraint.ok());
  Request r = TokensRequest(20, 3, 40);
  r.constraint = *constraint;
  r.stop = {"\""};
  const Generation stopped = Must(r);
  EXPECT_EQ(stopped.text.find('"'), std::string::npos);
  r.stop.clear();
  r.max_tokens = 3;
  EXPECT_EQ(Must(r).stop, Generation::Stop::kLength);
  r.max_tokens = 4000;
  r.sampling.logit_bias = {{'}', -100}};
  Seen seen;
  const RequestId id = Submit(*engine_, r, seen);
  for (int i = 0; i < 5; ++i) engine_->Step();
  engine_->CancelRequest(id);
  StepUntilIdle(*engine_);
  ASSERT_TRUE(seen.ok());
  EXPECT_EQ(seen.generation().stop, Generation::Stop::kCancelled);
  EXPECT_EQ(engine_->cache_use().held_bytes, 0);
}

INSTANTIATE_TEST_SUITE_P(Backends, ConstraintTest, ::testing::ValuesIn(BackendCases()), NameOf);

}  // namespace
}  // namespace baton
