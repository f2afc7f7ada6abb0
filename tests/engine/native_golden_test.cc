// Models of the trained-sparse architectures against facts computed elsewhere in float64
// (tests/golden/README.md): the loss of every position, logits, greedy tokens, selected lists and
// cache sizes. Single precision reproduces them; the fast backend's mean loss has a budget.
#include <cmath>
#include <cstring>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "engine/prompt/prompt_run.h"
#include "formats/gguf_writer.h"
#include "formats/hf_config.h"
#include "model/spec/checkpoint_storage.h"
#include "tests/attention/engine_test_util.h"
#include "tests/have_gpu.h"

namespace baton {
namespace {

using nlohmann::json;

constexpr const char* kGoldens[] = {
    "clsa",           "clsa-forced",     "clsa-local",      "dense",
    "hybrid",         "hybrid-gated",    "hysparse",        "hysparse-all",
    "hysparse2",      "hysparse2-gated", "hysparse2-group", "yoco",
    "hysparse2-smear"};
constexpr int64_t kGreedy = 12;  // tokens

std::string Folder(const std::string& name) { return "tests/golden/native/" + name; }

json ReadJson(const std::string& path) {
  std::ifstream in(path);
  EXPECT_TRUE(in.good()) << path;
  return json::parse(in);
}

std::unique_ptr<Engine> Load(const std::string& path, Backend backend, KvType kv,
                             bool portable = false) {
  EngineOptions options;
  options.portable = portable;
  options.backend = backend;
  options.kv = kv;
  options.threads = 2;
  auto engine = Engine::Load(path, options);
  EXPECT_TRUE(engine.ok()) << engine.error().ToString();
  return std::move(engine).value();
}

double NegativeLogProbability(const float* logits, int64_t n, int32_t token) {
  double largest = logits[0], sum = 0;
  for (int64_t i = 1; i < n; ++i) largest = std::max<double>(largest, logits[i]);
  for (int64_t i = 0; i < n; ++i) sum += std::exp(logits[i] - largest);
  return largest + std::log(sum) - logits[token];
}

// What a folder's config says about lists.
struct Lists {
  int64_t block = 1, sink = 0, recent = 0;
  int indexer_layer = -1;  // publishes what the golden calls "indexer"

  explicit Lists(const std::string& name) {
    const json config = ReadJson(Folder(name) + "/config.json");
    const std::string p = config["general.architecture"].get<std::string>() + ".";
    block = config[p + "select.block_size"];
    sink = config[p + "select.sink"];
    recent = config[p + "select.recent"];
    if (config.contains(p + "memory.input_layer")) indexer_layer = config[p + "memory.input_layer"];
  }

  // The list of the row at `t` in the golden's form: blocks, or tokens without forced ones.
  std::vector<int64_t> Stored(std::span<const int32_t> positions, int64_t t) const {
    std::vector<int64_t> list;
    for (const int32_t j : positions) {
      if (j > t) continue;  // the rest of the block at hand
      if (block == 1 && (j < sink || j > t - recent)) continue;
      if (list.empty() || list.back() != j / block) list.push_back(j / block);
    }
    return list;
  }
};

// Collects what every publisher chose for every row.
class ListObserver : public AttentionObserver {
 public:
  explicit ListObserver(const Lists& lists) : lists_(lists) {}
  void OnLayer(const Tap& tap) override {
    if (tap.sets == nullptr) return;
    ASSERT_EQ(tap.sets->sets, tap.rows.count);
    for (int64_t r = 0; r < tap.rows.count; ++r) {
      const int64_t t = tap.rows.position + r;
      auto& row = chosen[{tap.layer, t}];
      row.clear();
      for (int64_t g = 0; g < tap.sets->groups; ++g) {
        const std::span positions(tap.sets->list(r, g), static_cast<size_t>(tap.sets->count(r, g)));
        EXPECT_TRUE(std::is_sorted(positions.begin(), positions.end()));
        row.push_back(lists_.Stored(positions, t));
      }
    }
  }
  std::map<std::pair<int, int64_t>, std::vector<std::vector<int64_t>>> chosen;

