#include "baton/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "report/format.h"
#include "report/svg.h"

namespace baton {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr const char* kPlan = R"({"format":"baton-plan","version":1,
  "model":{"architecture":"llama","layers":3,"fingerprint":""},
  "budget":{"tokens":512,"sink":4,"recent":64},"scope":"all","pool":"sum","unit":"token",
  "layers":["select",{"reuse":{"source":0,"k":256}},{"window":{"sink":4,"recent":508}}]})";

constexpr const char* kProfile = R"({"format":"baton-profile","model_path":"m/<tiny>.gguf",
  "architecture":"llama","layers":3,"heads":2,"kv_heads":1,"head_dim":64,"model_window":[0,0,0],
  "options":{"texts":["a.txt"],"context":8192,"probes":2,"seed":1,"budgets":[512],"windows":[512],
             "sink":4,"recent":64},
  "text_sha256":["00ff"],
  "text":[[0.01,0.2,0.3, 1,0.02,0.1, 1,1,0.03]],
  "answer":[[0.01,0.4,null, 1,0.02,0.1, 1,1,0.03]],
  "own_kl":[0.1,0.01,0.002],"rnmse":[0.1,0.2,0.3],"price_text":[1,0.5,0.1],"price_answer":[0,2,0]})";

constexpr const char* kSearch = R"({"chosen":{"origin":"price 1","predicted_nats":0.02,
    "kv_bytes_share":0.2,"kl":0.02,"answer_kl":0.01,"top1":0.9,"found":5,"dense_found":5,
    "roles":"SRW"},
  "candidates":[
    {"origin":"price 1","predicted_nats":0.02,"kv_bytes_share":0.2,"kl":0.02,"on_front":true,
     "meets_target":true,"roles":"SRW"},
    {"origin":"price 2","predicted_nats":0.01,"kv_bytes_share":0.4,"kl":0.01,"on_front":true,
     "meets_target":false,"roles":"SSR"}],"seconds":3})";

constexpr const char* kEval = R"({"context":8192,"rows":192,"kl_mean":0.0213,"top1_agreement":0.927,
  "nll_delta":0.003,"retrieval_found":30,"retrieval_dense_found":31,"retrieval_total":60,
  "kv_bytes_share":0.109,
  "command":"baton eval <script>alert(1)</script>",
  "grid":[{"length":1024,"depth":0.5,"kind":"digits","dense_found":true,"found":true}]})";

constexpr const char* kBench = R"({"read_bandwidth":3.3e10,"rows":[
  {"depth":7168,"plan":"dense","prompt_tokens_per_s":100,"decode_tokens_per_s":98,
   "kv_bytes_per_token":165e6},
  {"depth":7168,"plan":"3 layers","prompt_tokens_per_s":120,"decode_tokens_per_s":196,
   "kv_bytes_per_token":18e6}],
  "exact":{"depth":7168,"prompts":3,"tokens":93,"different":0,"dense_seconds_per_token":0.01,
   "exact_seconds_per_token":0.0075,"accepted_share":0.9,"drafted":60,"accepted":50,
   "drafted_at":[30,30],"accepted_at":[27],"expected":[{"depth":131072,"drafts":4,"time":0.48}]}})";

constexpr const char* kRun = R"({"format":"baton-run","prompt_tokens":4000,"kv_bytes_held":1400,
  "model":{"path":"m/routed.gguf"},
  "routing":{"bitmap":"FSS","logits":[[-1.0,2.0],[0.5,-0.25],[0.75,0.5]],"source":"exact",
    "rows_pooled":128,"held_token_equivalents":[4000,1000,600],
    "dense_token_equivalents":12000}})";

constexpr const char* kInfo = R"({"format":"baton-info","model":{"layers":2},
  "cache_bytes":[{"tokens":4096,"read":1000,"held":2000,"dense":8000}],
  "layers_table":[{"kind":"full","branches":"own all","cache":"all","publishes":"tokens 1024",
    "rope":true,"gated":false,"sink_logits":true},
   {"kind":"sparse <x>","branches":"layer 0 list","cache":"ring 128","rope":false,"gated":true,
    "sink_logits":false}]})";

