#include "results/records.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "results/profile_fields.h"

namespace baton::results {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

Origin SomeOrigin(const std::string& kind) {
  return {.format = "baton-" + kind,
          .command = "baton " + kind,
          .cpu = "some CPU",
          .kv = "bf16",
          .model = {.path = "m.gguf", .layers = 3, .backend = "cpu", .threads = 2},
          .texts = {{"a.txt", 12, "00ff"}}};
}

PlanEval SomeEval(const std::string& plan) {
  EvalResult r{.kl_mean = 0.25, .retrieval_found = 3, .predicted_nats = 0.5};
  r.needles = {{.length = 512, .depth = 0.5, .kind = "digits", .found = true, .kl = 0.125}};
  r.self_generated = 8;
  return {.plan = plan, .result = r};
}

// Reads the record's JSON into `read`, and returns both as text.
template <typename T>
std::pair<std::string, std::string> ThereAndBack(const T& record, T read = {}) {
  const OrderedJson written = ToJson(record);
  Read(Json::parse(written.dump()), read);
  return {written.dump(), ToJson(read).dump()};
}

TEST(Records, WhatIsReadIsWrittenTheSame) {
  const auto expect = [](const auto& texts) { EXPECT_EQ(texts.first, texts.second); };
  InfoRecord info{.origin = SomeOrigin("info")};
  info.origin.model.window = {0, 128};
  expect(ThereAndBack(info));
  info.plan = "3 layers", info.decode_step = {{1024, 0.5}, {2048, 0.25}};
  expect(ThereAndBack(info));
  RunRecord run{.origin = SomeOrigin("run")};
  run.generation = {.text = "a \"b\"", .tokens = {1, 2}, .stop = Generation::Stop::kCancelled};
  run.generation.stats.watched = {{.layer = 4, .captured = 0.75, .promoted = true}};
  expect(ThereAndBack(run));
  run.generation.stats.routing = RoutingReport{.bitmap = "FS",
                                               .logits = {{1.5f, -2}, {0, 0.25f}},
                                               .source = "exact",
                                               .held_token_equivalents = {9, 3}};
  expect(ThereAndBack(run));
  expect(ThereAndBack(PerplexityRecord{.origin = SomeOrigin("perplexity"), .score = "half"}));
  EvalRecord eval{.origin = SomeOrigin("eval"), .options = {.seed = UINT64_MAX}};
  eval.plans = {SomeEval("p")};
  expect(ThereAndBack(eval));
  eval.plans = {SomeEval("p"), SomeEval("q")};
  expect(ThereAndBack(eval, EvalRecord{.plans = {}}));
  BenchRecord bench{.origin = SomeOrigin("bench"), .options = {.whole_prompt = 64}};
  bench.result.rows = {{.depth = 512, .plan = "dense", .ops = {{.name = "attend", .calls = 3}}}};
  bench.result.rows[0].verify = {{.rows = 2, .seconds = 0.5}};
  bench.result.exact = ExactBench{.depth = 512, .prompts = 2, .accepted = 0.5};
  bench.result.exact->expected = {{.depth = 512, .drafts = 3, .time = 0.8}};
  bench.result.exact->report.drafted_at = {4, 2};
  expect(ThereAndBack(bench));
  Candidate candidate{.plan = PlanOfLetters("FSCRW"), .origin = "price 1", .kl = 0.02, .found = 5};
  candidate.plan.prefill = {.sparse = true, .fraction = 0.5};
  candidate.kind_kl = {0.01, 0.03}, candidate.left_out_kl = {0.02, 0.04};
  candidate.spread = 1.5;
  expect(ThereAndBack(SearchRecord{
      .origin = SomeOrigin("search"),
      .search = {.chosen = candidate, .kinds = {"a", "b"}, .candidates = {candidate}}}));
}

TEST(Records, KeysStandInTheOrderOfTheListAndEmptyOnesAreLeftOut) {
  std::vector<std::string> keys;
  const OrderedJson json = ToJson(BenchRecord{.origin = SomeOrigin("bench")});
  for (const auto& [key, unused] : json.items()) keys.push_back(key);
  EXPECT_THAT(keys, ElementsAre("format", "version", "command", "machine", "model", "load_seconds",
                                "peak_memory_bytes", "expected_memory_bytes", "read_bandwidth",
                                "prompt", "decode", "repeats", "rows"));
}

TEST(Records, WhatIsAbsentOrOfAnotherKindReadsAsAbsent) {
  EvalRecord eval;
  Read(Json::parse(R"({"kl_mean":null,"context":"many","rows":192.0,"seed":-1,
      "top1_agreement":0.5,"grid":[{"length":8},3]})"),
       eval);
  const EvalResult& r = eval.result();
  EXPECT_TRUE(std::isnan(r.kl_mean));
  EXPECT_TRUE(std::isnan(r.answer_kl));
  EXPECT_EQ(r.top1_agreement, 0.5);
  EXPECT_EQ(eval.options.context, 0);  // not the default of an evaluation that is yet to run
  EXPECT_EQ(eval.options.rows, 192);
  EXPECT_EQ(eval.options.seed, 0u);
  EXPECT_EQ(r.retrieval_found, -1);
  EXPECT_EQ(r.predicted_nats, std::nullopt);
  ASSERT_EQ(r.grid.size(), 1u);
  EXPECT_EQ(r.grid[0].length, 8);
  for (const char* text : {"[]", "3", "null", "{}"}) {
    SearchRecord search;
    Read(Json::parse(text), search);
    EXPECT_TRUE(std::isnan(search.search.test.kl)) << text;
    EXPECT_EQ(search.search.chosen.found, -1) << text;
  }
}

