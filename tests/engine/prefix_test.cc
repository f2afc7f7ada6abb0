// Prompts that go on from cached ones: the same bits as without a cache, whatever the layers are,
// who else is running, what is dropped meanwhile, and what became of the files.
#include <filesystem>
#include <fstream>
#include <map>
#include <random>

#include "engine/prompt/prefix_cache.h"
#include "kv/prefix_file.h"
#include "tests/engine/native_test_util.h"
#include "tests/engine/routed_run.h"
#include "tests/engine/test_requests.h"

namespace baton {
namespace {

using namespace test;

struct Kind {
  std::string name;
  SyntheticSpec spec;
  std::vector<std::optional<Plan>> plans;
  int64_t chunk = 512;
};

Plan Evicting() {
  Plan plan = SparsePlan(24);
  plan.min_context = 0;
  plan.evict = true;
  for (const size_t l : {size_t{1}, size_t{5}})
    plan.layers[l] = {.role = Role::kWindow, .sink = 4, .recent = 70};
  return plan;
}

Plan SparsePrompt() {
  Plan plan = SparsePlan(16);
  plan.prefill = {.sparse = true, .tile = 64, .fraction = 0.1, .min = 128};
  return plan;
}

std::vector<Kind> Kinds() {
  std::vector<Kind> kinds;
  const std::vector<std::optional<Plan>> plans = {std::nullopt, SparsePlan(16), SparsePlan(40, 1),
                                                  Evicting(), SparsePrompt()};
  const auto add = [&](const char* name, const SyntheticSpec& spec, int64_t chunk) {
    const bool own = spec.architecture == "llama";
    kinds.push_back({name, spec, own ? plans : std::vector<std::optional<Plan>>{{}}, chunk});
  };
  add("llama", TinySpec(), 512);
  add("llama in small chunks", TinySpec(), 64);
  add("llama in odd chunks", TinySpec(), 48);
  SyntheticSpec ratio3 = TinySpec();
  ratio3.heads = 6;
  add("llama with three heads to a KV head", ratio3, 256);
  add("windows", TinySpec("gemma3"), 512);
  for (SyntheticSpec s : NativeSpecs()) {
    s.context = 4096;
    if (s.window == 40) s.window = 130;
    add("native", s, s.window == 4 ? 256 : 128);
    kinds.back().name = Describe(s);
  }
  return kinds;
}

std::string FileOf(const SyntheticSpec& spec) {
  static int files = 0;
  const std::string path = Scratch().File(fmt::format("prefix-{}.gguf", files++));
  EXPECT_TRUE(WriteSyntheticGguf(path, spec).ok());
  return path;
}

std::unique_ptr<Engine> Load(const std::string& path, const BackendCase& c, EngineOptions o) {
  o.backend = c.backend;
  o.kv = c.kv;
  if (o.threads == 0) o.threads = 2;
  auto engine = Engine::Load(path, o);
  EXPECT_TRUE(engine.ok()) << engine.error().ToString();
  return std::move(engine).value();
}

// A prompt of pieces: prompts that share their first pieces begin alike.
std::vector<int32_t> Prompt(std::initializer_list<std::pair<int64_t, uint64_t>> pieces) {
  std::vector<int32_t> tokens;
  for (const auto& [count, seed] : pieces) {
    const std::vector<int32_t> piece = RandomTokens(count, seed);
    tokens.insert(tokens.end(), piece.begin(), piece.end());
  }
  return tokens;
}

Request Ask(std::vector<int32_t> tokens, std::optional<Plan> plan = {}, int64_t max_tokens = 4) {
  Request r;
  r.tokens = std::move(tokens);
  r.max_tokens = max_tokens;
  r.ignore_end = true;
  r.plan = std::move(plan);
  return r;
}

Generation Answer(Engine& engine, const Request& r) {
  Seen seen;
  Submit(engine, r, seen);
  StepUntilIdle(engine);
  EXPECT_TRUE(seen.ok());
  return seen.generation();
}

class PrefixTest : public ::testing::TestWithParam<BackendCase> {
 protected:
  // Fewer cases where each takes long.
  bool slow() const { return kSlowBuild || GetParam().backend == Backend::kReference; }
};

class Random {
 public:
  explicit Random(uint64_t seed) : random_(seed) {}
  int64_t Below(int64_t n) { return static_cast<int64_t>(random_() % static_cast<uint64_t>(n)); }
  bool OneIn(int64_t n) { return Below(n) == 0; }
  template <typename T>
  const T& Of(const std::vector<T>& all) {
    return all[static_cast<size_t>(Below(std::ssize(all)))];
  }

