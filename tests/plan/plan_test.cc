// The plan file: what is written is what is read, and nothing else is read.
#include "baton/plan.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace baton {
namespace {

rc::Gen<double> Share() {
  return rc::gen::map(rc::gen::inRange(1, 1000), [](int v) { return v / 1000.0; });
}
rc::Gen<Budget> AnyBudget() {
  return rc::gen::oneOf(rc::gen::map(rc::gen::inRange<int64_t>(1, 1 << 20),
                                     [](int64_t t) {
                                       return Budget{t, 0};
                                     }),
                        rc::gen::map(Share(), [](double f) {
                          return Budget{0, f};
                        }));
}
rc::Gen<LayerRole> AnyRole() {
  return rc::gen::exec([] {
    LayerRole r;
    r.role = static_cast<Role>(*rc::gen::inRange(0, 5));
    if (r.role == Role::kWindow) {
      r.sink = *rc::gen::inRange<int64_t>(0, 100);
      r.recent = *rc::gen::inRange<int64_t>(1, 100000);
    }
    if (r.role == Role::kScan || r.role == Role::kReuse)
      if (*rc::gen::arbitrary<bool>()) r.k = *AnyBudget();
    if (r.role == Role::kReuse) r.source = *rc::gen::inRange(-1, 50);
    if (r.role == Role::kScan) r.bits = *rc::gen::inRange(1, 9);
    return r;
  });
}
rc::Gen<Plan> AnyPlan() {
  return rc::gen::exec([] {
    Plan p;
    p.architecture = *rc::gen::element<std::string>("", "llama", "gemma3", "quote\" \\ \n\xc3\xa9");
    p.fingerprint = *rc::gen::element<std::string>("", "sha256:00ff");
    p.budget = *AnyBudget();
    p.sink = *rc::gen::inRange<int64_t>(0, 100);
    p.recent = *rc::gen::inRange<int64_t>(0, 1000);
    p.scope = static_cast<Scope>(*rc::gen::inRange(0, 3));
    p.pool = static_cast<Pool>(*rc::gen::inRange(0, 2));
    p.block = *rc::gen::inRange<int64_t>(1, 65);
    p.min_context = *rc::gen::inRange<int64_t>(-1, 10000);
    p.forced = *rc::gen::container<std::vector<int>>(rc::gen::inRange(0, 60));
    p.head_map = *rc::gen::container<std::vector<std::vector<int>>>(
        rc::gen::container<std::vector<int>>(rc::gen::inRange(0, 8)));
    if (*rc::gen::arbitrary<bool>())
      p.prefill = {true, *rc::gen::inRange<int64_t>(1, 500), *Share(),
                   *rc::gen::inRange<int64_t>(1, 5000)};
    p.layers = *rc::gen::nonEmpty(rc::gen::container<std::vector<LayerRole>>(AnyRole()));
    if (*rc::gen::arbitrary<bool>()) {
      Evidence& e = p.evidence;
      e.present = true;
      e.context = *rc::gen::inRange<int64_t>(0, 1 << 20);
      for (double* v :
           {&e.kv_bytes_share, &e.kl, &e.answer_kl, &e.top1, &e.predicted_nats, &e.latency_ratio})
        *v = *Share();
      e.retrieval_found = *rc::gen::inRange(0, 1000);
      e.retrieval_dense_found = *rc::gen::inRange(0, 1000);
      e.retrieval_total = *rc::gen::inRange(0, 1000);
      e.text_sha256.assign(*rc::gen::inRange(0, 3), "ab12");
      e.details = *rc::gen::element<std::string>("", R"({"a":[1,2.5,{"b":null}],"seed":7})");
    }
    return p;
  });
}

std::string ErrorOf(const std::string& json) {
  const auto plan = Plan::Parse(json);
  return plan.ok() ? "parsed" : plan.error().ToString();
}
std::string WithLayers(const std::string& layers, const std::string& more = "") {
  return R"({"format":"baton-plan","version":1,"layers":[)" + layers + "]" + more + "}";
}
void ExpectError(const std::string& json, const std::string& part) {
  const std::string error = ErrorOf(json);
  EXPECT_NE(error.find(part), std::string::npos) << json << "\n  gave: " << error;
  EXPECT_EQ(error.find('\n'), std::string::npos) << "one line";
}

const char* kExample = R"({"format":"baton-plan","version":1,
 "model":{"architecture":"llama","layers":6,"fingerprint":"sha256:ab12"},
 "budget":{"tokens":512,"sink":4,"recent":64}, "scope":"all", "pool":"sum", "unit":"token", "min_context":512, "forced":[],
 "prefill":"dense",
 "layers":[{"window":{"sink":4,"recent":1020}},"select",{"scan":{"bits":4,"k":1024}},{"reuse":2},{"reuse":{"source":1,"k":256}},"full"],
 "evidence":{"context":8192,"kv_bytes_share":0.109,"kl":0.0209,"top1":0.927,"retrieval":"31/31","predicted_nats":0.04,"latency_ratio":0.41,"text_sha256":"abcd"}})";