TEST(Records, TheFirstProblemIsNamed) {
  NeedleResult needle;
  Json json = ToJson<Json>(needle);
  EXPECT_EQ(Read(json, needle), "");
  json["length"] = 1.5;
  json["found"] = "yes";
  EXPECT_THAT(Read(json, needle), HasSubstr("\"length\" is of the wrong kind"));
  json.erase("length");
  EXPECT_EQ(Read(json, needle), "\"length\" is missing");
  SplitInfo split;
  json = ToJson<Json>(split);
  json["probes"] = int64_t{1} << 40;  // an int holds less
  EXPECT_THAT(Read(json, split), HasSubstr("\"probes\""));
  EXPECT_EQ(split.probes, 0);
}

TEST(Records, WhatIsNotFiniteIsNull) {
  const auto json =
      ToJson(NeedleResult{.depth = std::numeric_limits<double>::infinity(), .kl = NAN});
  EXPECT_THAT(json.dump(), HasSubstr("\"depth\":null"));
  EXPECT_THAT(json.dump(), HasSubstr("\"kl\":null"));
}

struct Note {
  std::string text;
};
void Fields(auto& v, Note& n) { v("text", n.text); }
struct Page {
  std::optional<Note> note, margin;
};
void Fields(auto& v, Page& p) {
  v.NonEmpty("note", p.note);
  v("margin", p.margin);
}

TEST(Records, AnOptionalRecordIsLeftOutOrNull) {
  Page page;
  EXPECT_EQ(ToJson(page).dump(), R"({"margin":null})");
  page.note = Note{"a"}, page.margin = Note{"b"};
  const std::string both = R"({"note":{"text":"a"},"margin":{"text":"b"}})";
  EXPECT_EQ(ToJson(page).dump(), both);
  Page read;
  EXPECT_EQ(Read(Json::parse(both), read), "");
  EXPECT_EQ(ToJson(read).dump(), both);
  EXPECT_EQ(Read(Json::parse(R"({"margin":null})"), read), "");
  EXPECT_FALSE(read.note || read.margin);
}

TEST(Records, LettersOfAnotherRoleMakeNoPlan) {
  EXPECT_EQ(Letters(PlanOfLetters("FSCRWX")), "FSCRWX");
  EXPECT_TRUE(PlanOfLetters("FSZ").layers.empty());
}

}  // namespace
}  // namespace baton::results
