#include "baton/profile.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "base/clock.h"
#include "engine/engine_impl.h"
#include "profile/calibration.h"
#include "profile/corpus.h"
#include "profile/kinds.h"
#include "profile/lost_mass.h"
#include "profile/role_costs.h"
#include "profile/splits.h"

namespace baton {
namespace {

// The budget that prices are taken at (arXiv 2602.00777 names none; methods: k = 256).
constexpr int64_t kPriceBudget = 256;
// A layer that loses nothing measurable still costs a little, and a set that misses nothing prices
// nothing.
constexpr double kLeastKl = 1e-5;
constexpr double kLeastMass = 1e-3;

Status CheckOptions(const ProfileOptions& o, Engine& engine) {
  const ModelInfo& info = engine.info();
  if (engine.impl().shape().trained_sparse()) {
    return Error::Unsupported(
        "a {} model is trained for its own attention: there is nothing to plan", info.architecture);
  }
  BATON_TRY(o.Check());
  if (o.context > engine.options().context) {
    return Error::InvalidArgument("profile context must be at most {} tokens, got {}",
                                  engine.options().context, o.context)
        .Hint("the limit is the model's own context");
  }
  if (std::all_of(info.window.begin(), info.window.end(), [](int64_t w) { return w > 0; })) {
    return Error::Unsupported(
        "every layer of this model has its own window: there is nothing to plan");
  }
  return Status::Ok();
}

// One layer reads a list of `source`'s exact ranking (its own: the upper bound of a budget).
void UseIndex(ResolvedPlan& plan, const ProfileOptions& o, int layer, int source, int64_t k) {
  plan.layers[static_cast<size_t>(layer)].role = Role::kReuse;
  LayerPlan& publisher = plan.layers[static_cast<size_t>(source)];
  if (source != layer) publisher.role = Role::kSelect;
  publisher.publish = Publish{.scope = o.scope == Scope::kAll ? Scope::kAll : Scope::kGroup,
                              .pool = o.pool,
                              .block = o.block,
                              .sink = o.sink,
                              .recent = o.recent};
  plan.ReadList(layer, source, {k, 0});
}

void UseWindow(ResolvedPlan& plan, int layer, int64_t sink, int64_t recent) {
  LayerPlan& l = plan.layers[static_cast<size_t>(layer)];
  l.role = Role::kWindow;
  l.branches[0].set = {.kind = TokenSet::Kind::kWindow, .sink = sink, .recent = recent};
}

float Price(double kl, double lost_mass) {
  return static_cast<float>(std::max(kl, kLeastKl) / std::max(lost_mass, kLeastMass));
}

// Sums of KL over the rows of some contexts, for one kind of one-layer change.
struct Harm {
  double text = 0, answer = 0, text_rows = 0, answer_rows = 0;
  void Add(const PlanMeasure& m) {
    text += std::accumulate(m.text_kl.begin(), m.text_kl.end(), 0.0);
    answer += std::accumulate(m.answer_kl.begin(), m.answer_kl.end(), 0.0);
    text_rows += static_cast<double>(m.text_kl.size());
    answer_rows += static_cast<double>(m.answer_kl.size());
  }
  void Add(const Harm& o) {
    text += o.text;
    answer += o.answer;
    text_rows += o.text_rows;
    answer_rows += o.answer_rows;
  }
  double TextKl() const { return text_rows > 0 ? text / text_rows : 0; }
  double AnswerKl() const { return answer_rows > 0 ? answer / answer_rows : 0; }
};

// One-layer runs: each layer on its own top k, on its predecessor's set, and on each window.
class Sensitivity {
 public:
  Sensitivity(const ProfileOptions& options, const ModelInfo& info, const ResolvedPlan& model,
              size_t kinds)
      : options_(options), info_(info), model_(model), error_(static_cast<size_t>(info.layers)) {
    Sums none;
    none.own.resize(error_.size());
    none.previous = none.own;
    none.windows.assign(options.windows.size(), none.own);
    kinds_.assign(kinds, none);
  }

  // The nearest earlier layer that sees the whole context; -1: none.
  int Source(int layer) const {
    for (int i = layer - 1; i >= 0; --i) {
      if (info_.window[static_cast<size_t>(i)] == 0) return i;
    }
    return -1;
  }
  int64_t PriceBudget() const {
    const auto& b = options_.budgets;
    return std::find(b.begin(), b.end(), kPriceBudget) != b.end() ? kPriceBudget : b.front();
  }