RC_GTEST_PROP(PlanFile, WhatIsWrittenIsRead, ()) {
  const Plan plan = *AnyPlan();
  const auto back = Plan::Parse(plan.ToJson());
  RC_ASSERT(back.ok());
  RC_ASSERT(*back == plan);
  RC_ASSERT(back->ToJson() == plan.ToJson());
}

TEST(PlanFile, ExampleOfTheDesignIsRead) {
  const auto plan = Plan::Parse(kExample);
  ASSERT_TRUE(plan.ok()) << plan.error().ToString();
  EXPECT_EQ(plan->architecture, "llama");
  EXPECT_EQ(plan->budget, (Budget{512, 0}));
  EXPECT_EQ(plan->layers[0], (LayerRole{.role = Role::kWindow, .sink = 4, .recent = 1020}));
  EXPECT_EQ(plan->layers[1].role, Role::kSelect);
  EXPECT_EQ(plan->layers[2], (LayerRole{.role = Role::kScan, .k = {1024, 0}}));
  EXPECT_EQ(plan->layers[3], (LayerRole{.role = Role::kReuse, .source = 2}));
  EXPECT_EQ(plan->layers[4], (LayerRole{.role = Role::kReuse, .source = 1, .k = {256, 0}}));
  EXPECT_EQ(plan->evidence.retrieval_found, 31);
  EXPECT_EQ(plan->evidence.retrieval_dense_found, 31);
  EXPECT_EQ(
      plan->Summary(),
      "6 layers: 1 full, 1 select, 1 scan, 2 reuse, 1 window | 512 tokens, sink 4, recent 64, "
      "scope all, sum");
}

TEST(PlanFile, SummaryNamesWhatIsUnusual) {
  Plan plan = Plan::Dense(2);
  plan.budget = {0, 0.06};
  plan.scope = Scope::kHeadMap;
  plan.pool = Pool::kMax;
  plan.block = 16;
  plan.prefill.sparse = true;
  EXPECT_EQ(plan.Summary(),
            "2 layers: 2 full, 0 select, 0 scan, 0 reuse, 0 window | 6 % of the context, sink 4, "
            "recent 64, scope head_map, max, blocks of 16, prompt in tiles of 64 with 10 % of the "
            "context, at least 512");
}

TEST(PlanFile, FractionsAndBlocksAreRead) {
  const auto plan = Plan::Parse(WithLayers(
      R"("select",{"reuse":{"k":{"fraction":0.5}}},"reuse","scan")",
      R"(,"budget":{"fraction":0.06},"unit":{"block":16},"prefill":{"tile":32,"fraction":0.2,"min":256})"));
  ASSERT_TRUE(plan.ok()) << plan.error().ToString();
  EXPECT_EQ(plan->budget, (Budget{0, 0.06}));
  EXPECT_EQ(plan->block, 16);
  EXPECT_EQ(plan->prefill, (PrefillMode{true, 32, 0.2, 256}));
  EXPECT_EQ(plan->layers[1].k, (Budget{0, 0.5}));
  EXPECT_EQ(plan->layers[2].source, -1);
  EXPECT_EQ(plan->min_context, -1);
}

TEST(PlanFile, BlocksOfOneTokenAreTokens) {
  const auto blocks = Plan::Parse(WithLayers(R"("full")", R"(,"unit":{"block":1})"));
  const auto tokens = Plan::Parse(WithLayers(R"("full")", R"(,"unit":"token")"));
  ASSERT_TRUE(blocks.ok() && tokens.ok());
  EXPECT_EQ(*blocks, *tokens);
  EXPECT_EQ(blocks->ToJson(), tokens->ToJson());
}

