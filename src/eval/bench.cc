// Speed at any depth: the cache is filled with synthetic keys and values, so a depth of 100,000
// tokens costs a second to reach instead of a prefill of minutes. Reads, writes and arithmetic are
// those of a real cache; only the numbers in it are not. Dense and planned runs share the cache:
// each begins with a cut back to the depth and writes beyond it only.
#include <algorithm>
#include <chrono>
#include <cstdio>

#include "base/buffer.h"
#include "base/clock.h"
#include "baton/eval.h"
#include "engine/decode_step.h"
#include "engine/session.h"
#include "eval/bench_exact.h"
#include "eval/steps.h"
#include "profile/exact_price.h"
#include "profile/measure.h"
#include "profile/time_pass.h"

namespace baton {
namespace {

using Clock = std::chrono::steady_clock;

// Layers share a deeper cache even where memory would hold all of it: filling it takes longer than
// what is to be timed.
constexpr int64_t kMostOwnDepth = 131072;
// The rest is for activations, the model's file and other programs.
constexpr double kMostShareOfMemory = 0.8;
// What layers that share keep apart: far more than any processor cache holds.
constexpr int64_t kAliasBytes = int64_t{1} << 30;
// Of a GPU's memory, for activations and index sets.
constexpr int64_t kDeviceHeadroom = int64_t{2} << 30;

std::vector<int32_t> MadeUpTokens(int64_t count, int64_t vocab, uint64_t seed) {
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
  for (int32_t& t : tokens) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    t = static_cast<int32_t>((state >> 33) % static_cast<uint64_t>(vocab));
  }
  return tokens;
}

// Layers share arenas only where their caches have one layout: where just the low-bit copies
// differ, all get one. False where more differs (an indexer's keys, a full and a window layer of
// other heads, rows in host memory beside others): these keep caches of their own.
bool MakeAlike(std::vector<CacheSpec>& caches) {
  const CacheSpec& first = caches[0];
  const bool low_bit =
      std::any_of(caches.begin(), caches.end(), [](const CacheSpec& c) { return c.low_bit; });
  for (const CacheSpec& c : caches) {
    if (c.kv_heads != first.kv_heads || c.head_dim != first.head_dim || c.values != first.values ||
        c.host_rows != first.host_rows)
      return false;
  }
  for (CacheSpec& c : caches) c.low_bit = low_bit;
  return true;
}

// What one decode step of one sequence reads of the cache.
double KvBytes(const Engine::Impl& engine, const ResolvedPlan* plan, int64_t visible) {
  const KvElement element = engine.cache_element();
  return static_cast<double>(plan ? KvBytesPerToken(*plan, engine.shape(), visible, element)
                                  : DenseKvBytesPerToken(engine.shape(), visible, element));
}

// Sequences of one depth that decode together, dense or under a plan. `sessions` are at least
// `depth` tokens long, and no other lane runs meanwhile.
class Lane {
 public:
  Lane(Engine& engine, std::vector<Session>& sessions, const ResolvedPlan* plan, int64_t depth)
      : engine_(&engine), sessions_(sessions), plan_(plan), depth_(depth) {}

  // Seconds of one prompt chunk at this depth.
  Result<double> TimePrompt(std::span<const int32_t> tokens) {
    Rewind();
    const auto start = Clock::now();
    BATON_TRY(sessions_[0].Prefill(tokens, plan_, [](int64_t, View<const float>) {}));
    return SecondsSince(start);
  }

  // Seconds of `steps` decode steps from this depth, greedy sampling included.
  Result<double> TimeDecode(int64_t steps) {
    Rewind();
    tokens_ = MadeUpTokens(static_cast<int64_t>(sessions_.size()), vocab(), 2);
    kv_bytes_ = 0;
    const auto start = Clock::now();
    for (int64_t i = 0; i < steps; ++i) BATON_TRY(Step());
    const double seconds = SecondsSince(start);
    for (int64_t i = 0; i < steps; ++i)
      kv_bytes_ += KvBytes(engine_->impl(), plan_, depth_ + i + 1);
    kv_bytes_ /= static_cast<double>(steps);
    return seconds;
  }

  // Seconds of one dense pass over several rows of the first sequence.
  Result<double> TimeRows(int64_t rows) {
    Rewind();
    return TimePass(*engine_, sessions_[0], nullptr, rows);
  }

  // Per-operation times of a prompt chunk and of a decode step from this depth.
  Result<std::vector<OpTime>> TracePrompt(std::span<const int32_t> tokens) {
    return Trace([&]() -> Status {
      BATON_TRY(TimePrompt(tokens));
      return Status::Ok();
    });
  }
  Result<std::vector<OpTime>> TraceStep() {
    Rewind();
    return Trace([&] { return Step(); });
  }