  Status Measure(CalibrationContext& context, size_t kind,
                 const std::function<void(int)>& progress) {
    Sums& sums = kinds_[kind];
    for (int l = 0; l < info_.layers; ++l) {
      progress(l);
      if (info_.window[static_cast<size_t>(l)] > 0) continue;
      const auto at = static_cast<size_t>(l);
      ResolvedPlan plan = model_;
      UseIndex(plan, options_, l, l, PriceBudget());
      CalibrationContext::OutputError error{.layer = l};
      BATON_ASSIGN(
          PlanMeasure own,
          context.Run(plan, {.first_layer = l, .only_dense_finds = true, .error = &error}));
      sums.own[at].Add(own);
      error_[at].first += error.difference;
      error_[at].second += error.dense;
      if (const int source = Source(l); source >= 0) {
        plan = model_;
        UseIndex(plan, options_, l, source, PriceBudget());
        BATON_ASSIGN(PlanMeasure previous,
                     context.Run(plan, {.first_layer = source, .only_dense_finds = true}));
        sums.previous[at].Add(previous);
      }
      for (size_t w = 0; w < options_.windows.size(); ++w) {
        plan = model_;
        UseWindow(plan, l, options_.sink, options_.windows[w] - options_.sink);
        BATON_ASSIGN(PlanMeasure window,
                     context.Run(plan, {.first_layer = l, .only_dense_finds = true}));
        sums.windows[w][at].Add(window);
      }
    }
    return Status::Ok();
  }

  // nats per unit of lost mass: the harm of the predecessor's set over what that set misses. The
  // first such layer has no predecessor and is priced by its own set.
  void Finish(Profile& p) const {
    const auto layers = static_cast<size_t>(info_.layers);
    for (size_t k = 0; k < kinds_.size(); ++k) FinishKind(kinds_[k], p.kinds[k]);
    p.price_text = MeanOverKinds(p.kinds, &KindLoss::price_text);
    p.own_price_text = MeanOverKinds(p.kinds, &KindLoss::own_price_text);
    p.window_text = MeanOverKinds(p.kinds, &KindLoss::window_text);
    p.rnmse.assign(layers, 0);
    p.own_kl.assign(layers, 0);
    p.price_answer.assign(layers, 0);
    p.own_price_answer.assign(layers, 0);
    p.window_answer.assign(options_.windows.size(), std::vector<float>(layers, 0));
    for (size_t j = 0; j < layers; ++j) {
      if (info_.window[j] > 0) continue;
      const Harm own = OfAllKinds([&](const Sums& s) { return s.own[j]; });
      const Harm previous = OfAllKinds([&](const Sums& s) { return s.previous[j]; });
      p.price_answer[j] = Price((Source(static_cast<int>(j)) >= 0 ? previous : own).AnswerKl(),
                                p.answer[BudgetIndex()][Edge(j)]);
      p.own_price_answer[j] = Price(own.AnswerKl(), p.answer[BudgetIndex()][j * layers + j]);
      p.own_kl[j] = static_cast<float>(own.TextKl());
      p.rnmse[j] = static_cast<float>(
          error_[j].second > 0 ? std::sqrt(error_[j].first / error_[j].second) : 0);
      for (size_t w = 0; w < p.window_answer.size(); ++w) {
        p.window_answer[w][j] = static_cast<float>(
            OfAllKinds([&](const Sums& s) { return s.windows[w][j]; }).AnswerKl());
      }
    }
  }

 private:
  // Of one kind of text, by layer.
  struct Sums {
    std::vector<Harm> own, previous;
    std::vector<std::vector<Harm>> windows;
  };

  size_t BudgetIndex() const {
    const auto& b = options_.budgets;
    return static_cast<size_t>(std::find(b.begin(), b.end(), PriceBudget()) - b.begin());
  }
  // Where tables of pairs hold what layer j loses on the set that prices it.
  size_t Edge(size_t j) const {
    const int source = Source(static_cast<int>(j));
    return (source >= 0 ? static_cast<size_t>(source) : j) * static_cast<size_t>(info_.layers) + j;
  }
  Harm OfAllKinds(const std::function<Harm(const Sums&)>& part) const {
    Harm all;
    for (const Sums& s : kinds_) all.Add(part(s));
    return all;
  }
  void FinishKind(const Sums& sums, KindLoss& kind) const {
    const auto layers = static_cast<size_t>(info_.layers);
    const std::vector<float>& lost = kind.text[BudgetIndex()];
    kind.price_text.assign(layers, 0);
    kind.own_price_text.assign(layers, 0);
    kind.window_text.assign(sums.windows.size(), std::vector<float>(layers, 0));
    for (size_t j = 0; j < layers; ++j) {
      if (info_.window[j] > 0) continue;
      const Harm& harm = Source(static_cast<int>(j)) >= 0 ? sums.previous[j] : sums.own[j];
      kind.price_text[j] = Price(harm.TextKl(), lost[Edge(j)]);
      kind.own_price_text[j] = Price(sums.own[j].TextKl(), lost[j * layers + j]);
      for (size_t w = 0; w < sums.windows.size(); ++w)
        kind.window_text[w][j] = static_cast<float>(sums.windows[w][j].TextKl());
    }
  }