TEST(PlanFile, MisspeltKeysAreErrorsThatNameTheNearestKey) {
  ExpectError(WithLayers(R"("full")", R"(,"bugdet":{})"), R"(did you mean "budget"?)");
  ExpectError(WithLayers(R"("full")", R"(,"min-context":5)"), R"(did you mean "min_context"?)");
  ExpectError(WithLayers(R"("full")", R"(,"budget":{"token":5})"), R"(did you mean "tokens"?)");
  ExpectError(WithLayers(R"("full")", R"(,"model":{"fingerprnt":""})"),
              R"(did you mean "fingerprint"?)");
  ExpectError(WithLayers(R"("full")", R"(,"prefill":{"tiles":64})"), R"(did you mean "tile"?)");
  ExpectError(WithLayers(R"("full")", R"(,"unit":{"blocks":16})"), R"(did you mean "block"?)");
  ExpectError(WithLayers(R"("full")", R"(,"evidence":{"top_1":1})"), R"(did you mean "top1"?)");
  ExpectError(WithLayers(R"("full",{"windw":{"recent":5}})"),
              R"(layer 1: unknown key "windw" (hint: did you mean "window"?))");
  ExpectError(WithLayers(R"({"window":{"recnt":5}})"), R"(did you mean "recent"?)");
  ExpectError(WithLayers(R"({"scan":{"bit":4}})"), R"(did you mean "bits"?)");
  ExpectError(WithLayers(R"({"reuse":{"sorce":4}})"), R"(did you mean "source"?)");
  ExpectError(WithLayers(R"({"reuse":{"k":{"fractoin":0.1}}})"), R"(did you mean "fraction"?)");
  ExpectError(WithLayers(R"("selct")"), R"(unknown role "selct" (hint: did you mean "select"?))");
  ExpectError(WithLayers(R"("full")", R"(,"scope":"grp")"), R"(did you mean)");
  ExpectError(WithLayers(R"("full")", R"(,"zzzzzzzzzz":1)"), "one of format, version");
}

TEST(PlanFile, WrongValuesAreErrorsThatNameTheirPlace) {
  ExpectError("", "not valid JSON");
  ExpectError("[]", "expected an object, got an array of 0");
  ExpectError("{}", R"(format: expected "baton-plan", got nothing)");
  ExpectError(R"({"format":"baton-plan","version":2,"layers":["full"]})", "version 1, got 2");
  ExpectError(R"({"format":"baton-plan","version":1})", "layers: expected an array");
  ExpectError(WithLayers(""), "got an array of 0");
  ExpectError(WithLayers(R"("full",7)"), "layer 1: expected an object, got 7");
  ExpectError(WithLayers(R"("window")"), "a window needs its size");
  ExpectError(WithLayers(R"({"window":{"sink":4}})"), "\"recent\" is missing");
  ExpectError(WithLayers(R"({"window":{"recent":0}})"), "layer 0.window.recent");
  ExpectError(WithLayers(R"({"reuse":-1})"), "layer 0.reuse: expected an integer from 0");
  ExpectError(WithLayers(R"({"reuse":1.5})"), "got 1.5");
  ExpectError(WithLayers(R"({"reuse":18446744073709551615})"), "got 18446744073709551615");
  ExpectError(WithLayers(R"({"reuse":{"k":0}})"), "layer 0.reuse.k");
  ExpectError(WithLayers(R"({"reuse":{"k":{}}})"), "got an empty object");
  ExpectError(WithLayers(R"({"reuse":1,"scan":{}})"), "got 2 keys");
  ExpectError(WithLayers("{}"), "got 0 keys");
  ExpectError(WithLayers(R"("full")", R"(,"budget":{"fraction":1.5})"), "budget.fraction");
  ExpectError(WithLayers(R"("full")", R"(,"budget":{"fraction":0})"), "budget.fraction");
  ExpectError(WithLayers(R"("full")", R"(,"budget":{"tokens":5,"fraction":0.5})"), "both");
  ExpectError(WithLayers(R"("full")", R"(,"model":{"layers":2})"), "model.layers is 2");
  ExpectError(WithLayers(R"("full")", R"(,"model":{"fingerprint":"md5:1"})"), "sha256:<hex>");
  ExpectError(WithLayers(R"("full")", R"(,"forced":[0,"1"])"), "forced[1]");
  ExpectError(WithLayers(R"("full")", R"(,"head_map":[[0],1])"), "head_map[1]");
  ExpectError(WithLayers(R"("full")", R"(,"unit":"tokens")"), "unit: expected");
  ExpectError(WithLayers(R"("full")", R"(,"prefill":"sparse")"), "prefill: expected");
  ExpectError(WithLayers(R"("full")", R"(,"evidence":{"kl":null})"), "evidence.kl");
  ExpectError(WithLayers(R"("full")", R"(,"evidence":{"retrieval":"3 of 4"})"), "found/dense");
  ExpectError(WithLayers(R"("full")", R"(,"evidence":{"details":"x"})"), "evidence.details");
  ExpectError(WithLayers(R"("full")", R"(,"pool":"sum","pool":"max")"), R"("pool" is given twice)");
  ExpectError(WithLayers(R"("full")", R"(,"evidence":{"details":)" + std::string(5000, '[')),
              "nested deeper than 32");
  ExpectError("{\"format\":\"\xff\xfe\"}", "not valid JSON");
}

