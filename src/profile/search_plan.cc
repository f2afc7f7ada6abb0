// From a profile to a verified plan: candidates from the dynamic programme, each decoded for real
// on the search split, improved by local search, and the one chosen measured once more on texts and
// probes that nothing has seen.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <utility>

#include "base/clock.h"
#include "baton/profile.h"
#include "engine/engine_impl.h"
#include "plan/search.h"
#include "profile/calibration.h"
#include "profile/corpus.h"
#include "profile/exact_price.h"
#include "profile/kinds.h"
#include "profile/plan_problem.h"
#include "profile/search_json.h"
#include "profile/splits.h"

namespace baton {
namespace {

// Candidates near the target are measured; those predicted this many times above it are not worth a
// run.
constexpr double kHopeless = 6;
// Candidates above the byte budget show the front beyond it; further up nobody looks.
constexpr double kTooExpensive = 1.3;
// A move that lowers the measured loss by less than this is noise, and following it spends the
// evaluations on nothing.
constexpr double kRealGain = 0.98;
// Moves are tried in the order of their predicted gain; a plan that so many do not improve is left.
constexpr size_t kMovesTried = 16;
// What text and answers may lose in all when prompts are sparse, over what they lose under the same
// plan on dense prompts.
constexpr double kSparsePrompts = 1.5;
constexpr double kPaperTheta = 0.5;
// Share of positions whose likeliest token another distribution changes, by the root of its KL:
// 0.27 to 0.44 over the plans of docs/quality.md. It orders proposals; what is taken was measured.
constexpr double kRejectedPerRoot = 0.38;

class PlanSearcher {
 public:
  PlanSearcher(Engine& engine, const Profile& profile, const PlanOptions& options,
               const OnProgress& progress)
      : engine_(engine), profile_(profile), options_(options), progress_(progress) {}

  Result<PlanSearch> Run();

 private:
  Status Check() const;
  void BuildProblems();
  Status BuildContexts(const Corpus& corpus, Corpus::Split split, double from, double to);
  Result<std::vector<PlanCandidate>> Propose() const;
  Status Measure(const PlanCandidate& proposal, const std::string& origin);
  Status LocalSearch();
  Status PriceExact();
  Status ChoosePrefill(Candidate& chosen);
  void Add(Candidate candidate);
  Status MeasureLeftOut(PlanSearch& search);
  double KlBound() const;
  double PredictedKl(const PlanCandidate& c) const;
  Result<Candidate> MeasureOn(const Plan& plan, const std::string& origin, double predicted_nats);
  Plan ToPlan(const std::vector<LayerRole>& layers) const;
  bool Meets(const Candidate& c) const;
  double Distance(const PlanCandidate& c) const;
  const Candidate* Best() const;
  void MarkFront();
  Error NothingMeets() const;
  void Report(double fraction, const std::string& what) const {
    if (progress_) progress_(fraction, what);
  }
  bool WithinBytes(const std::vector<LayerRole>& layers) const {
    const PlanTarget& t = options_.target;
    return (t.max_bytes <= 0 || BytesShare(layers) <= t.max_bytes) &&
           (t.max_held <= 0 || HeldShare(layers) <= t.max_held);
  }
  // Keys where shares and times are judged.
  int64_t Visible() const { return std::max<int64_t>(1, profile_.options.context - 256); }
  // What the search lowers, and its bound; 0: none.
  double Share(const std::vector<LayerRole>& layers) const {
    return options_.target.max_held > 0 ? HeldShare(layers) : BytesShare(layers);
  }
  double MostShare() const {
    return options_.target.max_held > 0 ? options_.target.max_held : options_.target.max_bytes;
  }
  // Shares of dense: read where the plan will be judged, a little before the context is full, when
  // fixed budgets weigh most; and held by a full context under a plan that evicts.
  double BytesShare(const std::vector<LayerRole>& layers) const {
    return BytesOf(RoleKvBytes, layers, Visible()) /
           static_cast<double>(DenseKvBytesPerToken(engine_.impl().shape(), Visible()));
  }
  double HeldShare(const std::vector<LayerRole>& layers) const {
    const int64_t tokens = profile_.options.context;
    return BytesOf(RoleHeldBytes, layers, tokens) /
           static_cast<double>(KvBytesHeld(engine_.impl().model_plan.caches, tokens));
  }
  double BytesOf(RoleBytes bytes, const std::vector<LayerRole>& layers, int64_t tokens) const;
  double Speedup(const std::vector<LayerRole>& layers) const;