// Stopped after 100 steps, continued from the state of 50.
constexpr const char* kTrainLog =
    R"({"event":"start","trains":"lm","model":"clsa<1>","parameters":7200000,"steps":100,"seed":2,"step":0,"device":"cpu","torch":"1.13.1"}
{"event":"losses","step":50,"tokens":1000000,"seconds":1,"losses":{"text":8.0,"facts":7.0,"pairs":null,"chains":6.5,"distillation":0}}
{"event":"losses","step":100,"tokens":2000000,"seconds":2,"losses":{"text":9.9,"facts":9.9,"pairs":9.9,"chains":9.9,"distillation":0}}
{"event":"start","trains":"lm","model":"clsa<1>","parameters":7200000,"steps":100,"seed":2,"step":50,"device":"cpu","torch":"1.13.1"}
{"event":"test","step":75,"tokens":1500000,"seconds":2,"evaluation":{"n":4096,"text_loss":5.5,"facts":{"<=64":0.3,"all":0.25}}}
{"event":"losses","step":100,"tokens":2000000,"seconds":2,"losses":{"text":4.0,"facts":1.0,"pairs":2.0,"chains":3.0,"distillation":0}}
{"event":"result","step":100,"tokens":2000000,"seconds":2,"evaluation":{"n":4096,"text_loss":3.5,"facts":{"<=4096":0.91,"all":0.92},"pairs":{"64":0.99,"1024":0.95},"chains":{"1":0.8,"2":0.75},"coverage":{"held":0.9,"best":0.97}}}
{"event":"lo)";

constexpr const char* kGateLog =
    R"({"event":"dense","seconds":1}
{"event":"start","trains":"list","model":"routed","seed":1,"steps":300}
{"event":"losses","step":25,"tokens":400000,"seconds":1,"loss":{"answer":0.5,"text":0.2},"windows":{"answer":0.3,"text":0.6}})";

ReportInputs Everything() {
  return {.profile_json = kProfile,
          .plan_json = kPlan,
          .search_json = kSearch,
          .eval_json = {kEval},
          .bench_json = {kBench},
          .run_json = {kRun},
          .info_json = kInfo,
          .train_logs = {kTrainLog, kGateLog}};
}

std::string Rendered(const ReportInputs& inputs) {
  auto page = RenderReport(inputs);
  EXPECT_TRUE(page.ok()) << (page.ok() ? "" : page.error().ToString());
  return page.ok() ? *page : "";
}

std::string ErrorOf(const ReportInputs& inputs) {
  auto page = RenderReport(inputs);
  return page.ok() ? "no error" : page.error().ToString();
}

TEST(Report, HasEverySectionWhenEverythingIsGiven) {
  const std::string page = Rendered(Everything());
  for (const char* id : {"summary", "plan", "front", "speed", "exact", "quality", "retrieval",
                         "recovered", "sensitivity", "routing", "layers", "training", "method"})
    EXPECT_THAT(page, HasSubstr(std::string("<section id=\"") + id + "\""));
  EXPECT_THAT(page, HasSubstr("10.9 %"));
  EXPECT_THAT(page, HasSubstr("2.00×"));
  EXPECT_THAT(page, HasSubstr("30 / 31"));
  EXPECT_THAT(page, HasSubstr("<td>0.75</td>"));
  EXPECT_THAT(page, HasSubstr("<td>131,072</td><td>4</td><td>0.48</td>"));
}

TEST(Report, LeavesOutSectionsWithoutNumbers) {
  const std::string page = Rendered({.plan_json = kPlan});
  EXPECT_THAT(page, HasSubstr("<section id=\"plan\""));
  for (const char* id : {"front", "speed", "exact", "quality", "retrieval", "recovered",
                         "sensitivity", "routing", "layers", "training"})
    EXPECT_THAT(page, Not(HasSubstr(std::string("<section id=\"") + id + "\""))) << id;
}