  const ProfileOptions& options_;
  const ModelInfo& info_;
  const ResolvedPlan& model_;
  std::vector<Sums> kinds_;
  std::vector<std::pair<double, double>> error_;
};

void Describe(const Engine& engine, const ProfileOptions& options, const Corpus& corpus,
              Profile& p) {
  const ModelInfo& info = engine.info();
  p.model_path = info.path;
  p.architecture = info.architecture;
  p.fingerprint = info.fingerprint;
  p.layers = info.layers;
  p.heads = info.heads;
  p.kv_heads = info.kv_heads;
  p.head_dim = info.head_dim;
  p.model_window = info.window;
  p.options = options;
  p.options.texts = corpus.texts;
  p.text_sha256 = corpus.sha256;
  p.warnings = corpus.warnings;
  for (const Corpus::Kind& kind : corpus.kinds) {
    int64_t tokens = 0;
    for (const auto& split : kind.tokens) tokens += std::ssize(split);
    p.kinds.push_back({.name = kind.name, .tokens = tokens});
  }
}

}  // namespace

Status ProfileOptions::Check() const {
  constexpr int64_t kLongest = 1 << 30;
  if (context < 512 || context > kLongest) {
    return Error::InvalidArgument("profile context must be between 512 and {} tokens, got {}",
                                  kLongest, context);
  }
  if (probes < 2 || probes > 500)
    return Error::InvalidArgument("probes must be between 2 and 500, got {}", probes);
  if (block < 1 || sink < 0 || recent < 0 || std::max({block, sink, recent}) > context) {
    return Error::InvalidArgument(
        "the block must be 1 or more, sink and recent 0 or more, and all at most the context; "
        "got {}, {} and {}",
        block, sink, recent);
  }
  if (scope == Scope::kHeadMap) {
    return Error::Unsupported("a profile is made for scope all or group, not head_map");
  }
  if (budgets.empty() || !std::is_sorted(budgets.begin(), budgets.end(), std::less_equal<>())) {
    return Error::InvalidArgument("budgets must be ascending numbers of tokens");
  }
  for (int64_t b : budgets) {
    const int64_t least = std::max<int64_t>(1, sink + recent);
    if (b < least || b % block != 0) {
      return Error::InvalidArgument(
          "budget {} must be a multiple of the block {} and at least {} (sink + recent)", b, block,
          least);
    }
  }
  for (int64_t w : windows) {
    if (w <= sink)
      return Error::InvalidArgument("window {} must be larger than the sink {}", w, sink);
  }
  return Status::Ok();
}

Result<Profile> MakeProfile(Engine& engine, const ProfileOptions& options,
                            const OnProgress& progress) {
  const auto start = std::chrono::steady_clock::now();
  const ModelInfo& info = engine.info();
  BATON_TRY(CheckOptions(options, engine));
  BATON_ASSIGN(Corpus corpus, LoadCorpus(engine, options.texts));
  const auto report = [&](double fraction, const std::string& what) {
    if (progress) progress(fraction, what);
  };
  Profile p;
  Describe(engine, options, corpus, p);
  std::ranges::move(ShortKinds(corpus, options), std::back_inserter(p.warnings));
  LostMass lost(*engine.impl().ops, options, info, engine.impl().model->config().attention_scale,
                p.kinds.size());
  Sensitivity sensitivity(options, info, engine.impl().model_plan, p.kinds.size());
  SplitInfo split{.name = kSplitNames[Corpus::kProfile]};
  const int contexts = Contexts(corpus, Corpus::kProfile);
  for (int c = 0; c < contexts; ++c) {
    const double done = 0.95 * c / contexts;
    report(done, fmt::format("context {} of {}: prompt and lost mass", c + 1, contexts));
    const size_t kind = static_cast<size_t>(c) % p.kinds.size();
    const auto spec = ContextSpec(corpus, Corpus::kProfile, c, options);
    lost.BeginContext(kind);
    BATON_ASSIGN(std::unique_ptr<CalibrationContext> context,
                 CalibrationContext::Build(engine, spec, &lost));
    BATON_TRY(sensitivity.Measure(*context, kind, [&](int l) {
      report(done + 0.95 / contexts * (0.3 + 0.7 * l / info.layers),
             fmt::format("context {} of {}: layer {}", c + 1, contexts, l));
    }));
    // What the dense plan gives counts the probes; it also must differ from dense by nothing but
    // rounding.
    BATON_ASSIGN(PlanMeasure dense, context->Run(engine.impl().model_plan, {}));
    split.context = spec.length;
    split.text_tokens += spec.length;
    split.scored_positions += static_cast<int64_t>(dense.text_kl.size() + dense.answer_kl.size());
    split.probes += dense.probes;
    split.probes_dense_finds += dense.dense_found;
    if (c + 1 == contexts) {
      report(0.95, "timing the roles");
      BATON_TRY(MeasureRoleCosts(engine, options, p));
    }
  }
  BATON_TRY(lost.Finish(p));
  sensitivity.Finish(p);
  p.splits.push_back(split);
  for (Corpus::Split s : {Corpus::kSearch, Corpus::kTest}) {
    const int64_t length = ContextLength(corpus, s, options);
    p.splits.push_back({.name = kSplitNames[s],
                        .context = length,
                        .text_tokens = Contexts(corpus, s) * length,
                        .probes = ProbesOf(s, options)});
  }
  p.seconds = SecondsSince(start);
  report(1, "done");
  return p;
}

}  // namespace baton