  const ResolvedPlan* plan() const { return plan_; }
  bool aliased() { return sessions_[0].store().aliased(); }
  double kv_bytes() const { return kv_bytes_; }  // per sequence, mean over the timed steps
  const std::string& hash() const { return hash_; }

 private:
  int64_t vocab() const { return engine_->info().vocab; }
  void Rewind() {
    for (Session& s : sessions_) s.Truncate(depth_);
  }

  template <typename F>
  Result<std::vector<OpTime>> Trace(F&& work) {
    engine_->SetTracing(true);
    const Status status = work();
    std::vector<OpTime> ops = engine_->OpTimes();
    engine_->SetTracing(false);
    if (!status.ok()) return status.error();
    return ops;
  }

  // One forward pass with a row of every sequence, whose largest logits give the next tokens.
  Status Step() {
    Engine::Impl& impl = engine_->impl();
    if (impl.cancelled.load(std::memory_order_relaxed)) return Error::Cancelled();
    DecodeStep step;
    for (size_t i = 0; i < sessions_.size(); ++i) {
      BATON_TRY(step.Add({.kv = &sessions_[i].sequence(),
                          .plan = plan_ ? plan_ : &impl.model_plan,
                          .tokens = std::span<const int32_t>(tokens_).subspan(i, 1)}));
    }
    step.Sample(*impl.model,
                {.after = [&](size_t part, std::span<const SampledRow> sampled, View<const float>) {
                  tokens_[part] = std::max(sampled[0].token, 0);
                  if (part == 0) hash_ = HashText(sampled[0].hash);
                }});
    for (size_t i = 0; i < sessions_.size(); ++i) {
      if (step.failure(i).failed()) return step.failure(i).ToError();
    }
    return Status::Ok();
  }

  Engine* engine_;
  std::span<Session> sessions_;
  const ResolvedPlan* plan_;
  int64_t depth_;
  std::vector<int32_t> tokens_;  // the latest of each sequence
  double kv_bytes_ = 0;
  std::string hash_;  // of the first sequence's latest logits
};

Status CheckOptions(const BenchOptions& o) {
  constexpr int64_t kMost = int64_t{1} << 32;
  const auto bad = [](const char* what, int64_t least, int64_t most, int64_t got) {
    return Error::InvalidArgument("bench: {} must be between {} and {}, got {}", what, least, most,
                                  got);
  };
  if (o.depths.empty()) return Error::InvalidArgument("bench: no depths given");
  for (int64_t d : o.depths) {
    if (d < 0 || d > kMost) return bad("a depth", 0, kMost, d);
  }
  if (o.prompt < 0 || o.prompt > kMost) return bad("prompt", 0, kMost, o.prompt);
  if (o.decode < 1 || o.decode > kMost) return bad("decode", 1, kMost, o.decode);
  if (o.repeats < 1) return bad("repeats", 1, kMost, o.repeats);
  if (o.batches.empty()) return Error::InvalidArgument("bench: no batches given");
  for (int batch : o.batches) {
    if (batch < 1 || batch > 256) return bad("a batch", 1, 256, batch);
  }
  if (o.whole_prompt < 0 || o.whole_prompt > kMost)
    return bad("the whole prompt", 0, kMost, o.whole_prompt);
  for (int batch : o.batches) {
    if (o.exact && batch > 1)
      return Error::Unsupported("bench: exact requests are timed one at a time, got a batch of {}",
                                batch);
  }
  return Status::Ok();
}

class Bench {
 public:
  Bench(Engine& engine, const BenchOptions& options, const ResolvedPlan* plan, std::string summary,
        const OnProgress& progress)
      : engine_(engine),
        options_(options),
        plans_({nullptr}),
        summary_(std::move(summary)),
        steps_(progress, static_cast<double>(options.depths.size() * options.batches.size()) +
                             (options.whole_prompt > 0) +
                             (options.exact && !options.text.empty())) {
    if (plan) plans_.push_back(plan);
  }

  Result<BenchResult> Run() {
    for (int64_t depth : options_.depths) {
      for (int batch : options_.batches) {
        const std::string what = fmt::format("depth {}, batch {}", depth, batch);
        steps_.Begin(what);
        BATON_TRY(Depth(depth, batch));
        steps_.Done(1, what);
      }
    }
    if (options_.whole_prompt > 0) BATON_TRY(WholePrompt());
    if (options_.exact && !options_.text.empty()) {
      BATON_ASSIGN(result_.exact, BenchExact(engine_, options_, result_.rows, steps_));
    }
    KeepPeak();
    return std::move(result_);
  }

 private:
  void KeepPeak() {
    result_.peak_memory_bytes = std::max(result_.peak_memory_bytes, PeakResidentBytes());
  }