TEST(Report, SearchOverSeveralKindsOfTextShowsEach) {
  const std::string page = Rendered({.search_json = R"({"kinds":["prose","<code>"],
      "chosen":{"kl":0.02,"kind_kl":[0.01,0.03],"left_out_kl":[0.015,0.035]},
      "test":{"kl":0.02,"kind_kl":[0.0125,0.0275],"left_out_kl":[0.0175,0.0325],
              "spread":2},
      "candidates":[]})"});
  EXPECT_THAT(page, HasSubstr("<section id=\"kinds\""));
  EXPECT_THAT(page, HasSubstr("<td>&lt;code&gt;</td><td>0.0275</td><td>0.0325</td><td>0.0300</td>"
                              "<td>0.0350</td><td>0.0163 to 0.0650</td>"));
  EXPECT_THAT(Rendered({.search_json = kSearch}), Not(HasSubstr("<section id=\"kinds\"")));
}

TEST(Report, NumbersThatAreAbsentLeaveNoMark) {
  const std::string page =
      Rendered({.eval_json = {R"({"kl_mean":null,"context":"many"})"},
                .bench_json = {R"({"rows":[{},{"depth":1}],"exact":{"expected":[{}]}})"}});
  EXPECT_THAT(page, Not(HasSubstr("nan")));
  EXPECT_THAT(page, Not(HasSubstr("<section id=\"speed\"")));
}

// y and height of the n-th rectangle that carries `title`.
std::pair<double, double> Bar(const std::string& page, const std::string& title, int n) {
  size_t at = 0;
  for (int i = 0; i <= n; ++i) {
    at = page.find("<title>" + title, at + 1);
    if (at == std::string::npos) return {-1, -1};
  }
  const std::string rect = page.substr(page.rfind("<rect", at), at - page.rfind("<rect", at));
  const auto number = [&](const std::string& name) {
    return std::stod(rect.substr(rect.find(name + "=\"") + name.size() + 2));
  };
  return {number(" y"), number("height")};
}

TEST(Report, RoutingShowsDecisionsCacheAndLogits) {
  const std::string page = Rendered({.run_json = {kRun, kRun}});
  EXPECT_THAT(page, HasSubstr("routed.gguf"));
  EXPECT_THAT(page, HasSubstr("Request 2"));
  EXPECT_THAT(page, Not(HasSubstr("Request 3")));
  // Three layers' tokens: 5,600 of 12,000 held, which are 1,400 bytes of 3,000.
  EXPECT_THAT(page, HasSubstr("<td>2 of 3</td><td>1.40 KB</td><td>3.00 KB</td><td>46.7 %</td>"));
  EXPECT_THAT(page, HasSubstr("router, exact"));
  EXPECT_THAT(page, HasSubstr("layer 1: window, holds 1,000 of 4,000 tokens; logits: full -0.250"));
  // Of each layer: its cell, the trough, the cache it holds, the logit.
  const auto full = Bar(page, "layer 0: full", 3), close = Bar(page, "layer 1: window", 3);
  EXPECT_NEAR(full.second, 42, 0.1);              // 3.0, the largest difference: half the panel
  EXPECT_NEAR(close.second, 42 * 0.75 / 3, 0.1);  // -0.75
  EXPECT_NEAR(full.first + full.second, close.first, 0.1);  // they meet at zero
  EXPECT_NEAR(Bar(page, "layer 1: window", 2).second, Bar(page, "layer 1: window", 1).second / 4,
              0.1);
}

TEST(Report, AMaskHasNoLogitsToShow) {
  std::string run = kRun;
  const std::string logits = "[[-1.0,2.0],[0.5,-0.25],[0.75,0.5]]";
  run.replace(run.find(logits), logits.size(), "[[0,0],[0,0],[0,0]]");
  run.replace(run.find("exact"), 5, "forced");
  const std::string page = Rendered({.run_json = {run}});
  EXPECT_THAT(page, HasSubstr("<td>mask</td>"));
  EXPECT_THAT(page, Not(HasSubstr("logits: full")));
}

