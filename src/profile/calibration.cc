#include "profile/calibration.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace baton {
namespace {

// Rows of a question that are decoded before its answer; the rest of the question is prompt.
constexpr int64_t kAskRows = 8;
// Room for a question and its answer behind the context.
constexpr int64_t kQuestionRoom = 192;

}  // namespace

void PlanMeasure::Add(const PlanMeasure& o) {
  text_kl.insert(text_kl.end(), o.text_kl.begin(), o.text_kl.end());
  answer_kl.insert(answer_kl.end(), o.answer_kl.begin(), o.answer_kl.end());
  same_best += o.same_best;
  found += o.found;
  dense_found += o.dense_found;
  probes += o.probes;
}

Result<ProbeContext> CalibrationContext::Compose(const Engine& engine, const Spec& spec) {
  return HideProbes(engine, spec.probes, spec.text, spec.length - kQuestionRoom);
}

Result<std::unique_ptr<CalibrationContext>> CalibrationContext::Build(Engine& engine,
                                                                      const Spec& spec,
                                                                      Observer* observer) {
  BATON_ASSIGN(ProbeContext probes, Compose(engine, spec));
  std::vector<CacheSpec> all = engine.impl().model_plan.caches;
  for (CacheSpec& c : all) c.low_bit = c.head_dim % 32 == 0;
  BATON_ASSIGN(Session session, Session::Create(engine, all, spec.length + kQuestionRoom));
  std::unique_ptr<CalibrationContext> c(new CalibrationContext(engine, std::move(session)));
  c->tokens_ = std::move(probes.tokens);
  c->text_rows_ = spec.text_rows;
  c->snapshot_from_ = c->length() - spec.text_rows;
  BATON_TRY(
      c->session_.Prefill(std::span(c->tokens_).first(static_cast<size_t>(c->snapshot_from_))));

  Group text;
  text.position = c->snapshot_from_;
  text.rows.assign(c->tokens_.end() - spec.text_rows, c->tokens_.end());
  text.scored = spec.text_rows;
  c->groups_.push_back(std::move(text));
  for (ProbeContext::Question& q : probes.questions) {
    Group g;
    g.probe = true;
    const auto asked = std::min<int64_t>(kAskRows, static_cast<int64_t>(q.ask.size()));
    g.prefix.assign(q.ask.begin(), q.ask.end() - asked);
    g.rows.assign(q.ask.end() - asked, q.ask.end());
    g.rows.insert(g.rows.end(), q.answer.begin(), q.answer.end() - 1);
    g.answer = q.answer;
    g.position = c->length() + static_cast<int64_t>(g.prefix.size());
    g.first_scored = asked - 1;
    g.scored = static_cast<int64_t>(g.answer.size());
    c->groups_.push_back(std::move(g));
  }
  for (Group& g : c->groups_) BATON_TRY(c->DenseRun(g, observer));
  return c;
}

int CalibrationContext::dense_found() const {
  return static_cast<int>(
      std::count_if(groups_.begin(), groups_.end(), [](const Group& g) { return g.dense_found; }));
}

Status CalibrationContext::DenseRun(Group& g, Observer* observer) {
  const ModelInfo& info = engine_.info();
  if (g.probe) {
    session_.Truncate(length());
    BATON_TRY(session_.Prefill(g.prefix));
  }
  g.hidden.resize(static_cast<size_t>(info.layers) * g.rows.size() *
                  static_cast<size_t>(info.width));
  if (observer) observer->BeginRows(g.probe, g.first_scored, g.scored);
  const auto decode = [&](AttentionObserver* watcher) {
    std::vector<int64_t> rows;
    for (int64_t i = 0; i < g.scored; ++i) rows.push_back(g.first_scored + i);
    g.dense = {};
    Session::DecodeOptions options;
    options.logit_rows = rows;
    options.on_logits = [&](int64_t, View<const float> logits) {
      g.dense.Append(engine_.impl().pool, logits);
    };
    options.capture = g.hidden.data();
    options.observer = watcher;
    return session_.Decode(g.rows, options);
  };
  if (!g.probe) {
    BATON_TRY(decode(observer));
  } else {
    // Probes that dense fails teach nothing about what a plan loses: they are looked at once and
    // not observed.
    BATON_TRY(decode(nullptr));
    g.dense_found = true;
    for (int64_t i = 0; i < g.scored; ++i)
      g.dense_found &= g.dense.Best(i) == g.answer[static_cast<size_t>(i)];
    if (g.dense_found && observer) {
      session_.Truncate(g.position);
      BATON_TRY(decode(observer));
    }
  }
  CopyCache(g, true);
  return Status::Ok();
}