 private:
  const Lists& lists_;
};

// Losses of all positions but the first, by decoding `pass` rows at a time.
std::vector<double> Losses(Engine& engine, std::span<const int32_t> ids, int64_t pass,
                           AttentionObserver* observer, test::Logits* last) {
  const auto n = static_cast<int64_t>(ids.size());
  auto session = Session::Create(engine, engine.impl().model_plan.caches, n, {.rollback = 0});
  EXPECT_TRUE(session.ok());
  std::vector<double> nll;
  for (int64_t first = 0; first < n; first += pass) {
    Session::DecodeOptions options;
    options.observer = observer;
    options.on_logits = [&](int64_t row, View<const float> logits) {
      for (int64_t i = 0; i < logits.dim(0); ++i) {
        const int64_t next = first + row + i + 1;
        if (next < n)
          nll.push_back(
              NegativeLogProbability(logits.row(i), logits.dim(1), ids[static_cast<size_t>(next)]));
        else
          last->assign(logits.row(i), logits.row(i) + logits.dim(1));
      }
    };
    const auto rows =
        ids.subspan(static_cast<size_t>(first), static_cast<size_t>(std::min(pass, n - first)));
    const Status status = session->Decode(rows, options);
    EXPECT_TRUE(status.ok()) << status.error().ToString();
  }
  return nll;
}

// The same by a prompt all of whose logits are wanted.
std::vector<double> PromptLosses(Engine& engine, std::span<const int32_t> ids) {
  const auto n = static_cast<int64_t>(ids.size());
  auto session = Session::Create(engine, engine.impl().model_plan.caches, n, {.rollback = 0});
  EXPECT_TRUE(session.ok());
  std::vector<double> nll;
  PromptRun run(engine.impl(), {.tokens = ids,
                                .kv = &session->sequence(),
                                .plan = &engine.impl().model_plan,
                                .on_logits =
                                    [&](int64_t first, View<const float> logits) {
                                      for (int64_t i = 0; i < logits.dim(0); ++i) {
                                        if (first + i + 1 == n) continue;
                                        nll.push_back(NegativeLogProbability(
                                            logits.row(i), logits.dim(1),
                                            ids[static_cast<size_t>(first + i + 1)]));
                                      }
                                    },
                                .wanted = n});
  EXPECT_TRUE(run.RunAll().ok());
  return nll;
}

Generation Greedy(Engine& engine, const std::vector<int32_t>& ids) {
  Request request;
  request.tokens = ids;
  request.max_tokens = kGreedy;
  request.ignore_end = true;
  auto result = engine.Generate(request);
  EXPECT_TRUE(result.ok()) << result.error().ToString();
  return std::move(result).value();
}

void ExpectLosses(const std::vector<double>& got, const std::vector<double>& expected,
                  double tolerance) {
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], expected[i], tolerance) << i;
}

class NativeGolden : public ::testing::TestWithParam<const char*> {};

TEST_P(NativeGolden, ReferenceReproducesLossesLogitsAndLists) {
  const json golden = ReadJson(Folder(GetParam()) + "/golden.json");
  const Lists lists(GetParam());
  auto engine = Load(Folder(GetParam()), Backend::kReference, KvType::kF32);
  int64_t compared = 0;
  for (const json& prompt : golden["prompts"]) {
    const auto ids = prompt["ids"].get<std::vector<int32_t>>();
    const auto expected = prompt["nll"].get<std::vector<double>>();
    for (const int64_t pass : {int64_t{512}, int64_t{13}, int64_t{1}}) {
      ListObserver observer(lists);
      test::Logits last;
      ExpectLosses(Losses(*engine, ids, pass, &observer, &last), expected, 2e-4);
      const auto logits = prompt["last_logits"].get<std::vector<double>>();
      ASSERT_EQ(last.size(), logits.size());
      for (size_t i = 0; i < last.size(); ++i) EXPECT_NEAR(last[i], logits[i], 2e-4);
      for (const json& row : prompt["lists"]) {
        const int publisher =
            row["publisher"].is_string() ? lists.indexer_layer : row["publisher"].get<int>();
        const auto found = observer.chosen.find({publisher, row["row"].get<int64_t>()});
        ASSERT_NE(found, observer.chosen.end()) << row["publisher"] << " " << row["row"];
        EXPECT_EQ(found->second, row["lists"].get<std::vector<std::vector<int64_t>>>())
            << "publisher " << row["publisher"] << " row " << row["row"];
        compared++;
      }
      EXPECT_EQ(observer.chosen.empty(), prompt["lists"].empty());
    }
    for (const int64_t chunk : {512, 7}) {
      engine->impl().options.prompt_chunk = chunk;
      ExpectLosses(PromptLosses(*engine, ids), expected, 2e-4);
    }
  }
  EXPECT_EQ(compared > 0, !golden["checks"]["least_list_gap"].is_null());
}

// The scheduler's way: prompts that leave rows behind where the model allows it, then decode.
TEST_P(NativeGolden, ReferenceReproducesGreedyTokensAndCacheBytes) {
  const json golden = ReadJson(Folder(GetParam()) + "/golden.json");
  for (const KvType type : {KvType::kF32, KvType::kBF16}) {
    const bool f32 = type == KvType::kF32;
    const int64_t per_token = golden["kv"][f32 ? "bytes_per_token_f32" : "bytes_per_token_bf16"];
    const int64_t rings = golden["kv"]["ring_bytes_f32"].get<int64_t>() / (f32 ? 1 : 2);
    auto engine = Load(Folder(GetParam()), Backend::kReference, type);
    for (const int64_t chunk : {512, 64, 7}) {
      engine->impl().options.prompt_chunk = chunk;
      for (const json& prompt : golden["prompts"]) {
        const auto ids = prompt["ids"].get<std::vector<int32_t>>();
        const Generation g = Greedy(*engine, ids);
        // The last token is not in the cache. Rings are full by then.
        const int64_t length = static_cast<int64_t>(ids.size()) + kGreedy - 1;
        EXPECT_EQ(g.stats.kv_bytes_held, length * per_token + rings);
        if (f32) {
          EXPECT_EQ(g.tokens, prompt["greedy"].get<std::vector<int32_t>>());
        }
      }
    }
  }
}