TEST(Report, RunsThatDoNotFitTogetherAreErrors) {
  std::string run = kRun;
  run.replace(run.find("FSS"), 3, "FS");
  EXPECT_THAT(ErrorOf({.run_json = {run}}), HasSubstr("the bitmap has 2 layers"));
  run.replace(run.find("FS"), 2, "F?S");
  EXPECT_THAT(ErrorOf({.run_json = {run}}), HasSubstr("letters F and S"));
  EXPECT_THAT(ErrorOf({.run_json = {R"({"format":"baton-run"})"}}), HasSubstr("not routed"));
  EXPECT_THAT(ErrorOf({.run_json = {kInfo}}), HasSubstr("give it to --info-json"));
  EXPECT_THAT(ErrorOf({.info_json = kRun}), HasSubstr("baton run --json"));
}

TEST(Report, LayersAreATableOfWhatTheyReadAndKeep) {
  const std::string page = Rendered({.info_json = kInfo});
  EXPECT_THAT(page, HasSubstr("<tr><td>0</td><td>full</td><td>own all</td><td>all</td><td>tokens "
                              "1024</td><td>sink logits</td></tr>"));
  EXPECT_THAT(page, HasSubstr("<td>sparse &lt;x&gt;</td><td>layer 0 list</td><td>ring "
                              "128</td><td>–</td><td>no positions, gated</td>"));
  EXPECT_THAT(page, HasSubstr("<td>4,096</td><td>1.00 KB</td><td>2.00 KB</td><td>8.00 KB</td>"));
}

// The d of the curve of `name` in the n-th panel that has one.
std::string CurveOf(const std::string& page, const std::string& name, int n) {
  size_t at = 0;
  for (int i = 0; i <= n; ++i) at = page.find("<title>" + name + "</title></path>", at + 1);
  const size_t begin = page.rfind("<path d=\"", at) + 9;
  return page.substr(begin, page.find('"', begin) - begin);
}

TEST(Report, TrainingIsCurvesAndTheLatestTest) {
  const std::string page = Rendered({.train_logs = {kTrainLog, kGateLog}});
  EXPECT_THAT(page, HasSubstr("<title>Training</title>"));
  EXPECT_THAT(page, Not(HasSubstr("<section id=\"method\"")));
  for (const char* panel : {"Loss, text", "Loss, facts", "Loss, pairs", "Recall, facts",
                            "Windows at answers", "Loss on text"})
    EXPECT_THAT(page, HasSubstr(std::string("aria-label=\"") + panel));
  EXPECT_THAT(page, HasSubstr("<i class=\"run-1\"></i><b>routed, list, seed 1</b>"));
  // Text falls from 8 to 4, half the height of the panel; the step that was done again counts once.
  const std::string name = "clsa&lt;1&gt;, seed 2";
  double x0, y0, x1, y1;
  ASSERT_EQ(std::sscanf(CurveOf(page, name, 0).c_str(), "M%lf %lfL%lf %lf", &x0, &y0, &x1, &y1), 4);
  EXPECT_NEAR(x1 - 60, 2 * (x0 - 60), 0.2);
  EXPECT_NEAR(230 - y0, 2 * (230 - y1), 0.2);
  EXPECT_THAT(page, Not(HasSubstr("9.9")));
  // Pairs were absent from the first step: no curve, but its last point.
  EXPECT_THAT(page, HasSubstr("2.00 at 2 M tokens"));
  EXPECT_THAT(page, HasSubstr("0.2500 at 1.5 M tokens"));
  EXPECT_THAT(page, HasSubstr("<td>7,200,000</td><td>2,000,000</td><td>4,096</td><td>3.500</td>"
                              "<td>0.920</td><td>0.910</td><td>0.950</td><td>0.800</td>"
                              "<td>0.750</td><td>–</td><td>0.900</td><td>0.970</td>"));
  EXPECT_THAT(page, HasSubstr("0.3000 at 0.4 M tokens"));
}

