// Static lists of window layers: ranked one layer at a time on the profile split, measured together
// on the test split.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/clock.h"
#include "baton/profile.h"
#include "engine/engine_impl.h"
#include "profile/calibration.h"
#include "profile/corpus.h"
#include "profile/input_entropy.h"
#include "profile/search_json.h"
#include "profile/splits.h"

namespace baton {
namespace {

class WindowPlanner {
 public:
  WindowPlanner(Engine& engine, const Profile& profile, const WindowOptions& options,
                const OnProgress& progress)
      : engine_(engine), profile_(profile), options_(options), progress_(progress) {}

  Result<WindowPlan> Run();

 private:
  Status Check() const;
  bool Eligible(int l) const { return profile_.model_window[static_cast<size_t>(l)] == 0; }
  int EligibleLayers() const {
    return static_cast<int>(
        std::count(profile_.model_window.begin(), profile_.model_window.end(), int64_t{0}));
  }
  Status RankByHarm(WindowPlan& out);
  Status MeasureHarm(WindowPlan& out);
  Status RankByEntropy(WindowPlan& out);
  Plan ToPlan(const std::vector<double>& score) const;
  Result<ResolvedPlan> Decided(const Plan& plan, bool in_prompt) const;
  Status Measure(WindowPlan& out);
  void AddEvidence(WindowPlan& out) const;
  void Report(double fraction, const std::string& what) const {
    if (progress_) progress_(fraction, what);
  }