  Engine& engine_;
  const Profile& profile_;
  const PlanOptions& options_;
  const OnProgress& progress_;
  PlanProblem problem_;
  PlanProblem time_problem_;                // the same with measured microseconds
  std::vector<size_t> kinds_;               // of the profile, that are planned for
  std::vector<PlanProblem> kind_problems_;  // [kinds_] losses on this kind alone
  std::vector<std::unique_ptr<CalibrationContext>> contexts_;
  std::vector<Candidate> candidates_;
  std::vector<std::vector<LayerRole>> measured_;
  int evaluations_ = 0;
  std::optional<ExactPricer> exact_;  // where the plan is to draft
};

double PlanSearcher::BytesOf(RoleBytes bytes, const std::vector<LayerRole>& layers,
                             int64_t tokens) const {
  double sum = 0;
  for (int l = 0; l < profile_.layers; ++l) {
    sum += static_cast<double>(
        bytes(engine_.impl().shape(), l, layers[static_cast<size_t>(l)], tokens));
  }
  return sum;
}

double PlanSearcher::Speedup(const std::vector<LayerRole>& layers) const {
  Result<PlanCandidate> timed = Evaluate(time_problem_, layers);
  if (!timed.ok()) return 0;
  const double dense =
      std::accumulate(time_problem_.costs.full.begin(), time_problem_.costs.full.end(), 0.0);
  const double rest = profile_.costs.rest_of_step;
  return (dense + rest) / (timed.value().cost + rest);
}

Status PlanSearcher::Check() const {
  const ModelInfo& info = engine_.info();
  if (info.fingerprint != profile_.fingerprint) {
    return Error::InvalidArgument("the profile was made for another model: {} ({}), got {} ({})",
                                  profile_.model_path, profile_.fingerprint, info.path,
                                  info.fingerprint)
        .Hint("run baton profile on this model");
  }
  if (profile_.options.budgets.empty()) {
    return Error::InvalidArgument("the profile measured no budgets")
        .Hint("run baton profile again");
  }
  const PlanTarget& t = options_.target;
  for (const double share : {t.max_bytes, t.max_held}) {
    if (share < 0 || share > 1)
      return Error::InvalidArgument("a bound of bytes is a share between 0 and 1, got {}", share);
  }
  for (const double kl : {t.max_kl, t.max_kl_mean}) {
    if (kl < 0)
      return Error::InvalidArgument("a bound of the KL must be 0 (none) or more nats, got {}", kl);
  }
  if (t.min_retrieval < 0 || t.min_retrieval > 1) {
    return Error::InvalidArgument("--min-retrieval is a share between 0 and 1, got {}",
                                  t.min_retrieval);
  }
  for (int l : options_.forced) {
    if (l < 0 || l >= profile_.layers)
      return Error::InvalidArgument("forced layer {} does not exist: the model has {}", l,
                                    profile_.layers);
  }
  return Status::Ok();
}

void PlanSearcher::BuildProblems() {
  const ModelShape& shape = engine_.impl().shape();
  problem_ = ProblemOf(profile_, options_, kinds_, shape);
  time_problem_ = problem_;
  time_problem_.costs = TimeCosts(profile_, problem_);
  if (!options_.cost_in_bytes) problem_.costs = time_problem_.costs;
  for (const size_t& kind : kinds_)
    kind_problems_.push_back(ProblemOf(profile_, options_, std::span(&kind, 1), shape));
}

Status PlanSearcher::BuildContexts(const Corpus& corpus, Corpus::Split split, double from,
                                   double to) {
  contexts_.clear();
  const int count = Contexts(corpus, split);
  for (int c = 0; c < count; ++c) {
    Report(from + (to - from) * c / count,
           fmt::format("{} split: dense run {} of {}", kSplitNames[split], c + 1, count));
    BATON_ASSIGN(std::unique_ptr<CalibrationContext> context,
                 CalibrationContext::Build(engine_, ContextSpec(corpus, split, c, profile_.options),
                                           nullptr));
    contexts_.push_back(std::move(context));
  }
  const int found = std::accumulate(contexts_.begin(), contexts_.end(), 0,
                                    [](int n, const auto& c) { return n + c->dense_found(); });
  if (found == 0 && options_.target.min_retrieval > 0) {
    return Error::InvalidArgument(
               "dense attention finds none of the {} probes of the {} split: nothing shows what a "
               "plan loses there",
               ProbesOf(split, profile_.options), kSplitNames[split])
        .Hint(
            "profile with more --probes or another context, or plan by text with "
            "--min-retrieval 0");
  }
  return Status::Ok();
}

Plan PlanSearcher::ToPlan(const std::vector<LayerRole>& layers) const {
  const ProfileOptions& o = profile_.options;
  Plan plan;
  plan.architecture = profile_.architecture;
  plan.fingerprint = profile_.fingerprint;
  // Also the length up to which the plan stays dense: well below the context that it is for.
  plan.budget = {std::max(o.budgets.front(), o.sink + o.recent), 0};
  for (int64_t b : o.budgets) {
    if (b <= std::min<int64_t>(512, o.context / 2)) plan.budget.tokens = b;
  }
  plan.sink = o.sink;
  plan.recent = o.recent;
  plan.scope = o.scope;
  plan.pool = o.pool;
  plan.block = o.block;
  plan.forced = options_.forced;
  plan.layers = layers;
  plan.evict = options_.target.max_held > 0 &&
               std::any_of(layers.begin(), layers.end(),
                           [](const LayerRole& l) { return l.role == Role::kWindow; });
  return plan;
}

Result<std::vector<PlanCandidate>> PlanSearcher::Propose() const {
  if (options_.objective == PlanObjective::kPaper) {
    const auto n = static_cast<size_t>(profile_.layers);
    std::vector<std::vector<double>> overlap(n, std::vector<double>(n));
    for (size_t i = 0; i < n; ++i) {
      for (size_t j = 0; j < n; ++j) overlap[i][j] = profile_.overlap[i * n + j];
    }
    const auto& budgets = problem_.budgets;
    const auto at = std::find(budgets.begin(), budgets.end(), 512);
    const int budget = at == budgets.end() ? 0 : static_cast<int>(at - budgets.begin());
    std::vector<PlanCandidate> plans;
    for (double theta = kPaperTheta; theta < 1.0; theta += 0.05) {
      BATON_ASSIGN(PlanCandidate plan, PaperPlan(problem_, overlap, theta, budget));
      plans.push_back(std::move(plan));
    }
    return plans;
  }
  // A fine ladder of prices: the front's corners. Between them lie the best plans of each number of
  // dense layers at one budget.
  std::vector<double> prices;
  for (double price = 1e-3; price < 50; price *= 1.25) prices.push_back(price);
  BATON_ASSIGN(std::vector<PlanCandidate> plans, SweepPrice(problem_, prices));
  for (size_t b = 0; b < problem_.budgets.size(); ++b) {
    BATON_ASSIGN(std::vector<PlanCandidate> counted, BestByCount(problem_, static_cast<int>(b)));
    std::move(counted.begin(), counted.end(), std::back_inserter(plans));
  }
  return plans;
}

Result<Candidate> PlanSearcher::MeasureOn(const Plan& plan, const std::string& origin,
                                          double predicted_nats) {
  BATON_ASSIGN(ResolvedPlan resolved, engine_.impl().ResolvePlan(plan, nullptr));
  std::vector<PlanMeasure> measures;
  for (const auto& context : contexts_) {
    BATON_ASSIGN(PlanMeasure one, plan.prefill.sparse ? context->RunWithPrefill(resolved)
                                                      : context->Run(resolved, {}));
    measures.push_back(std::move(one));
  }
  Candidate c;
  c.plan = plan;
  c.origin = origin;
  c.predicted_nats = predicted_nats;
  c.kv_bytes_share = BytesShare(plan.layers);
  BATON_ASSIGN(c.kv_held_share, engine_.KvHeldShare(plan, profile_.options.context));
  c.bounded_share = Share(plan.layers);
  c.predicted_speedup = Speedup(plan.layers);
  SetFigures(measures, kinds_.size(), c);
  return c;
}

// Adds a measured candidate. What it shows about kinds left out can change the verdict on others.
void PlanSearcher::Add(Candidate candidate) {
  candidates_.push_back(std::move(candidate));
  LeaveEachKindOut(candidates_);
  for (Candidate& c : candidates_) c.meets_target = Meets(c);
}

// Both counts are over all probes, so what a plan loses by chance it may gain by chance.
bool PlanSearcher::Meets(const Candidate& c) const {
  const PlanTarget& t = options_.target;
  const double bounded = kinds_.size() > 1 ? std::max(c.WorstKl(), c.LeftOutKl()) : c.kl;
  return (t.max_kl <= 0 || bounded <= t.max_kl) && (t.max_kl_mean <= 0 || c.kl <= t.max_kl_mean) &&
         c.found >= RequiredProbes(t.min_retrieval, c.dense_found) &&
         (t.max_bytes <= 0 || c.kv_bytes_share <= t.max_bytes) &&
         (t.max_held <= 0 || c.kv_held_share <= t.max_held) &&
         (t.min_speedup <= 0 || c.predicted_speedup >= t.min_speedup);
}

// The bound that a plan's text KL is searched at; 0: none.
double PlanSearcher::KlBound() const {
  const PlanTarget& t = options_.target;
  return t.max_kl > 0 ? t.max_kl : t.max_kl_mean;
}

// The predicted loss of what the bound is for: the worst kind of text, or the mean.
double PlanSearcher::PredictedKl(const PlanCandidate& c) const {
  if (options_.target.max_kl <= 0) return c.loss;
  double worst = 0;
  for (const PlanProblem& kind : kind_problems_) {
    Result<PlanCandidate> alone = Evaluate(kind, c.layers);
    worst = std::max(worst, alone.ok() ? alone.value().loss : c.loss);
  }
  return worst;
}

// How far a proposal is from where the target will be decided: just within the byte budget, where
// the loss is least, then just above it; the same for a speed-up; or, without either, where the
// predicted losses of text and answers together are twice the bound.
double PlanSearcher::Distance(const PlanCandidate& c) const {
  const PlanTarget& t = options_.target;
  if (exact_) {
    const double accepted = 1 - kRejectedPerRoot * std::sqrt(std::min(c.loss, 1.0));
    return exact_->Expect(1 / std::max(Speedup(c.layers), 1e-3), accepted);
  }
  if (MostShare() > 0) {
    const double share = Share(c.layers);
    return share <= MostShare() ? MostShare() - share : 1 + share;
  }
  if (t.min_speedup > 0) {
    const double speedup = Speedup(c.layers);
    return speedup >= t.min_speedup ? speedup - t.min_speedup : 1e3 / std::max(speedup, 1e-3);
  }
  if (KlBound() > 0) return std::fabs(std::log(std::max(PredictedKl(c), 1e-9) / (2 * KlBound())));
  return c.loss;
}

Status PlanSearcher::Measure(const PlanCandidate& proposal, const std::string& origin) {
  if (evaluations_ >= options_.max_evaluations) return Status::Ok();
  if (std::find(measured_.begin(), measured_.end(), proposal.layers) != measured_.end())
    return Status::Ok();
  measured_.push_back(proposal.layers);
  evaluations_++;
  Report(0.3 + 0.45 * evaluations_ / std::max(1, options_.max_evaluations),
         fmt::format("decoding candidate {}: {}", evaluations_, origin));
  BATON_ASSIGN(Candidate c, MeasureOn(ToPlan(proposal.layers), origin, proposal.loss));
  Add(std::move(c));
  return Status::Ok();
}

// With a byte or speed budget: the best quality within it. Otherwise: the cheapest that is good
// enough, in bytes or in measured time.
const Candidate* PlanSearcher::Best() const {
  const bool quality = MostShare() > 0 || options_.target.min_speedup > 0;
  const Candidate* best = nullptr;
  for (const Candidate& c : candidates_) {
    if (!c.meets_target) continue;
    if (best == nullptr ||
        (exact_                   ? c.exact_time < best->exact_time
         : quality                ? MeasuredLoss(c) < MeasuredLoss(*best)
         : options_.cost_in_bytes ? c.kv_bytes_share < best->kv_bytes_share
                                  : c.predicted_speedup > best->predicted_speedup))
      best = &c;
  }
  return best;
}

Status PlanSearcher::LocalSearch() {
  // From the best so far, or the nearest miss, the moves that the programme predicts to help most
  // are decoded until none helps.
  while (evaluations_ < options_.max_evaluations) {
    const Candidate* start = Best();
    if (start == nullptr) {
      for (const Candidate& c : candidates_) {
        if (WithinBytes(c.plan.layers) &&
            (start == nullptr || MeasuredLoss(c) < MeasuredLoss(*start)))
          start = &c;
      }
    }
    if (start == nullptr) return Status::Ok();
    const std::vector<LayerRole> layers = start->plan.layers;
    const double before = MeasuredLoss(*start);
    const double share = start->bounded_share;
    BATON_ASSIGN(std::vector<PlanMove> moves,
                 Neighbours(problem_, layers, static_cast<int>(problem_.budgets.size()) / 2));
    std::erase_if(moves, [&](const PlanMove& m) {
      return !WithinBytes(m.result.layers) ||
             std::find(measured_.begin(), measured_.end(), m.result.layers) != measured_.end() ||
             Share(m.result.layers) > std::max(share * 1.1, MostShare());
    });
    std::stable_sort(moves.begin(), moves.end(), [](const PlanMove& a, const PlanMove& b) {
      return a.result.loss < b.result.loss;
    });
    bool better = false;
    for (size_t i = 0;
         i < std::min(moves.size(), kMovesTried) && evaluations_ < options_.max_evaluations; ++i) {
      BATON_TRY(Measure(moves[i].result, "local search: " + moves[i].what));
      if (MeasuredLoss(candidates_.back()) < kRealGain * before) {
        better = true;
        break;
      }
    }
    if (!better) return Status::Ok();
  }
  return Status::Ok();
}

// Of what meets the target.
Status PlanSearcher::PriceExact() {
  for (Candidate& c : candidates_) {
    if (!c.meets_target) continue;
    Report(0.75, "timing drafts");
    BATON_ASSIGN(const ResolvedPlan resolved, engine_.impl().ResolvePlan(c.plan, nullptr));
    BATON_ASSIGN(c.exact_time, exact_->Price(resolved, c.top1));
  }
  return Status::Ok();
}

// The decode plan is found on dense prompts, which all candidates share; a sparse one needs its
// own.
Status PlanSearcher::ChoosePrefill(Candidate& chosen) {
  const auto sparse_in_prompts = [](const LayerRole& layer) {
    return layer.role == Role::kReuse || layer.role == Role::kScan;
  };
  const std::vector<LayerRole>& layers = chosen.plan.layers;
  if (chosen.plan.evict || std::none_of(layers.begin(), layers.end(), sparse_in_prompts))
    return Status::Ok();
  const double dense_prompts = chosen.kl + chosen.answer_kl;
  const int64_t context = contexts_.front()->length();
  int64_t tried = 0;
  for (const PrefillMode& prefill : options_.prefills) {
    // The set of the last tile: of every key, it tries nothing.
    const auto keys = std::max(
        prefill.min, static_cast<int64_t>(prefill.fraction * static_cast<double>(context)));
    if (keys >= context || keys == std::exchange(tried, keys)) continue;
    Plan plan = chosen.plan;
    plan.prefill = prefill;
    const std::string origin =
        fmt::format("sparse prompts, {:.0f} % of the keys",
                    100 * static_cast<double>(keys) / static_cast<double>(context));
    Report(0.75, origin);
    BATON_ASSIGN(Candidate c, MeasureOn(plan, origin, chosen.predicted_nats));
    Add(std::move(c));
    c = candidates_.back();
    if (!c.meets_target || c.kl + c.answer_kl > kSparsePrompts * dense_prompts) continue;
    chosen = std::move(c);
    break;
  }
  return Status::Ok();
}

void PlanSearcher::MarkFront() {
  for (Candidate& c : candidates_) {
    c.on_front = std::none_of(candidates_.begin(), candidates_.end(), [&](const Candidate& o) {
      const double a = MeasuredLoss(o), b = MeasuredLoss(c);
      return (o.bounded_share < c.bounded_share && a <= b) ||
             (o.bounded_share <= c.bounded_share && a < b);
    });
  }
}

Result<PlanSearch> PlanSearcher::Run() {
  const auto start = std::chrono::steady_clock::now();
  BATON_TRY(Check());
  BATON_ASSIGN(Corpus corpus, LoadCorpus(engine_, profile_.options.texts));
  if (corpus.sha256 != profile_.text_sha256) {
    return Error::InvalidArgument("the texts changed since the profile was made")
        .Hint("run baton profile again");
  }
  if (!options_.kinds.empty()) BATON_TRY(corpus.Keep(options_.kinds));
  PlanSearch search;
  for (const Corpus::Kind& kind : corpus.kinds) {
    const auto at = std::find_if(profile_.kinds.begin(), profile_.kinds.end(),
                                 [&](const KindLoss& k) { return k.name == kind.name; });
    if (at == profile_.kinds.end())
      return Error::Corrupt("the profile has no tables of the kind {}", kind.name)
          .Hint("run baton profile again");
    kinds_.push_back(static_cast<size_t>(at - profile_.kinds.begin()));
    search.kinds.push_back(kind.name);
  }
  BuildProblems();
  BATON_TRY(CheckProblem(problem_));
  if (options_.for_exact) {
    BATON_ASSIGN(exact_, ExactPricer::Create(engine_, Visible()));
  }
  BATON_ASSIGN(std::vector<PlanCandidate> proposals, Propose());
  BATON_TRY(BuildContexts(corpus, Corpus::kSearch, 0, 0.3));
  std::vector<std::pair<double, const PlanCandidate*>> order;
  for (const PlanCandidate& c : proposals) order.emplace_back(Distance(c), &c);
  std::stable_sort(order.begin(), order.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  const int share = options_.local_search ? options_.max_evaluations / 2 : options_.max_evaluations;
  for (const auto& [distance, proposal] : order) {
    if (evaluations_ >= share) break;
    const PlanCandidate& c = *proposal;
    const bool expensive = MostShare() > 0 && Share(c.layers) > kTooExpensive * MostShare();
    const bool hopeless = KlBound() > 0 && options_.objective == PlanObjective::kNats &&
                          c.loss > kHopeless * 2 * KlBound();
    if (expensive || hopeless) continue;
    const std::string origin = options_.objective == PlanObjective::kPaper
                                   ? std::string("overlap")
                                   : fmt::format("{:.4f} nats predicted", c.loss);
    BATON_TRY(Measure(c, origin));
  }
  if (exact_) {
    BATON_TRY(PriceExact());
  } else if (options_.local_search && options_.objective == PlanObjective::kNats) {
    BATON_TRY(LocalSearch());
  }
  MarkFront();
  const Candidate* best = Best();
  if (best == nullptr) return NothingMeets();
  search.chosen = *best;
  if (!exact_) BATON_TRY(ChoosePrefill(search.chosen));
  search.candidates = candidates_;
  BATON_TRY(BuildContexts(corpus, Corpus::kTest, 0.8, 0.95));
  Report(0.95, "test split: the plan");
  BATON_ASSIGN(search.test,
               MeasureOn(search.chosen.plan, "final (test split)", search.chosen.predicted_nats));
  BATON_TRY(MeasureLeftOut(search));
  search.test.meets_target = Meets(search.test);
  search.seconds = SecondsSince(start);
  Evidence& e = search.chosen.plan.evidence;
  e.present = true;
  e.context = ContextLength(corpus, Corpus::kTest, profile_.options);
  e.kv_bytes_share = search.test.kv_bytes_share;
  e.kl = search.test.kl;
  e.answer_kl = search.test.answer_kl;
  e.top1 = search.test.top1;
  e.predicted_nats = search.chosen.predicted_nats;
  const double speedup = search.chosen.predicted_speedup;
  e.latency_ratio = speedup > 0 ? 1 / speedup : 0;
  e.retrieval_found = search.test.found;
  e.retrieval_dense_found = search.test.dense_found;
  e.retrieval_total = ProbesOf(Corpus::kTest, profile_.options);
  e.text_sha256 = profile_.text_sha256;
  e.details = EvidenceDetails(search, profile_);
  search.test.plan = search.chosen.plan;
  Report(1, "done");
  return search;
}

// On the test split: the plans that were best without each kind, of no more bytes than the chosen
// one and with its prompts, on the texts of that kind.
Status PlanSearcher::MeasureLeftOut(PlanSearch& search) {
  for (size_t k = 0; kinds_.size() > 1 && k < kinds_.size(); ++k) {
    Plan plan = BestWithout(candidates_, k, search.chosen.bounded_share)->plan;
    plan.prefill = search.chosen.plan.prefill;
    double kl = search.test.kind_kl[k];
    if (plan.layers != search.chosen.plan.layers) {
      Report(0.96, fmt::format("test split: the plan chosen without {}", search.kinds[k]));
      BATON_ASSIGN(ResolvedPlan resolved, engine_.impl().ResolvePlan(plan, nullptr));
      PlanMeasure sum;
      for (size_t i = k; i < contexts_.size(); i += kinds_.size()) {
        BATON_ASSIGN(PlanMeasure one, plan.prefill.sparse
                                          ? contexts_[i]->RunWithPrefill(resolved, true)
                                          : contexts_[i]->Run(resolved, {.only_text = true}));
        sum.Add(one);
      }
      kl = MeanOf(sum.text_kl).mean;
    }
    search.test.left_out_kl.push_back(kl);
    search.left_out_plans.push_back(std::move(plan));
  }
  return Status::Ok();
}

Error PlanSearcher::NothingMeets() const {
  const Candidate* near = nullptr;
  for (const Candidate& c : candidates_) {
    if (near == nullptr || MeasuredLoss(c) < MeasuredLoss(*near)) near = &c;
  }
  if (near == nullptr) {
    return Error::InvalidArgument("no plan of this profile comes near the target")
        .Hint("raise --max-bytes or --max-kl");
  }
  const std::string kinds = near->left_out_kl.empty()
                                ? ""
                                : fmt::format(", of the worst kind {:.4f}, left out {:.4f}",
                                              near->WorstKl(), near->LeftOutKl());
  return Error::InvalidArgument(
             "none of {} measured plans meets the target; nearest: {:.1f} % of the KV bytes, KL "
             "{:.4f}{}, {} of {} probes",
             candidates_.size(), 100 * near->kv_bytes_share, near->kl, kinds, near->found,
             near->dense_found)
      .Hint("relax --max-kl, --max-bytes or --min-retrieval, or allow more roles");
}

}  // namespace

Result<PlanSearch> SearchPlan(Engine& engine, const Profile& profile, const PlanOptions& options,
                              const OnProgress& progress) {
  return PlanSearcher(engine, profile, options, progress).Run();
}

}  // namespace baton
