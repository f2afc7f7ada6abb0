// Small models of the trained-sparse architectures, and comparisons of what a prompt leaves behind.
#pragma once

#include <rapidcheck.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "engine/prompt/prompt_run.h"
#include "tests/attention/engine_test_util.h"

namespace baton::test {

inline SyntheticSpec NativeSpec(const std::string& architecture, const std::string& layout) {
  SyntheticSpec s;
  s.architecture = "baton-" + architecture;
  s.layers = static_cast<int>(layout.size());
  s.layout = layout;
  s.width = 32;
  s.heads = 4;
  s.kv_heads = 2;
  s.head_dim = 16;
  s.ffn_width = 32;
  s.vocab = 260;
  s.context = 1024;
  s.window = 4;
  s.rope = architecture == "hysparse" || architecture == "dense" ? "FWS" : "W";
  if (architecture != "clsa") s.gated = "WSR", s.sinks = "WSR";
  if (architecture == "clsa") s.gated = "L";
  return s;
}

// One model of each kind of layer, windows of 4 tokens (one of 40, whose rings drop pages).
inline std::vector<SyntheticSpec> NativeSpecs() {
  std::vector<SyntheticSpec> all;
  const auto add = [&](const std::string& architecture, const std::string& layout) {
    all.push_back(NativeSpec(architecture, layout));
    return &all.back();
  };
  add("dense", "FF");
  add("dense", "WWF")->sink_tokens = 2;
  add("clsa", "WWDD")->exit_layer = 2;
  SyntheticSpec* s = add("clsa", "WWII");
  s->exit_layer = 2, s->top_k = 8, s->index_dim = 16;
  s = add("clsa", "WWWII");
  s->exit_layer = 3, s->top_k = 9, s->index_dim = 32, s->recent = 3, s->sink = 2;
  s->qk_norm = s->memory_qk_norm = true, s->window = 40;
  s = add("clsa", "WLL");
  s->top_k = 7, s->index_dim = 16;
  s = add("hysparse", "FSSFSF");
  s->top_k = 12, s->block = 4, s->scope = Scope::kGroup;
  s = add("hysparse", "FSFS");
  s->top_k = 7, s->gate = Gate::kHead, s->pool = Pool::kSum;
  s = add("hysparse2", "WFWWCRCR");
  s->exit_layer = 4, s->top_k = 8, s->recent = 3, s->rope_dims = 8, s->smear = true;
  s = add("hysparse2", "WFWWCRR");
  s->exit_layer = 4, s->top_k = 8, s->recent = 5, s->window = 40, s->scope = Scope::kGroup;
  s = add("hysparse2", "FWCSCS");
  s->top_k = 9;
  // Lists that cross the exit, and a bridge from a layer whose ring the suffix would outlive.
  s = add("hysparse2", "WFCRRC");
  s->exit_layer = 3, s->top_k = 6, s->recent = 2;
  s = add("clsa", "WIII");
  s->exit_layer = 2, s->top_k = 6, s->index_dim = 16;
  s = add("hysparse2", "FWWWWCR");
  s->exit_layer = 5, s->bridge = 1, s->top_k = 6, s->recent = 2, s->window = 30;
  s = add("hysparse2", "FCRWCR");
  s->exit_layer = 4, s->bridge = 0, s->top_k = 6, s->recent = 2;
  return all;
}

inline std::string Describe(const SyntheticSpec& s) {
  return s.architecture + " " + s.layout + fmt::format(" W{} k{}", s.window, s.top_k);
}

// On cpu with an f32 cache: the portable kernels, in single precision throughout. Of one's own
// file: specs differ in more than a name could say.
inline std::unique_ptr<Engine> LoadNative(const SyntheticSpec& spec, const BackendCase& c) {
  static int files = 0;
  const std::string path = Scratch().File(fmt::format("native-{}.gguf", files++));
  const Status written = WriteSyntheticGguf(path, spec);
  EXPECT_TRUE(written.ok()) << written.error().ToString();
  EngineOptions options;
  options.backend = c.backend;
  options.kv = c.kv;
  options.portable = c.kv == KvType::kF32;
  options.threads = 2;
  auto engine = Engine::Load(path, options);
  EXPECT_TRUE(engine.ok()) << Describe(spec) << ": " << engine.error().ToString();
  std::filesystem::remove(path);
  return std::move(engine).value();
}

inline Session NewNativeSession(Engine& engine, int64_t max_tokens, int64_t rollback = 0) {
  auto session =
      Session::Create(engine, engine.impl().model_plan.caches, max_tokens, {.rollback = rollback});
  EXPECT_TRUE(session.ok()) << session.error().ToString();
  return std::move(session).value();
}

// How a prompt is processed.
struct Manner {
  int64_t chunk = 512;
  int64_t wanted = 1;
  PrefillOrder order = PrefillOrder::kTokenMajor;
  int64_t part = kWholePass;  // rows times layers of a step
};

// Appends `tokens`; the logits of the wanted rows, [wanted, vocab]. `between` runs after each step.
inline Logits RunPrompt(Engine& engine, KvSequence& kv, std::span<const int32_t> tokens,
                        const Manner& manner, const ResolvedPlan* plan = nullptr,
                        const std::function<void()>& between = nullptr) {
  Logits all;
  engine.impl().options.prompt_chunk = manner.chunk;
  PromptRun run(engine.impl(),
                {.tokens = tokens,
                 .kv = &kv,
                 .plan = plan ? plan : &engine.impl().model_plan,
                 .on_logits =
                     [&](int64_t first, View<const float> logits) {
                       EXPECT_EQ(first * logits.dim(1), static_cast<int64_t>(all.size()));
                       all.insert(all.end(), logits.data(), logits.data() + logits.size());
                     },
                 .wanted = manner.wanted,
                 .order = manner.order});
  while (!run.done()) {
    const Status status = run.Step(manner.part);
    EXPECT_TRUE(status.ok()) << status.error().ToString();
    if (!status.ok()) break;
    if (between) between();
  }
  return all;
}

// The whole pass: all rows through all layers at once.
inline Logits RunWhole(Engine& engine, KvSequence& kv, std::span<const int32_t> tokens) {
  const auto n = static_cast<int64_t>(tokens.size());
  return RunPrompt(engine, kv, tokens, {.chunk = n, .wanted = n});
}

// Tokens one by one.
inline Logits DecodeSteps(Session& session, std::span<const int32_t> tokens,
                          const ResolvedPlan* plan = nullptr) {
  Logits all;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const Logits row = Decode(session, tokens.subspan(i, 1), plan);
    all.insert(all.end(), row.begin(), row.end());
  }
  return all;
}