std::string WriteAsGguf(const std::string& name) {
  auto folder = Checkpoint::Open(Folder(name));
  EXPECT_TRUE(folder.ok()) << folder.error().ToString();
  GgufWriter writer;
  writer.Set(ReadHfConfig(Folder(name) + "/config.json").value());
  for (const TensorInfo& t : folder->storage->tensors)
    writer.AddTensor(t.name, t.dtype, t.shape, std::vector<std::byte>(t.data, t.data + t.bytes));
  const std::string path = test::Scratch().File(name + ".gguf");
  EXPECT_TRUE(writer.WriteFile(path).ok());
  return path;
}

TEST_P(NativeGolden, GgufFileGivesTheFoldersBits) {
  const std::string path = WriteAsGguf(GetParam());
  const json golden = ReadJson(Folder(GetParam()) + "/golden.json");
  for (const test::BackendCase& c : test::BackendCases()) {
    auto folder = Load(Folder(GetParam()), c.backend, c.kv);
    auto file = Load(path, c.backend, c.kv);
    const auto ids = golden["prompts"].back()["ids"].get<std::vector<int32_t>>();
    const Generation a = Greedy(*folder, ids), b = Greedy(*file, ids);
    EXPECT_EQ(a.tokens, b.tokens);
    EXPECT_EQ(a.stats.logits_hash, b.stats.logits_hash) << c.name;
  }
}

#if BATON_WITH_CPU
// The fast backend's algorithms without its roundings.
TEST_P(NativeGolden, PortableKernelsReproduceLossesAndGreedyTokens) {
  const json golden = ReadJson(Folder(GetParam()) + "/golden.json");
  auto engine = Load(Folder(GetParam()), Backend::kCpu, KvType::kF32, true);
  for (const json& prompt : golden["prompts"]) {
    const auto ids = prompt["ids"].get<std::vector<int32_t>>();
    const auto expected = prompt["nll"].get<std::vector<double>>();
    test::Logits last;
    ExpectLosses(Losses(*engine, ids, 512, nullptr, &last), expected, 2e-4);
    ExpectLosses(PromptLosses(*engine, ids), expected, 2e-4);
    EXPECT_EQ(Greedy(*engine, ids).tokens, prompt["greedy"].get<std::vector<int32_t>>());
  }
}

#endif

// Activations and caches of 16 bits move single positions a lot where a list changes (by up to 3.6
// nats), and the mean little: by up to 0.022 nats on a Zen 4 (November 2026).
void CheckBudget(const std::string& folder, Backend backend) {
  const json golden = ReadJson(folder + "/golden.json");
  for (const KvType type : {KvType::kF32, KvType::kBF16}) {
    auto engine = Load(folder, backend, type);
    double decoded = 0, prompted = 0;
    int64_t rows = 0;
    for (const json& prompt : golden["prompts"]) {
      const auto ids = prompt["ids"].get<std::vector<int32_t>>();
      const auto expected = prompt["nll"].get<std::vector<double>>();
      test::Logits last;
      const std::vector<double> decode = Losses(*engine, ids, 512, nullptr, &last);
      const std::vector<double> whole = PromptLosses(*engine, ids);
      ASSERT_EQ(decode.size(), expected.size());
      ASSERT_EQ(whole.size(), expected.size());
      for (size_t i = 0; i < expected.size(); ++i) {
        decoded += decode[i] - expected[i];
        prompted += whole[i] - expected[i];
        rows++;
      }
    }
    EXPECT_LT(std::abs(decoded / static_cast<double>(rows)), 0.04);
    EXPECT_LT(std::abs(prompted / static_cast<double>(rows)), 0.04);
  }
}

#if BATON_WITH_CPU
TEST_P(NativeGolden, CpuStaysWithinItsNumericsBudget) {
  CheckBudget(Folder(GetParam()), Backend::kCpu);
}
#endif

TEST_P(NativeGolden, CudaStaysWithinItsNumericsBudget) {
  if (!test::HaveGpu()) GTEST_SKIP() << "needs the cuda backend and a GPU";
  CheckBudget(Folder(GetParam()), Backend::kCuda);
}

INSTANTIATE_TEST_SUITE_P(Folders, NativeGolden, ::testing::ValuesIn(kGoldens),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace baton