TEST(PlanFile, TruncationAtEveryByteIsAnErrorAndNeverACrash) {
  const std::string whole = kExample;
  for (size_t n = 0; n < whole.size(); ++n) EXPECT_FALSE(Plan::Parse(whole.substr(0, n)).ok()) << n;
}

TEST(PlanFile, AnyByteChangedNeverCrashes) {
  for (size_t i = 0; i < std::string(kExample).size(); ++i) {
    for (char c : {'\0', '"', '{', ']', '9', '-', '\xff', ','}) {
      std::string text = kExample;
      text[i] = c;
      const auto plan = Plan::Parse(text);
      if (plan.ok()) {
        EXPECT_EQ(Plan::Parse(plan->ToJson())->ToJson(), plan->ToJson());
      }
    }
  }
}

class PlanOnDisk : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ =
        std::filesystem::temp_directory_path() / fmt::format("baton_plan_test_{}", ::getpid());
    std::filesystem::create_directories(folder_);
    path_ = (folder_ / "a.plan.json").string();
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  int Files() const {
    return static_cast<int>(std::distance(std::filesystem::directory_iterator(folder_), {}));
  }
  std::filesystem::path folder_;
  std::string path_;
};

TEST_F(PlanOnDisk, SavedPlanLoadsEqual) {
  const Plan plan = *Plan::Parse(kExample);
  ASSERT_TRUE(plan.Save(path_).ok());
  const auto back = Plan::Load(path_);
  ASSERT_TRUE(back.ok()) << back.error().ToString();
  EXPECT_EQ(*back, plan);
  EXPECT_EQ(Files(), 1) << "no temporary file is left";
}

TEST_F(PlanOnDisk, LoadErrorsNameTheFile) {
  auto missing = Plan::Load(path_);
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(missing.error().code(), Error::Code::kNotFound);
  EXPECT_NE(missing.error().message().find(path_), std::string::npos);
  std::ofstream(path_) << "{";
  auto broken = Plan::Load(path_);
  ASSERT_FALSE(broken.ok());
  EXPECT_EQ(broken.error().message().find(path_), 0u) << broken.error().ToString();
  EXPECT_FALSE(Plan::Load(folder_.string()).ok());
}

TEST_F(PlanOnDisk, FailedWriteKeepsTheOldFile) {
  const Plan old = Plan::Dense(3);
  ASSERT_TRUE(old.Save(path_).ok());
  Plan big = Plan::Dense(4000);
  // A file-size limit fails the write half way, like a full disk.
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  rlimit small = before;
  small.rlim_cur = 2048;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const Status failed = big.Save(path_);
  setrlimit(RLIMIT_FSIZE, &before);
  ASSERT_FALSE(failed.ok());
  EXPECT_EQ(failed.error().code(), Error::Code::kIo);
  EXPECT_EQ(*Plan::Load(path_), old);
  EXPECT_EQ(Files(), 1);
}

TEST_F(PlanOnDisk, UnreadablePlanIsNotSaved) {
  Plan plan = Plan::Dense(2);
  plan.evidence.present = true;
  plan.evidence.kl = std::numeric_limits<double>::quiet_NaN();
  EXPECT_FALSE(plan.Save(path_).ok());
  plan.evidence.kl = 0;
  plan.evidence.details = "{broken";
  EXPECT_FALSE(plan.Save(path_).ok());
  EXPECT_EQ(Files(), 0);
  EXPECT_FALSE(Plan::Dense(2).Save((folder_ / "missing" / "p.json").string()).ok());
}

}  // namespace
}  // namespace baton