inline std::span<const float> LastRows(const Logits& all, int64_t rows, int64_t vocab) {
  return std::span(all).last(static_cast<size_t>(rows * vocab));
}

// The largest difference of elements that later rows can read, K and V of every cache; f32 caches.
// An indexer's keys are rounded to bf16 and may be `indexer_ulps` of those apart. Negative: some
// page that later rows read is not held, or the lengths differ.
inline double CacheDifference(const KvSequence& a, const KvSequence& b,
                              const std::vector<CacheSpec>& caches, double indexer_ulps = 0) {
  double largest = 0;
  if (a.length() != b.length()) return -1;
  for (size_t c = 0; c < caches.size(); ++c) {
    const int i = static_cast<int>(c);
    if (a.length(i) != a.length() || b.length(i) != b.length()) return -2;
    const KvView x = a.View(i), y = b.View(i);
    for (int64_t p = 0; p < a.length(); ++p) {
      const CacheSpec& spec = caches[c];
      if (spec.ring() && p >= spec.sink && p <= a.length() - spec.recent) continue;
      if (x.pages[p / KvLayout::kSlots] < 0 || y.pages[p / KvLayout::kSlots] < 0) return -3;
      const auto* left = reinterpret_cast<const float*>(x.row(p));
      const auto* right = reinterpret_cast<const float*>(y.row(p));
      for (int64_t j = 0; j < x.layout.row_bytes() / 4; ++j) {
        double d = std::abs(static_cast<double>(left[j]) - right[j]);
        if (!spec.values) d -= std::min(d, indexer_ulps / 128 * std::abs(left[j]));
        if (!(d <= largest)) largest = d;
      }
    }
  }
  return largest;
}