// Saves or restores every layer's pages from the first scored text row to the group's last row.
void CalibrationContext::CopyCache(Group& g, bool save) {
  const int64_t end = g.position + static_cast<int64_t>(g.rows.size());
  const int64_t first_page = snapshot_from_ / KvLayout::kSlots;
  const int64_t pages = (end + KvLayout::kSlots - 1) / KvLayout::kSlots - first_page;
  const int caches = session_.store().caches();
  int64_t bytes = 0;
  for (int c = 0; c < caches; ++c) bytes += pages * session_.store().layout(c).arena_bytes(1);
  Device& device = session_.store().device();
  if (save) {
    g.cache = Array<std::byte>(device);
    g.cache.Reserve(bytes);
  }
  std::byte* at = g.cache.data();
  for (int c = 0; c < caches; ++c) {
    const KvView view = session_.sequence().HostView(c);
    for (int64_t p = 0; p < pages; ++p) {
      const int64_t position = (first_page + p) * KvLayout::kSlots;
      const auto copy = [&](void* address, int64_t size) {
        auto* page = static_cast<std::byte*>(address);
        device.Copy(save ? at : page, save ? page : at, size);
        at += size;
      };
      copy(view.page(position), view.layout.page_bytes());
      if (view.layout.low_bit) copy(view.low_bit(position, 0, 0), view.layout.low_bit_bytes());
    }
  }
}

Status CalibrationContext::Score(Session& session, const Group& g, Session::DecodeOptions options,
                                 PlanMeasure& result) {
  std::vector<int64_t> rows;
  for (int64_t i = 0; i < g.scored; ++i) rows.push_back(g.first_scored + i);
  options.logit_rows = rows;
  bool found = true;
  options.on_logits = [&](int64_t first, View<const float> logits) {
    const std::vector<RowComparison> compared =
        Compare(engine_.impl().pool, g.dense, first, logits);
    for (size_t i = 0; i < compared.size(); ++i) {
      if (g.probe) {
        found &= compared[i].best == g.answer[static_cast<size_t>(first) + i];
        if (g.dense_found) result.answer_kl.push_back(compared[i].kl);
      } else {
        result.text_kl.push_back(compared[i].kl);
        result.same_best += compared[i].same_best;
      }
    }
  };
  BATON_TRY(session.Decode(g.rows, options));
  if (g.probe) {
    result.probes++;
    result.dense_found += g.dense_found;
    result.found += found;
  }
  return Status::Ok();
}

Result<PlanMeasure> CalibrationContext::Run(const ResolvedPlan& plan, const RunOptions& run) {
  const int first_layer = run.first_layer;
  OutputError* error = run.error;
  PlanMeasure result;
  const int64_t width = engine_.info().width;
  for (Group& g : groups_) {
    if (g.probe && run.only_text) continue;
    if (g.probe && !g.dense_found && run.only_dense_finds) {
      result.probes++;
      continue;
    }
    const int64_t end = g.position + static_cast<int64_t>(g.rows.size());
    const auto restore = [&]() -> Status {
      BATON_TRY(session_.sequence().Reserve(end));
      CopyCache(g, false);
      session_.Truncate(g.position);
      return Status::Ok();
    };
    BATON_TRY(restore());
    if (g.probe && plan.Evicts()) {
      // A second turn: all of the question sees what the first has left.
      const ResolvedPlan after = plan.AfterPrompt();
      session_.Truncate(length());
      BATON_TRY(session_.Prefill(g.prefix, &after));
    }
    Session::DecodeOptions options;
    options.plan = &plan;
    options.first_layer = first_layer;
    options.hidden = g.hidden.data() + first_layer * static_cast<int64_t>(g.rows.size()) * width;
    std::vector<float> sparse, dense;
    if (error && !g.probe) {
      sparse.resize(g.rows.size() * static_cast<size_t>(width));
      dense.resize(sparse.size());
      options.tap_layer = error->layer;
      options.tap = sparse.data();
    }
    BATON_TRY(Score(session_, g, options, result));
    if (error && !g.probe) {
      BATON_TRY(restore());
      Session::DecodeOptions again;
      again.first_layer = first_layer;
      again.end_layer = error->layer + 1;
      again.hidden = options.hidden;
      again.tap_layer = error->layer;
      again.tap = dense.data();
      BATON_TRY(session_.Decode(g.rows, again));
      for (size_t i = 0; i < dense.size(); ++i) {
        error->difference += (dense[i] - sparse[i]) * (dense[i] - sparse[i]);
        error->dense += static_cast<double>(dense[i]) * dense[i];
      }
    }
  }
  return result;
}

Result<PlanMeasure> CalibrationContext::RunWithPrefill(const ResolvedPlan& plan, bool only_text) {
  PlanMeasure result;
  BATON_ASSIGN(Session session,
               Session::Create(engine_, plan.caches, length() + 2 * kQuestionRoom));
  BATON_TRY(session.Prefill(std::span(tokens_).first(static_cast<size_t>(snapshot_from_)), &plan));
  for (Group& g : groups_) {
    if (g.probe && only_text) continue;
    if (g.probe) {
      // Text rows are decoded only in the text group: here they are prompt.
      session.Truncate(snapshot_from_);
      BATON_TRY(
          session.Prefill(std::span(tokens_).subspan(static_cast<size_t>(snapshot_from_)), &plan));
      BATON_TRY(session.Prefill(g.prefix, &plan));
    }
    Session::DecodeOptions options;
    options.plan = &plan;
    BATON_TRY(Score(session, g, options, result));
  }
  return result;
}

}  // namespace baton