 private:
  std::mt19937_64 random_;
};

struct History {
  std::vector<Request> asked;
  std::vector<std::unique_ptr<Seen>> seen;
};

// Submits requests in the midst of others' steps, and cancels some. Afterwards no page is left but
// what is cached, and then none.
template <typename F>
History RunHistory(Engine& engine, Random& random, int64_t requests, F&& next) {
  History h;
  std::vector<RequestId> ids;
  for (int64_t i = 0; i < requests; ++i) {
    h.asked.push_back(next());
    h.seen.push_back(std::make_unique<Seen>());
    ids.push_back(Submit(engine, h.asked.back(), *h.seen.back()));
    for (int64_t steps = random.Below(30); steps > 0; --steps) engine.Step();
    if (random.OneIn(8)) engine.CancelRequest(random.Of(ids));
  }
  StepUntilIdle(engine);
  EXPECT_LE(engine.prefix_cache_use().held, engine.prefix_cache_use().most);
  EXPECT_EQ(engine.cache_use().claimed_tokens, 0);
  engine.ClearPrefixCache();
  engine.Step();
  EXPECT_EQ(engine.prefix_cache_use().held, 0);
  return h;
}

// Calls f(request, answer, the answer without a cache) for all that were not cancelled; their bits
// are equal.
template <typename F>
void Compare(const History& h, Engine& cold, F&& f) {
  for (size_t i = 0; i < h.seen.size(); ++i) {
    ASSERT_TRUE(h.seen[i]->ok()) << h.seen[i]->result->error().ToString();
    const Generation& got = h.seen[i]->generation();
    if (got.stop == Generation::Stop::kCancelled) continue;
    const Generation alone = Answer(cold, h.asked[i]);
    ASSERT_EQ(Fingerprint(got), Fingerprint(alone))
        << i << ": " << got.stats.reused_tokens << " of " << got.stats.prompt_tokens;
    EXPECT_EQ(got.prompt_logprobs.size(), alone.prompt_logprobs.size());
    EXPECT_EQ(got.stats.kv_bytes_held, alone.stats.kv_bytes_held);
    f(h.asked[i], got, alone);
  }
}

// Prompts that share beginnings, several at a time, some cancelled, in a cache that is large or too
// small: every answer has the bits that it has alone.
TEST_P(PrefixTest, AnswersAreThoseWithoutACache) {
  if (kSlowBuild && GetParam().backend == Backend::kReference)
    GTEST_SKIP() << "the reference takes minutes with sanitizers";
  uint64_t seed = 1;
  for (const Kind& kind : Kinds()) {
    SCOPED_TRACE(kind.name);
    const std::string path = FileOf(kind.spec);
    auto cold = Load(path, GetParam(), {.prompt_chunk = kind.chunk});
    int64_t hits = 0;
    for (int round = 0; round < (slow() ? 1 : 3); ++round) {
      Random random(seed++);
      auto warm = Load(path, GetParam(),
                       {.kv_tokens = random.Of<int64_t>({1500, 6000}),
                        .prompt_chunk = kind.chunk,
                        .prompt_share = random.Of<double>({1, 0.001}),
                        .prefix_cache_tokens = random.Of<int64_t>({-1, -1, 800})});
      const History h = RunHistory(*warm, random, 7, [&] {
        const auto a = static_cast<uint64_t>(random.Below(2)),
                   b = static_cast<uint64_t>(random.Below(2));
        Request r = Ask(Prompt({{random.Of<int64_t>({130, 320, 600, 600}), 1},
                                {random.Of<int64_t>({0, 64, 100}), 2 + a},
                                {random.Of<int64_t>({0, 1, 5, 40}) + random.Below(60), 4 + b}}),
                        random.Of(kind.plans), 1 + random.Below(4));
        if (random.OneIn(8)) r.exact = ExactOptions{.plan = false, .lookup = true};
        if (random.OneIn(10)) r.prompt_logprobs = 0;
        return r;
      });
      Compare(h, *cold, [&](const Request&, const Generation& got, const Generation&) {
        hits += got.stats.reused_tokens > 0;
      });
    }
    EXPECT_GT(hits, 0);
  }
}

// What the cache stands on: on the host, passes may be cut between any two pages.
TEST_P(PrefixTest, ChunksOfWholePagesGiveTheSameBits) {
  if (GetParam().backend == Backend::kCuda) GTEST_SKIP() << "tiles begin where passes do";
  for (const Kind& kind : Kinds()) {
    const std::string path = FileOf(kind.spec);
    for (const bool portable : {false, true}) {
      if (portable && slow()) continue;
      std::string whole;
      for (const int64_t chunk : {1024, 512, 192, 64}) {
        if (slow() && chunk % 512 == 0) continue;
        auto engine = Load(path, GetParam(), {.portable = portable, .prompt_chunk = chunk});
        std::string bits;
        for (const int64_t tokens : {63, 65, 500, 517, slow() ? 1 : 1000})
          bits += Fingerprint(Answer(*engine, Ask(RandomTokens(tokens, 7)))) + "\n";
        if (whole.empty()) whole = bits;
        EXPECT_EQ(bits, whole) << kind.name << ", chunks of " << chunk;
      }
    }
  }
}

// How much is found: all of the common beginning, in whole pages, but for the prompt's last token.
TEST_P(PrefixTest, ACommonBeginningIsNotProcessedAgain) {
  auto engine = LoadEngine(TinySpec(), GetParam(), {.prefix_cache_tokens = -1});
  const auto reused = [&](const std::vector<int32_t>& tokens, std::optional<Plan> plan = {}) {
    return Answer(*engine, Ask(tokens, std::move(plan))).stats;
  };
  RequestStats s = reused(Prompt({{1000, 1}}));
  EXPECT_EQ(s.reused_tokens, 0);
  EXPECT_EQ(s.prefix.miss, "nothing is cached");
  const int64_t unit = engine->impl().PromptUnit(engine->impl().model_plan);
  const auto down = [&](int64_t n) { return n / unit * unit; };
  s = reused(Prompt({{1000, 1}}));
  EXPECT_EQ(s.reused_tokens, down(999));
  EXPECT_EQ(s.prefix.miss, "");
  EXPECT_EQ(reused(Prompt({{960, 1}})).reused_tokens, down(959));
  s = reused(Prompt({{700, 1}, {200, 2}}));
  EXPECT_EQ(s.reused_tokens, down(700));
  EXPECT_GE(s.prefix.common, 700);
  EXPECT_EQ(s.prefix.miss, fmt::format("tokens differ, or are new, at {}", s.prefix.common));
  s = reused(Prompt({{900, 3}}));
  EXPECT_EQ(s.reused_tokens, 0);
  EXPECT_EQ(s.prefix.miss, "no cached prompt begins like it");
  // Windows of a plan change decode alone, a scan needs a copy of K, a sparse prompt other sets.
  Plan window = Plan::Dense(6);
  window.layers[3] = {.role = Role::kWindow, .sink = 4, .recent = 40};
  EXPECT_EQ(reused(Prompt({{1000, 1}}), window).reused_tokens, down(999));
  s = reused(Prompt({{1000, 1}}), SparsePlan(16));
  EXPECT_EQ(s.reused_tokens, 0);
  EXPECT_NE(s.prefix.miss.find("another plan"), std::string::npos) << s.prefix.miss;
  EXPECT_EQ(reused(Prompt({{1000, 1}}), SparsePlan(16)).reused_tokens, down(999));
  EXPECT_EQ(reused(Prompt({{1000, 1}}), SparsePrompt()).reused_tokens, 0);
  EXPECT_EQ(reused(Prompt({{1000, 1}}), SparsePrompt()).reused_tokens, 512);
  Request off = Ask(Prompt({{1000, 1}}));
  off.prefix_cache = false;
  EXPECT_EQ(Answer(*engine, off).stats.reused_tokens, 0);
  const PrefixCacheUse use = engine->prefix_cache_use();
  EXPECT_EQ(use.queries, 1000 * 7 + 960 + 2 * 900);
  EXPECT_GT(use.hits, 3000 / unit * unit);
}

// A prompt that differs from an earlier one in its last n tokens processes about 2 n again, and one
// that branches off where another did just what is new.
TEST_P(PrefixTest, RingsAreKeptWherePromptsBranchOff) {
  SyntheticSpec spec = TinySpec("gemma3");
  auto engine = LoadEngine(spec, GetParam(), {.prefix_cache_tokens = -1});
  if (engine->impl().PromptUnit(engine->impl().model_plan) != 64) GTEST_SKIP() << "coarse units";
  const auto ask = [&](int64_t common, uint64_t seed) {
    return Answer(*engine, Ask(Prompt({{common, 1}, {1600 - common, seed}}))).stats;
  };
  EXPECT_EQ(ask(1600, 1).reused_tokens, 0);
  EXPECT_EQ(ask(1550, 2).reused_tokens, 1536);
  for (const int64_t common : {1450, 1300, 1000, 800}) {
    const int64_t reused = ask(common, 10 + static_cast<uint64_t>(common)).reused_tokens;
    EXPECT_GE(reused, common - (1600 - common) - 64) << common;
    EXPECT_LE(reused, common);
    EXPECT_EQ(ask(common, 20 + static_cast<uint64_t>(common)).reused_tokens, common / 64 * 64);
  }
}

// Prompts that begin alike and arrive together, the first of which may leave at any step: what they
// share is processed once, and nobody waits for ever.
TEST_P(PrefixTest, PromptsThatArriveTogetherShareTheirBeginning) {
  const int64_t chunk = 128, common = 512;
  for (const char* architecture : {"llama", "gemma3"}) {
    const std::string path = FileOf(TinySpec(architecture));
    auto cold = Load(path, GetParam(), {.prompt_chunk = chunk});
    if (cold->impl().PromptUnit(cold->impl().model_plan) != 64) GTEST_SKIP() << "coarse units";
    const std::vector<Request> requests = {
        Ask(Prompt({{common, 1}, {300, 2}})), Ask(Prompt({{common, 1}, {130, 3}})),
        Ask(Prompt({{256, 1}, {100, 4}})), Ask(Prompt({{common, 1}, {130, 3}, {64, 5}})),
        Ask(Prompt({{40, 1}, {200, 6}}))};
    std::vector<std::string> alone;
    for (const Request& r : requests) alone.push_back(Fingerprint(Answer(*cold, r)));
    // Of requests 0 and 1, the steps after which they are cancelled.
    for (const auto& [first, second] : std::vector<std::pair<int, int>>{
             {-1, -1}, {0, -1}, {1, -1}, {3, -1}, {4, 5}, {6, 1}, {-1, 2}, {-1, 6}}) {
      if (slow() && first != 3 && second != 5) continue;
      SCOPED_TRACE(fmt::format("{}, cancelled after {} and {}", architecture, first, second));
      auto engine = Load(path, GetParam(), {.prompt_chunk = chunk, .prefix_cache_tokens = -1});
      std::vector<Seen> seen(requests.size());
      std::vector<RequestId> ids;
      for (size_t i = 0; i < requests.size(); ++i)
        ids.push_back(Submit(*engine, requests[i], seen[i]));
      for (int step = 0; step < 200; ++step) {
        if (step == first) engine->CancelRequest(ids[0]);
        if (step == second) engine->CancelRequest(ids[1]);
        if (!engine->Step()) break;
      }
      for (size_t i = 0; i < requests.size(); ++i) {
        ASSERT_TRUE(seen[i].ok()) << i;
        const Generation& g = seen[i].generation();
        if (g.stop == Generation::Stop::kCancelled) continue;
        EXPECT_EQ(Fingerprint(g), alone[i]) << i;
        if (first >= 0 || second >= 0) continue;
        const std::vector<int64_t> shared = {0, common, 256, common + 128, 0};
        EXPECT_EQ(g.stats.reused_tokens, shared[i]) << i;
      }
    }
  }
}

TEST_P(PrefixTest, CachedPagesGiveWayToRequests) {
  auto engine = LoadEngine(TinySpec(), GetParam(), {.kv_tokens = 1024, .prefix_cache_tokens = -1});
  for (uint64_t seed = 1; seed < 6; ++seed) {
    Answer(*engine, Ask(Prompt({{500, seed}})));
    EXPECT_LE(engine->prefix_cache_use().held, 1024);
  }
  EXPECT_GT(engine->prefix_cache_use().held, 500);
  EXPECT_GT(engine->prefix_cache_use().dropped, 0);
  // One that needs all of it still begins where the latest left off.
  const RequestStats s = Answer(*engine, Ask(Prompt({{500, 5}, {480, 9}}), {}, 40)).stats;
  EXPECT_EQ(s.reused_tokens, 448);
  EXPECT_LE(engine->prefix_cache_use().held, 1024);
}

// Routed in each of the ways, some by masks, some drafting for exact answers: bits, decisions and
// caches held are those of the prompt alone. Where decisions depend on a prompt's last rows, some
// prompts begin anew.
TEST_P(PrefixTest, RoutedAnswersAreThoseWithoutACache) {
  if (kSlowBuild && GetParam().backend == Backend::kReference)
    GTEST_SKIP() << "the reference takes minutes with sanitizers";
  const SyntheticSpec spec = TinySpec();
  const RouterFile router = BalancedRouter(spec, {.pool = 20, .sink = 16, .window = 80}, 3);
  const std::string path = ModelFile(spec);
  auto cold = LoadWithRouter(path, router, GetParam(), {.prompt_chunk = 128});
  std::map<std::string, int> hits;
  int restarts = 0;
  for (uint64_t seed = 1; seed <= (slow() ? 6 : 12); ++seed) {
    Random random(seed);
    auto warm = LoadWithRouter(path, router, GetParam(),
                               {.kv_tokens = random.Of<int64_t>({2000, 8000}),
                                .prompt_chunk = 128,
                                .prompt_share = seed % 4 == 0 ? 0.001 : 1,
                                .prefix_cache_tokens = -1});
    const History h = RunHistory(*warm, random, 12, [&] {
      Request r = Ask(
          Prompt({{random.Of<int64_t>({10, 200, 450, 450}), 1},
                  {random.Of<int64_t>({30, 60, 77}), 2 + static_cast<uint64_t>(random.Below(2))}}));
      r.route = RouteOptions{.mode = random.Of<Mode>({Mode::kExact, Mode::kExact, Mode::kDense,
                                                      Mode::kProbe, Mode::kTwoPass}),
                             .mask = random.Of<std::string>({"", "", "?SFSFF", "FSFFSF"})};
      if (random.OneIn(6)) r.exact = ExactOptions{.lookup = true};
      if (random.OneIn(6)) r.route.reset();
      if (random.OneIn(6)) r.plan = Evicting(), r.route.reset();
      return r;
    });
    Compare(h, *cold, [&](const Request& r, const Generation& got, const Generation& alone) {
      ASSERT_EQ(got.stats.routing.has_value(), alone.stats.routing.has_value());
      if (got.stats.routing) {
        EXPECT_EQ(got.stats.routing->bitmap, alone.stats.routing->bitmap);
        EXPECT_EQ(got.stats.routing->logits, alone.stats.routing->logits);
      }
      const char* kModes[] = {"exact", "probe", "two_pass", "dense"};
      const char* mode = r.route ? kModes[static_cast<int>(r.route->mode)] : "none";
      hits[mode] += got.stats.reused_tokens > 0;
      restarts += got.stats.prefix.miss.find("routed otherwise") != std::string::npos;
    });
  }
  for (const char* mode : {"exact", "probe", "two_pass", "dense", "none"})
    EXPECT_GT(hits[mode], 0) << mode;
  EXPECT_GT(restarts, 0);
}

class PrefixDiskTest : public PrefixTest {
 protected:
  void SetUp() override {
    if (GetParam().backend == Backend::kCuda) GTEST_SKIP() << "host memory only";
  }
  EngineOptions Options(int threads = 2) const {
    return {.threads = threads, .prefix_cache_tokens = -1, .cache_dir = folder_.File("cache")};
  }
  std::vector<std::filesystem::path> Files() const {
    std::vector<std::filesystem::path> files;
    for (const auto& f : std::filesystem::directory_iterator(folder_.File("cache")))
      files.push_back(f.path());
    return files;
  }
  TempFolder folder_;
};

TEST_P(PrefixDiskTest, ARestartFindsWhatWasCached) {
  const std::vector<int32_t> prompt = Prompt({{700, 1}, {300, 2}});
  for (const Kind& kind : Kinds()) {
    const std::string path = FileOf(kind.spec);
    for (const std::optional<Plan>& plan : kind.plans) {
      const TempFolder folder;
      EngineOptions options = Options();
      options.cache_dir = folder.File("cache");
      options.prompt_chunk = kind.chunk;
      std::string hash;
      int64_t again = 0;
      {
        auto engine = Load(path, GetParam(), options);
        hash = Fingerprint(Answer(*engine, Ask(prompt, plan)));
        again = Answer(*engine, Ask(prompt, plan)).stats.reused_tokens;
        EXPECT_GT(again, 0) << kind.name;
      }
      options.threads = 1;
      auto engine = Load(path, GetParam(), options);
      const Generation g = Answer(*engine, Ask(prompt, plan));
      EXPECT_EQ(Fingerprint(g), hash) << kind.name;
      EXPECT_EQ(g.stats.prefix.from_disk, again) << kind.name;
      EXPECT_EQ(g.stats.reused_tokens, again) << kind.name;
      EXPECT_EQ(Answer(*engine, Ask(prompt, plan)).stats.prefix.from_disk, 0);
      EXPECT_EQ(engine->prefix_cache_use().disk_damaged, 0);
    }
  }
}

// Only what is new goes into a new file; another chunk or model finds nothing.
TEST_P(PrefixDiskTest, FilesContinueEachOther) {
  const std::vector<int32_t> one = Prompt({{640, 1}}), two = Prompt({{640, 1}, {640, 2}});
  {
    auto engine = LoadEngine(TinySpec(), GetParam(), Options());
    Answer(*engine, Ask(one));
    Answer(*engine, Ask(two));
  }
  ASSERT_EQ(Files().size(), 2);
  const auto size = [&](size_t i) {
    return static_cast<double>(std::filesystem::file_size(Files()[i]));
  };
  EXPECT_NEAR(size(0) / size(1), 1, 0.2);
  {
    auto engine = LoadEngine(TinySpec(), GetParam(), Options());
    EXPECT_EQ(Answer(*engine, Ask(two)).stats.prefix.from_disk, 1216);
    EngineOptions other = Options();
    other.prompt_chunk = 128;
    auto chunked = LoadEngine(TinySpec(), GetParam(), other);
    EXPECT_EQ(Answer(*chunked, Ask(two)).stats.reused_tokens, 0);
  }
  // The one used least recently is deleted first.
  ASSERT_EQ(Files().size(), 3);
  EngineOptions small = Options();
  small.cache_dir_bytes = static_cast<int64_t>(size(0) + size(1) + size(2)) - 1;
  auto engine = LoadEngine(TinySpec(), GetParam(), small);
  EXPECT_EQ(Files().size(), 2);
  EXPECT_LE(engine->prefix_cache_use().disk_bytes, small.cache_dir_bytes);
}

// A folder of somebody else's, perhaps by a slip of the hand.
TEST_P(PrefixDiskTest, FilesOfOthersStay) {
  const std::string folder = Options().cache_dir;
  std::filesystem::create_directories(folder);
  for (const char* name : {"notes.prefix", "a.prefix.1.tmp", "0123.prefix"})
    std::ofstream(folder + "/" + name) << "nothing of Baton's";
  auto engine = LoadEngine(TinySpec(), GetParam(), Options());
  EXPECT_EQ(Files().size(), 3);
  EXPECT_EQ(engine->prefix_cache_use().disk_damaged, 0);
}

TEST_P(PrefixDiskTest, DamagedFilesAreDroppedAndCounted) {
  const std::vector<int32_t> prompt = Prompt({{640, 1}});
  std::string hash;
  {
    auto engine = LoadEngine(TinySpec(), GetParam(), Options());
    hash = Fingerprint(Answer(*engine, Ask(prompt)));
  }
  ASSERT_EQ(Files().size(), 1);
  const std::filesystem::path file = Files()[0];
  const TempFolder kept;
  std::filesystem::copy_file(file, kept.File("whole"));
  const auto size = static_cast<int64_t>(std::filesystem::file_size(file));
  std::mt19937_64 random(1);
  for (int round = 0; round < (slow() ? 10 : 40); ++round) {
    std::filesystem::copy_file(kept.File("whole"), file,
                               std::filesystem::copy_options::overwrite_existing);
    const auto at = static_cast<int64_t>(random() % static_cast<uint64_t>(round % 2 ? 4000 : size));
    bool in_header = true;
    if (round % 3 == 0) {
      std::filesystem::resize_file(file, static_cast<uintmax_t>(at));
    } else {
      std::fstream f(file, std::ios::in | std::ios::out | std::ios::binary);
      f.seekg(at);
      const int byte = f.get();
      f.seekp(at);
      f.put(static_cast<char>(byte ^ (1 << random() % 8)));
      in_header = false;
    }
    auto engine = LoadEngine(TinySpec(), GetParam(), Options());
    const Generation g = Answer(*engine, Ask(prompt));
    EXPECT_EQ(Fingerprint(g), hash);
    // Unless the byte is one of padding or of a page that the prompt does not need.
    const int64_t damaged = engine->prefix_cache_use().disk_damaged;
    EXPECT_TRUE(damaged == 1 || g.stats.reused_tokens > 0 || !in_header) << round << " at " << at;
    EXPECT_LT(g.stats.reused_tokens, 640);
    engine.reset();
    for (const auto& f : Files()) std::filesystem::remove(f);
  }
}

TEST(PrefixFile, HostileHeadersAreErrors) {
  PrefixFileHeader h{.key = "model", .before = PrefixHash("model"), .page_bytes = {128, 64}};
  h.blocks.resize(3);
  for (size_t b = 0; b < 3; ++b) {
    h.blocks[b].has = {1, static_cast<uint8_t>(b == 1)};
    h.blocks[b].checksums = {b, 7};
    h.blocks[b].tokens.fill(static_cast<int32_t>(b));
  }
  const std::vector<std::byte> good = EncodePrefixFile(h);
  auto parsed = ParsePrefixFile(good);
  ASSERT_TRUE(parsed.ok()) << parsed.error().ToString();
  EXPECT_EQ(parsed->PayloadBytes(), 3 * 128 + 64);
  EXPECT_EQ(parsed->blocks[2].tokens, h.blocks[2].tokens);
  EXPECT_EQ(EncodePrefixFile(*parsed), good);
  for (size_t n = 0; n < good.size(); ++n)
    EXPECT_FALSE(ParsePrefixFile(std::span(good).first(n)).ok()) << n;
  for (size_t i = 0; i < good.size(); ++i) {
    std::vector<std::byte> bad = good;
    bad[i] ^= std::byte{0x40};
    const auto header = ParsePrefixFile(bad);
    if (!header.ok()) continue;
    EXPECT_EQ(EncodePrefixFile(*header), good) << i;  // padding
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, PrefixTest, ::testing::ValuesIn(BackendCases()), NameOf);
INSTANTIATE_TEST_SUITE_P(Backends, PrefixDiskTest, ::testing::ValuesIn(BackendCases()), NameOf);

}  // namespace
}  // namespace baton