// A random model of one of the four architectures; tokens are drawn from 0..255.
inline rc::Gen<SyntheticSpec> AnyNativeSpec() {
  return rc::gen::resize(
      100, rc::gen::exec([] {
        const std::string architecture =
            *rc::gen::element<std::string>("dense", "clsa", "hysparse", "hysparse2");
        const auto some = [](const std::string& letters, int least, int most) {
          std::string s;
          for (int i = *rc::gen::inRange(least, most + 1); i > 0; --i)
            s += letters[*rc::gen::inRange<size_t>(0, letters.size())];
          return s;
        };
        std::string layout;
        int exit = -1, bridge = -1;
        bool gated_tail = false, indexer = false;
        if (architecture == "dense") {
          layout = some("WF", 1, 5);
        } else if (architecture == "hysparse") {
          layout = "F" + some("FSS", 1, 5);
        } else if (architecture == "clsa") {
          layout = some("W", 0, 3);
          exit = static_cast<int>(layout.size());
          gated_tail = *rc::gen::inRange(0, 3) == 0;
          layout += some(gated_tail ? "LID" : "ID", 1, 3);
          exit += *rc::gen::inRange(0, static_cast<int>(layout.size()) - exit);
          if (layout.find('L') != std::string::npos) exit = -1;
          indexer = layout.find_first_of("IL") != std::string::npos;
        } else {
          layout = some("W", 0, 2) + "F" + some("WWWF", 0, 3);
          exit = static_cast<int>(layout.size());
          gated_tail = *rc::gen::inRange(0, 3) == 0;
          bridge = *rc::gen::inRange(-1, exit);
          layout += "C" + some(gated_tail ? "CRS" : "CRW", 1, 4);
          // A publisher is one whose list the next layer reads.
          for (size_t l = 1; l < layout.size(); ++l)
            if (layout[l] == 'W' && layout[l - 1] == 'C') layout[l] = 'R';
          // No layer behind the exit has a window of its own.
          exit = *rc::gen::inRange(exit, exit + 3);
          exit = std::max(exit, static_cast<int>(layout.find_last_of("WS") + 1));
          if (exit >= static_cast<int>(layout.size())) exit = -1;
        }
        SyntheticSpec s = NativeSpec(architecture, layout);
        s.exit_layer = exit >= 0 && *rc::gen::inRange(0, 4) > 0 ? exit : -1;
        s.bridge = bridge;
        s.seed = *rc::gen::inRange<uint64_t>(1, 1000);
        s.kv_heads = *rc::gen::element(1, 2, 4);
        s.window = *rc::gen::element<int64_t>(1, 2, 4, 5, 30, 70);
        s.sink_tokens = *rc::gen::element<int64_t>(0, 0, 1, 3);
        s.qk_norm = *rc::gen::arbitrary<bool>();
        s.memory_qk_norm = architecture == "clsa" && *rc::gen::arbitrary<bool>();
        s.rope_dims = *rc::gen::element<int64_t>(0, 8);
        s.gate = *rc::gen::element(Gate::kHead, Gate::kChannel);
        s.pool = *rc::gen::element(Pool::kMax, Pool::kSum);
        if (layout.find_first_of("SRIL") == std::string::npos) return s;
        s.scope = indexer ? Scope::kAll : *rc::gen::element(Scope::kAll, Scope::kGroup);
        s.top_k = *rc::gen::element<int64_t>(1, 2, 5, 8, 33);
        if (indexer) s.index_dim = *rc::gen::element<int64_t>(16, 32);
        if (architecture == "hysparse") s.block = *rc::gen::element<int64_t>(1, 2, 8);
        const bool forced = s.block == 1 && layout.find('S') == std::string::npos;
        if (forced) s.recent = *rc::gen::element<int64_t>(0, 1, 4, 9);
        if (forced) s.sink = *rc::gen::element<int64_t>(0, 0, 2);
        return s;
      }));
}

}  // namespace baton::test