  Engine& engine_;
  const Profile& profile_;
  const WindowOptions& options_;
  const OnProgress& progress_;
  Corpus corpus_;
};

Status WindowPlanner::Check() const {
  const ModelInfo& info = engine_.info();
  if (info.fingerprint != profile_.fingerprint)
    return Error::InvalidArgument("the profile was made for another model: {} ({}), got {} ({})",
                                  profile_.model_path, profile_.fingerprint, info.path,
                                  info.fingerprint)
        .Hint("run baton profile on this model");
  if (engine_.impl().shape().trained_sparse())
    return Error::Unsupported("a {} model has its own attention; its layers keep it",
                              info.architecture);
  if (options_.sink < 0 || options_.window < 1)
    return Error::InvalidArgument("sink {} must be 0 or more and window {} 1 or more",
                                  options_.sink, options_.window);
  if (options_.window >= profile_.options.context - options_.sink)
    return Error::InvalidArgument("sink {} and window {} cover the profile's context of {} tokens",
                                  options_.sink, options_.window, profile_.options.context)
        .Hint("give a smaller --window, or profile a longer context");
  const int eligible = EligibleLayers();
  if (!(options_.share > 0 && options_.share <= 1) || options_.share * eligible < 1)
    return Error::InvalidArgument(
        "the share of window layers must be above 0, up to 1, and at least one of {} layers; got "
        "{}",
        eligible, options_.share);
  return Status::Ok();
}

// The profile's tables are of windows whose width includes the sink.
Status WindowPlanner::RankByHarm(WindowPlan& out) {
  const auto& widths = profile_.options.windows;
  const auto at = std::find(widths.begin(), widths.end(), options_.sink + options_.window);
  if (at != widths.end() && profile_.options.sink == options_.sink) {
    const auto w = static_cast<size_t>(at - widths.begin());
    out.harm_text.assign(profile_.window_text[w].begin(), profile_.window_text[w].end());
    out.harm_answer.assign(profile_.window_answer[w].begin(), profile_.window_answer[w].end());
  } else {
    BATON_TRY(MeasureHarm(out));
  }
  for (size_t l = 0; l < out.score.size(); ++l) {
    if (Eligible(static_cast<int>(l))) out.score[l] = out.harm_text[l] + out.harm_answer[l];
  }
  return Status::Ok();
}

Status WindowPlanner::MeasureHarm(WindowPlan& out) {
  const int layers = profile_.layers;
  std::vector<PlanMeasure> harm(static_cast<size_t>(layers));
  const int contexts = Contexts(corpus_, Corpus::kProfile);
  for (int c = 0; c < contexts; ++c) {
    const double done = 0.8 * c / contexts;
    Report(done, fmt::format("profile split: dense run {} of {}", c + 1, contexts));
    BATON_ASSIGN(
        std::unique_ptr<CalibrationContext> context,
        CalibrationContext::Build(
            engine_, ContextSpec(corpus_, Corpus::kProfile, c, profile_.options), nullptr));
    for (int l = 0; l < layers; ++l) {
      if (!Eligible(l)) continue;
      Report(done + 0.8 / contexts * (0.3 + 0.7 * l / layers),
             fmt::format("context {} of {}: window in layer {}", c + 1, contexts, l));
      ResolvedPlan plan = engine_.impl().model_plan;
      plan.layers[static_cast<size_t>(l)].branches[0].set = {
          .kind = TokenSet::Kind::kWindow, .sink = options_.sink, .recent = options_.window};
      BATON_ASSIGN(const PlanMeasure one,
                   context->Run(plan, {.first_layer = l, .only_dense_finds = true}));
      harm[static_cast<size_t>(l)].Add(one);
    }
  }
  for (const PlanMeasure& m : harm) {
    out.harm_text.push_back(MeanOf(m.text_kl).mean);
    out.harm_answer.push_back(MeanOf(m.answer_kl).mean);
  }
  return Status::Ok();
}

Status WindowPlanner::RankByEntropy(WindowPlan& out) {
  const int contexts = Contexts(corpus_, Corpus::kProfile);
  std::vector<double> sum(out.score.size(), 0);
  for (int c = 0; c < contexts; ++c) {
    BATON_ASSIGN(const ProbeContext context,
                 CalibrationContext::Compose(
                     engine_, ContextSpec(corpus_, Corpus::kProfile, c, profile_.options)));
    const auto progress = [&](int l) {
      Report(0.8 * (c + static_cast<double>(l) / profile_.layers) / contexts,
             fmt::format("context {} of {}: entropy of layer {}", c + 1, contexts, l));
    };
    BATON_ASSIGN(const std::vector<double> one, InputEntropy(engine_, context.tokens, progress));
    for (size_t l = 0; l < sum.size(); ++l) sum[l] += one[l];
  }
  for (size_t l = 0; l < sum.size(); ++l) {
    if (Eligible(static_cast<int>(l))) out.score[l] = sum[l] / contexts;
  }
  return Status::Ok();
}

// The layers of the lowest scores; among equals the lower one.
Plan WindowPlanner::ToPlan(const std::vector<double>& score) const {
  std::vector<int> order;
  for (int l = 0; l < profile_.layers; ++l) {
    if (Eligible(l)) order.push_back(l);
  }
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    return score[static_cast<size_t>(a)] < score[static_cast<size_t>(b)];
  });
  order.resize(static_cast<size_t>(options_.share * static_cast<double>(order.size()) + 1e-9));
  Plan plan = Plan::Dense(profile_.layers);
  plan.architecture = profile_.architecture;
  plan.fingerprint = profile_.fingerprint;
  plan.evict = options_.evict;
  plan.min_context = options_.sink + options_.window;  // up to here a window holds everything
  for (const int l : order) {
    plan.layers[static_cast<size_t>(l)] = {.role = options_.route ? Role::kRoute : Role::kWindow,
                                           .sink = options_.sink,
                                           .recent = options_.window};
  }
  return plan;
}

// The plan with every routed layer a window.
Result<ResolvedPlan> WindowPlanner::Decided(const Plan& plan, bool in_prompt) const {
  Engine::Impl& impl = engine_.impl();
  BATON_ASSIGN(ResolvedPlan resolved, impl.ResolvePlan(plan, nullptr));
  for (int l = 0; l < profile_.layers; ++l) {
    if (resolved.layer(l).role == Role::kRoute)
      resolved.Decide(l, /*full=*/false, impl.shape(), in_prompt);
  }
  return resolved;
}