  // Beside each depth, because a virtual machine's limit moves by two within seconds (36 and 67
  // GB/s seen). The buffer for it is no memory that the depth needs.
  double ReadBandwidth() {
    KeepPeak();
    const double bytes_per_s = MeasureReadBandwidth(engine_);
    ResetPeakResidentBytes();
    result_.read_bandwidth = std::max(result_.read_bandwidth, bytes_per_s);
    return bytes_per_s;
  }

  // Sequences of `depth` made-up tokens with room for more, in caches that suit every plan. Layers
  // share caches where these take too much memory, or on the host too long to fill.
  Result<std::vector<Session>> Fill(int64_t depth, int64_t room, int batch) {
    std::vector<CacheSpec> caches = engine_.impl().model_plan.caches;
    if (plans_.back()) caches = Together(caches, plans_.back()->caches);
    if (engine_.impl().ops->device().host()) {
      const double bytes = CacheBytes(caches, depth + room, room) * batch;
      const bool large = depth > kMostOwnDepth ||
                         bytes > kMostShareOfMemory * static_cast<double>(AvailableMemoryBytes());
      const bool alias = large && bytes > static_cast<double>(kAliasBytes) && caches.size() > 1 &&
                         MakeAlike(caches);
      return Fill(caches, depth, room, batch, alias);
    }
    auto sessions = Fill(caches, depth, room, batch, /*alias=*/false);
    const bool full = !sessions.ok() && sessions.error().code() == Error::Code::kResource;
    if (!full || caches.size() == 1 || !MakeAlike(caches)) return sessions;
    return Fill(caches, depth, room, batch, /*alias=*/true);
  }

  Result<std::vector<Session>> Fill(const std::vector<CacheSpec>& caches, int64_t depth,
                                    int64_t room, int batch, bool alias) {
    Device& device = engine_.impl().ops->device();
    KvStoreOptions store;
    if (alias) store.alias_bytes = kAliasBytes / batch;
    std::vector<Session> sessions;
    for (int i = 0; i < batch; ++i) {
      BATON_ASSIGN(Session s, Session::Create(engine_, caches, depth + room,
                                              {.store = store, .rollback = room}));
      sessions.push_back(std::move(s));
    }
    const auto tokens = static_cast<double>(depth + room);
    const double bytes = batch * (alias ? sessions[0].store().bytes_per_token() * tokens
                                        : CacheBytes(caches, depth + room, room));
    const auto available = static_cast<double>(AvailableMemoryBytes());
    if (device.host() && bytes > available) {
      return Error::Resource("bench: a cache of {} x {} tokens takes {:.1f} GB, {:.1f} are free",
                             batch, depth + room, bytes / 1e9, available / 1e9)
          .Hint("lower --depth or --batch");
    }
    // The first sequence is the same in every batch, and so is its logits hash unless layers share.
    for (size_t i = 0; i < sessions.size(); ++i) BATON_TRY(sessions[i].FillSynthetic(depth, i + 1));
    if (!device.host()) {
      BATON_ASSIGN([[maybe_unused]] Buffer room_left, Buffer::Allocate(kDeviceHeadroom, device));
    }
    result_.expected_memory_bytes =
        std::max(result_.expected_memory_bytes,
                 engine_.impl().model->weights().bytes_per_token + static_cast<int64_t>(bytes));
    return sessions;
  }

  // Of one sequence.
  double CacheBytes(const std::vector<CacheSpec>& caches, int64_t tokens, int64_t room) const {
    double bytes = 0;
    for (const CacheSpec& c : caches) {
      const KvLayout layout = engine_.impl().LayoutOf(c);
      const int64_t held = std::min(tokens, c.Held(tokens) + room);
      bytes +=
          static_cast<double>(layout.arena_bytes(1)) / KvLayout::kSlots * static_cast<double>(held);
    }
    return bytes;
  }