TEST(Report, LogsThatCannotBeDrawnAreErrors) {
  EXPECT_THAT(ErrorOf({.train_logs = {kInfo}}), HasSubstr("give it to --info-json"));
  EXPECT_THAT(ErrorOf({.train_logs = {"text"}}), HasSubstr("expected a log of `baton-train`"));
  EXPECT_THAT(ErrorOf({.train_logs = {R"({"event":"start"})"}}), HasSubstr("without losses"));
  EXPECT_THAT(ErrorOf({.train_logs = std::vector<std::string>(9, kTrainLog)}),
              HasSubstr("9 runs, at most 8"));
}

TEST(Report, EscapesWhatItWasGiven) {
  ReportInputs inputs = Everything();
  inputs.title = "<b>\"title\" & more</b>";
  const std::string page = Rendered(inputs);
  EXPECT_THAT(page, Not(HasSubstr("<script")));
  EXPECT_THAT(page, Not(HasSubstr("<b>\"title\"")));
  EXPECT_THAT(page, HasSubstr("&lt;b&gt;&quot;title&quot; &amp; more&lt;/b&gt;"));
  EXPECT_THAT(page, HasSubstr("&lt;tiny&gt;.gguf"));
}

TEST(Report, StandsAlone) {
  const std::string page = Rendered(Everything());
  for (const char* external : {"http:", "https:", "<script", "<link", "<img", "@import"})
    EXPECT_THAT(page, Not(HasSubstr(external)));
}

TEST(Report, NamesTheFileThatIsOfAnotherKind) {
  EXPECT_THAT(ErrorOf({.profile_json = kPlan}), HasSubstr("--profile"));
  EXPECT_THAT(ErrorOf({.profile_json = kPlan}), HasSubstr("give it to --plan"));
  EXPECT_THAT(ErrorOf({.eval_json = {kBench}}), HasSubstr("baton bench --json"));
  EXPECT_THAT(ErrorOf({.search_json = "{}"}), HasSubstr("another kind"));
  EXPECT_THAT(ErrorOf({.bench_json = {"not json"}}), HasSubstr("not a JSON file"));
  EXPECT_THAT(ErrorOf({}), HasSubstr("at least one result"));
}

TEST(Report, TablesOfAnotherSizeAreAnError) {
  std::string profile = kProfile;
  profile.replace(profile.find("[0.1,0.01,0.002]"), 16, "[0.1,0.01]");
  EXPECT_THAT(ErrorOf({.profile_json = profile}), HasSubstr("\"own_kl\" holds 2 numbers"));
}

TEST(Report, PlanAndProfileMustAgreeOnLayers) {
  std::string plan = kPlan;
  plan.replace(plan.find("\"layers\":3"), 10, "\"layers\":2");
  plan.replace(plan.find(",{\"window\""),
               std::string(",{\"window\":{\"sink\":4,\"recent\":508}}").size(), "");
  EXPECT_THAT(ErrorOf({.profile_json = kProfile, .plan_json = plan}), HasSubstr("2 layers"));
}

TEST(Format, NumbersReadAsPeopleWriteThem) {
  EXPECT_EQ(Count(-1234567), "-1,234,567");
  EXPECT_EQ(Bytes(165e6), "165 MB");
  EXPECT_EQ(Percent(0.109), "10.9 %");
  EXPECT_EQ(Percent(1), "100 %");
  EXPECT_EQ(Number(0.02134), "0.0213");
  EXPECT_EQ(Duration(95), "1:35 min");
}

TEST(Axis, ShowsRoundTicksInsideItsRange) {
  for (const bool log : {false, true}) {
    const Axis axis = MakeAxis({0.003, 0.02, 0.4}, log, 0, 100);
    const auto ticks = axis.Ticks(5);
    ASSERT_GE(ticks.size(), 2u);
    for (const double tick : ticks) {
      EXPECT_GE(axis.At(tick), 0);
      EXPECT_LE(axis.At(tick), 100);
    }
  }
  EXPECT_FALSE(MakeAxis({}, true, 0, 1).log);  // nothing positive: a plain axis, not a NaN
}

}  // namespace
}  // namespace baton