Status WindowPlanner::Measure(WindowPlan& out) {
  const ModelShape& shape = engine_.impl().shape();
  const int64_t visible = profile_.options.context - 256;
  std::vector<bool> modes = {false};
  if (options_.route) modes.push_back(true);
  std::vector<PlanMeasure> sums(modes.size());
  const int contexts = Contexts(corpus_, Corpus::kTest);
  for (int c = 0; c < contexts; ++c) {
    Report(0.8 + 0.2 * c / contexts, fmt::format("test split: context {} of {}", c + 1, contexts));
    BATON_ASSIGN(std::unique_ptr<CalibrationContext> context,
                 CalibrationContext::Build(
                     engine_, ContextSpec(corpus_, Corpus::kTest, c, profile_.options), nullptr));
    for (size_t m = 0; m < modes.size(); ++m) {
      BATON_ASSIGN(const ResolvedPlan plan, Decided(out.plan, modes[m]));
      BATON_ASSIGN(const PlanMeasure one,
                   modes[m] ? context->RunWithPrefill(plan) : context->Run(plan, {}));
      sums[m].Add(one);
    }
  }
  for (size_t m = 0; m < modes.size(); ++m) {
    const PlanMeasure& sum = sums[m];
    BATON_ASSIGN(const ResolvedPlan plan, Decided(out.plan, modes[m]));
    const MeanError kl = MeanOf(sum.text_kl);
    const auto rows = static_cast<double>(sum.text_kl.size());
    out.measures.push_back(
        {.in_prompt = modes[m],
         .kv_bytes_share = static_cast<double>(KvBytesPerToken(plan, shape, visible)) /
                           static_cast<double>(DenseKvBytesPerToken(shape, visible)),
         .kv_held_share =
             static_cast<double>(KvBytesHeld(plan.AfterPrompt().caches, profile_.options.context)) /
             static_cast<double>(KvBytesHeld(shape.caches, profile_.options.context)),
         .kl = kl.mean,
         .kl_standard_error = kl.standard_error,
         .answer_kl = MeanOf(sum.answer_kl).mean,
         .top1 = rows > 0 ? static_cast<double>(sum.same_best) / rows : 1,
         .found = sum.found,
         .dense_found = sum.dense_found,
         .probes = sum.probes});
  }
  return Status::Ok();
}

void WindowPlanner::AddEvidence(WindowPlan& out) const {
  const WindowMeasure& m = out.measures.back();
  Evidence& e = out.plan.evidence;
  e.present = true;
  e.context = ContextLength(corpus_, Corpus::kTest, profile_.options);
  e.kv_bytes_share = m.kv_bytes_share;
  e.kl = m.kl;
  e.answer_kl = m.answer_kl;
  e.top1 = m.top1;
  e.retrieval_found = m.found;
  e.retrieval_dense_found = m.dense_found;
  e.retrieval_total = m.probes;
  if (options_.rank == WindowRank::kHarm) {
    for (size_t l = 0; l < out.score.size(); ++l) {
      if (out.plan.layers[l].role != Role::kFull) e.predicted_nats += out.score[l];
    }
  }
  e.text_sha256 = profile_.text_sha256;
  e.details = EvidenceDetails(out, options_, profile_);
}

Result<WindowPlan> WindowPlanner::Run() {
  const auto start = std::chrono::steady_clock::now();
  BATON_TRY(Check());
  BATON_ASSIGN(corpus_, LoadCorpus(engine_, profile_.options.texts));
  if (corpus_.sha256 != profile_.text_sha256)
    return Error::InvalidArgument("the texts changed since the profile was made")
        .Hint("run baton profile again");
  WindowPlan out;
  out.score.assign(static_cast<size_t>(profile_.layers), std::numeric_limits<double>::quiet_NaN());
  BATON_TRY(options_.rank == WindowRank::kHarm ? RankByHarm(out) : RankByEntropy(out));
  out.plan = ToPlan(out.score);
  BATON_TRY(Measure(out));
  AddEvidence(out);
  out.seconds = SecondsSince(start);
  Report(1, "done");
  return out;
}

}  // namespace

Result<WindowPlan> PlanWindows(Engine& engine, const Profile& profile, const WindowOptions& options,
                               const OnProgress& progress) {
  return WindowPlanner(engine, profile, options, progress).Run();
}

}  // namespace baton