  // Dense and planned take turns within every repeat, so a slow moment of the machine hits both.
  Status Depth(int64_t depth, int batch) {
    const int64_t room = std::max({options_.prompt, options_.decode + 1, kMostDrafts + 1});
    const std::vector<int32_t> prompt = MadeUpTokens(options_.prompt, engine_.info().vocab, 1);
    BATON_ASSIGN(std::vector<Session> sessions, Fill(depth, room, batch));
    std::vector<Lane> lanes;
    for (const ResolvedPlan* plan : plans_) lanes.emplace_back(engine_, sessions, plan, depth);
    const double read_bandwidth = ReadBandwidth();
    std::vector<std::vector<double>> prompt_seconds(lanes.size()), decode_seconds(lanes.size());
    std::vector<std::vector<double>> rows_seconds(std::size(kVerifyRows));
    for (int repeat = -1; repeat < options_.repeats; ++repeat) {  // -1 warms up
      for (size_t i = 0; i < lanes.size(); ++i) {
        if (options_.prompt > 0) {
          BATON_ASSIGN(const double seconds, lanes[i].TimePrompt(prompt));
          if (repeat >= 0) prompt_seconds[i].push_back(seconds);
        }
        const int64_t steps = repeat < 0 ? std::min<int64_t>(options_.decode, 2) : options_.decode;
        BATON_ASSIGN(const double seconds, lanes[i].TimeDecode(steps));
        if (repeat >= 0) decode_seconds[i].push_back(seconds);
      }
      for (size_t i = 0; i < rows_seconds.size() && options_.exact; ++i) {
        BATON_ASSIGN(const double seconds, lanes[0].TimeRows(kVerifyRows[i]));
        if (repeat >= 0) rows_seconds[i].push_back(seconds);
      }
    }
    for (size_t i = 0; i < lanes.size(); ++i) {
      BenchRow row{.depth = depth, .batch = batch, .read_bandwidth = read_bandwidth};
      if (options_.ops && options_.prompt > 0) {
        BATON_ASSIGN(row.prompt_ops, lanes[i].TracePrompt(prompt));
      }
      if (options_.ops) {
        BATON_ASSIGN(row.ops, lanes[i].TraceStep());
      }
      for (size_t r = 0; r < rows_seconds.size() && options_.exact && i == 0; ++r)
        row.verify.push_back({kVerifyRows[r], Median(rows_seconds[r])});
      AddRow(row, lanes[i], Median(prompt_seconds[i]), Median(decode_seconds[i]));
    }
    return Status::Ok();
  }

  void AddRow(BenchRow row, Lane& lane, double prompt_seconds, double decode_seconds) {
    row.plan = lane.plan() ? summary_ : "dense";
    if (prompt_seconds > 0)
      row.prompt_tokens_per_s = static_cast<double>(options_.prompt) / prompt_seconds;
    const double steps_per_s = static_cast<double>(options_.decode) / decode_seconds;
    row.decode_tokens_per_s = steps_per_s * row.batch;
    row.kv_bytes_per_token = lane.kv_bytes();
    // The weights are read once for all sequences of a step.
    row.weight_bytes_per_token =
        static_cast<double>(engine_.impl().model->weights().bytes_per_token) / row.batch;
    row.decode_bytes_per_s =
        (row.weight_bytes_per_token + row.kv_bytes_per_token) * row.decode_tokens_per_s;
    if (row.read_bandwidth > 0)
      row.share_of_read_bandwidth = row.decode_bytes_per_s / row.read_bandwidth;
    row.logits_hash = lane.hash();
    row.kv_bytes_held =
        KvBytesHeld(lane.plan() ? lane.plan()->caches : engine_.impl().model_plan.caches,
                    row.depth + options_.decode, engine_.impl().cache_element());
    row.aliased = lane.aliased();
    result_.rows.push_back(std::move(row));
  }

  Status WholePrompt() {
    const std::string what = fmt::format("a prompt of {} tokens", options_.whole_prompt);
    steps_.Begin(what);
    const std::vector<int32_t> prompt =
        MadeUpTokens(options_.whole_prompt, engine_.info().vocab, 1);
    // Filled only so that no run pays for memory's first use.
    BATON_ASSIGN(std::vector<Session> sessions, Fill(options_.whole_prompt, 0, 1));
    std::vector<std::vector<double>> seconds(plans_.size());
    for (int repeat = 0; repeat < options_.repeats; ++repeat) {
      for (size_t i = 0; i < plans_.size(); ++i) {
        BATON_ASSIGN(const double s, Lane(engine_, sessions, plans_[i], 0).TimePrompt(prompt));
        seconds[i].push_back(s);
      }
    }
    result_.whole_prompt_seconds_dense = Median(seconds[0]);
    if (seconds.size() > 1) result_.whole_prompt_seconds_plan = Median(seconds[1]);
    steps_.Done(1, what);
    return Status::Ok();
  }

  Engine& engine_;
  const BenchOptions& options_;
  std::vector<const ResolvedPlan*> plans_;  // null: dense
  std::string summary_;
  Steps steps_;
  BenchResult result_;
};

}  // namespace

Result<BenchResult> RunBench(Engine& engine, const BenchOptions& options,
                             const OnProgress& progress) {
  BATON_TRY(CheckOptions(options));
  std::optional<ResolvedPlan> plan;
  std::string summary;
  if (options.plan) {
    BATON_ASSIGN(plan, engine.impl().ResolvePlan(*options.plan, nullptr));
    // What a router decides varies; timed is the plan with all of its windows, in prompts too.
    for (int l = 0; l < engine.impl().shape().layers; ++l) {
      if (plan->layer(l).role == Role::kRoute)
        plan->Decide(l, /*full=*/false, engine.impl().shape(), /*in_prompts=*/true);
    }
    summary = options.plan->Summary();
  }
  return Bench(engine, options, plan ? &*plan : nullptr, std::move(summary), progress).Run();
}

}  // namespace baton
