// The page: a headline, then one section per question. A section without numbers is left out.
#include "baton/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "report/figures.h"
#include "report/format.h"
#include "report/html.h"
#include "report/inputs.h"
#include "report/layer_sections.h"
#include "report/style.h"
#include "report/svg.h"
#include "report/train_section.h"

namespace baton {
namespace {

std::string LastPart(const std::string& path) {
  const size_t end = path.find_last_not_of('/');
  if (end == std::string::npos) return path;
  const size_t slash = path.find_last_of('/', end);
  return path.substr(slash == std::string::npos ? 0 : slash + 1,
                     end - (slash == std::string::npos ? 0 : slash + 1) + 1);
}

std::vector<const Origin*> Origins(const ReportData& d) {
  std::vector<const Origin*> all;
  if (d.profile) all.push_back(&d.profile_origin);
  if (d.search) all.push_back(&d.search->origin);
  for (const EvalRecord& e : d.evals) all.push_back(&e.origin);
  for (const BenchRecord& b : d.benches) all.push_back(&b.origin);
  for (const RunRecord& r : d.runs) all.push_back(&r.origin);
  if (d.info) all.push_back(&d.info->origin);
  return all;
}

std::string ModelName(const ReportData& d) {
  for (const Origin* o : Origins(d))
    if (!o->model.path.empty()) return LastPart(o->model.path);
  for (const Origin* o : Origins(d))
    if (!o->model.name.empty()) return o->model.name;
  return "A model";
}

bool OnlyTrainings(const ReportData& d) { return Origins(d).empty() && !d.plan; }

int64_t ContextOf(const ReportData& d) {
  if (d.plan && d.plan->evidence.context > 0) return d.plan->evidence.context;
  if (d.profile && d.profile->options.context > 0) return d.profile->options.context;
  return d.evals.empty() ? 0 : d.evals.back().options.context;
}

EvalResult FiguresOf(const Candidate& c) {
  return {.kl_mean = c.kl,
          .top1_agreement = c.top1,
          .nll_delta = NAN,
          .retrieval_found = c.found,
          .retrieval_dense_found = c.dense_found,
          .answer_kl = c.answer_kl,
          .kv_bytes_share = c.kv_bytes_share,
          .predicted_nats = Known(c.predicted_nats)};
}

// Whether the file has figures of the test split.
bool HasTest(const SearchRecord& r) {
  return Known(r.search.test.kl) || Known(r.search.test.kv_bytes_share);
}

// The figures of the headline, each from the best source there is: an evaluation on other text,
// then the search's test split, then the plan's own evidence.
struct Headline {
  std::string source;
  int64_t context = 0;
  EvalResult figures = FiguresOf({.kv_bytes_share = NAN, .kl = NAN, .top1 = NAN, .found = -1});
};

Headline HeadlineOf(const ReportData& d) {
  if (!d.evals.empty())
    return {"held-out text", d.evals.back().options.context, d.evals.back().result()};
  if (d.search && HasTest(*d.search))
    return {"test split", ContextOf(d), FiguresOf(d.search->search.test)};
  if (d.search) return {"search split", ContextOf(d), FiguresOf(d.search->search.chosen)};
  if (!d.plan || !d.plan->evidence.present) return {};
  const Evidence& e = d.plan->evidence;
  return {"plan's evidence", e.context,
          FiguresOf({.kv_bytes_share = e.kv_bytes_share,
                     .kl = e.kl,
                     .top1 = e.top1,
                     .found = e.retrieval_found,
                     .dense_found = e.retrieval_dense_found})};
}

std::string At(int64_t context) {
  return context > 0 ? fmt::format("at {} tokens", Count(context)) : "";
}

// Rows of all benches by depth; where two measured the same, the later counts.
std::map<int64_t, std::pair<BenchRow, BenchRow>> RowsByDepth(const ReportData& d) {
  std::map<int64_t, std::pair<BenchRow, BenchRow>> rows;
  for (const BenchRecord& b : d.benches)
    for (const BenchRow& row : b.result.rows)
      (row.plan == "dense" ? rows[row.depth].first : rows[row.depth].second) = row;
  return rows;
}

std::string Card(const std::string& value, const std::string& what, const std::string& detail) {
  return fmt::format("<div class=\"card\"><b>{}</b><span>{}</span><small>{}</small></div>\n", value,
                     what, detail);
}

std::string Cards(const ReportData& d) {
  const Headline h = HeadlineOf(d);
  std::string out;
  const EvalResult& r = h.figures;
  if (Known(r.kv_bytes_share))
    out += Card(Percent(r.kv_bytes_share), "of the KV bytes",
                "read by a decode step " + At(h.context));
  if (Known(r.kl_mean))
    out += Card(fmt::format("{:.4f}", r.kl_mean), "nats of KL to dense",
                (r.kl_standard_error > 0 ? fmt::format("± {:.4f}, ", r.kl_standard_error) : "") +
                    "teacher forced, " + h.source);
  if (Known(r.top1_agreement))
    out += Card(Percent(r.top1_agreement), "same likeliest token", "as dense attention");
  if (Known(r.retrieval_found) && r.retrieval_dense_found > 0)
    out += Card(fmt::format("{} / {}", r.retrieval_found, r.retrieval_dense_found),
                "facts retrieved", "planned / dense, probes at all depths");
  const auto rows = RowsByDepth(d);
  for (auto it = rows.rbegin(); it != rows.rend(); ++it) {
    const auto& [dense, planned] = it->second;
    const double from = dense.decode_tokens_per_s, to = planned.decode_tokens_per_s;
    if (!(from > 0 && to > 0)) continue;
    out += Card(
        fmt::format("{:.2f}×", to / from), "decode speed",
        fmt::format("{} → {} tokens/s at depth {}", Number(from), Number(to), Count(it->first)));
    break;
  }
  return out.empty() ? "" : "<section id=\"summary\">\n" + out + "</section>\n";
}

std::string PlanSection(const ReportData& d) {
  if (!d.plan) return "";
  std::map<Role, int> counts;
  for (const LayerRole& layer : d.plan->layers) ++counts[layer.role];
  std::string legend = "<ul class=\"legend\">\n";
  for (const auto& [role, count] : counts) {
    const RoleLook look = LookOf(role);
    legend += fmt::format("<li><i class=\"{}\"></i><b>{} {}</b> {}</li>\n", look.css, count,
                          look.name, look.meaning);
  }
  const int64_t context = ContextOf(d) > 0 ? ContextOf(d) : 8192;
  const std::string strip =
      PlanStrip(*d.plan, context, d.profile ? d.profile->model_window : std::vector<int64_t>{});
  return Section(
      "plan", "The plan",
      fmt::format("{}. Arcs lead from the layer that ranks the context to the layers that reuse "
                  "its top k; the bars are what a decode step reads of each layer's cache at {} "
                  "tokens.",
                  EscapeHtml(d.plan->Summary()), Count(context)),
      Figure(strip) + legend + "</ul>\n");
}

std::string FrontSection(const ReportData& d) {
  if (!d.search) return "";
  const auto measured = d.search->search.candidates.size();
  return Section(
      "front", "What was traded",
      fmt::format(
          "{} candidate plans ran end to end on the search split; the line joins those that no "
          "other beats, the star is the chosen one. Right: the sum of the layers' predicted losses "
          "against "
          "what the whole plan costs.",
          measured),
      Row("front", {Front(*d.search), PredictedAndMeasured(*d.search)}));
}

Maybe Positive(double value) { return value > 0 ? Maybe(value) : std::nullopt; }

std::string SpeedSection(const ReportData& d) {
  std::vector<SpeedPoint> decode, prompt;
  std::string table;
  for (const auto& entry : RowsByDepth(d)) {
    const int64_t depth = entry.first;
    const auto& [dense, planned] = entry.second;
    const auto add = [depth](std::vector<SpeedPoint>& points, double from, double to) {
      if (from > 0 || to > 0) points.push_back({depth, Positive(from), Positive(to)});
    };
    add(decode, dense.decode_tokens_per_s, planned.decode_tokens_per_s);
    add(prompt, dense.prompt_tokens_per_s, planned.prompt_tokens_per_s);
    for (const auto& [name, r] : {std::pair{"dense", dense}, {"planned", planned}})
      if (r.decode_tokens_per_s > 0)
        table += fmt::format(
            "<tr><td>{}</td><td>{}</td><td>{:.2f}</td><td>{}</td><td>{}</td></tr>\n", name,
            Count(depth), 1000 / r.decode_tokens_per_s,
            r.kv_bytes_per_token > 0 ? Bytes(r.kv_bytes_per_token) : "–",
            Known(r.share_of_read_bandwidth) ? Percent(r.share_of_read_bandwidth) : "–");
  }
  if (!table.empty())
    table =
        "<div class=\"wide\"><table><tr><th>attention</th><th>depth</th><th>ms per token</th>"
        "<th>KV bytes read</th><th>of the memory's bandwidth</th></tr>\n" +
        table + "</table></div>\n";
  const std::string charts = Row("", {SpeedBars(decode, "Decode"), SpeedBars(prompt, "Prompt")});
  if (charts.empty()) return "";
  return Section(
      "speed", "Speed by context", "Medians of repeated timings; the factor is planned over dense.",
      charts +
          "<ul class=\"legend\"><li><i class=\"c-dense\"></i>dense</li><li><i class=\"c-plan\">"
          "</i>planned</li></ul>\n" +
          table);
}

// Exact answers of all benches that timed some: a row of figures, and acceptance by position.
std::string ExactSection(const ReportData& d) {
  std::string rows, expected;
  for (const BenchRecord& b : d.benches) {
    if (!b.result.exact || !(b.result.exact->dense_seconds_per_token > 0)) continue;
    const ExactBench& e = *b.result.exact;
    std::string by_position;
    const std::vector<int64_t>&drafted = e.report.drafted_at, &accepted = e.report.accepted_at;
    for (size_t i = 0; i < std::min(drafted.size(), accepted.size()) && drafted[i] > 0; ++i)
      by_position +=
          fmt::format("{}{}", i == 0 ? "" : ", ",
                      Percent(static_cast<double>(accepted[i]) / static_cast<double>(drafted[i])));
    rows += fmt::format(
        "<tr><td>{}</td><td>{:.2f}</td><td>{:.2f}</td><td>{:.2f}</td><td>{}</td><td>{}</td>"
        "<td>{}</td><td>{}</td></tr>\n",
        Count(e.depth), e.dense_seconds_per_token * 1e3, e.exact_seconds_per_token * 1e3,
        e.exact_seconds_per_token / e.dense_seconds_per_token,
        Count(e.report.drafted + e.report.looked_up), Count(e.report.accepted), by_position,
        e.different > 0 ? fmt::format("{} of {}", e.different, e.prompts) : "none");
    for (const ExactBench::Expected& x : e.expected)
      if (x.time > 0)
        expected += fmt::format("<tr><td>{}</td><td>{}</td><td>{:.2f}</td></tr>\n", Count(x.depth),
                                x.drafts, x.time);
  }
  if (rows.empty()) return "";
  if (!expected.empty())
    expected =
        "<div class=\"wide\"><table><tr><th>depth</th><th>drafts for each verification</th>"
        "<th>expected time over dense</th></tr>\n" +
        expected + "</table></div>\n";
  return Section(
      "exact", "Exact answers",
      "The plan or the text drafts tokens, one dense pass verifies them; answers are dense "
      "decoding's own. Expected times follow from measured passes on a synthetic cache and the "
      "acceptance of the table above them.",
      "<div class=\"wide\"><table><tr><th>prompt tokens</th><th>dense, ms per token</th>"
      "<th>exact</th><th>exact over dense</th><th>drafted</th><th>accepted</th>"
      "<th>accepted by position</th><th>answers that differ</th></tr>\n" +
          rows + "</table></div>\n" + expected);
}

std::string QualitySection(const ReportData& d) {
  std::string rows;
  const auto row = [&](const std::string& name, const EvalResult& r) {
    const auto show = [](const Maybe& v, auto format) { return v ? format(*v) : std::string("–"); };
    const auto four = [](double v) { return fmt::format("{:.4f}", v); };
    rows += fmt::format(
        "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}{}</td><td>{}</td><td>{}</td><td>{}</td>"
        "<td>{}</td></tr>\n",
        name, show(Known(r.kv_bytes_share), Percent), show(r.predicted_nats, four),
        show(Known(r.kl_mean), four),
        r.kl_standard_error > 0 ? fmt::format(" ± {:.4f}", r.kl_standard_error) : "",
        show(Known(r.top1_agreement), Percent),
        show(Known(r.nll_delta), [](double v) { return fmt::format("{:+.4f}", v); }),
        Known(r.retrieval_found) && Known(r.retrieval_dense_found)
            ? fmt::format("{} / {}", r.retrieval_found, r.retrieval_dense_found)
            : "–",
        show(Known(r.answer_kl), four));
  };
  for (const EvalRecord& e : d.evals)
    row("held-out text, " + Count(e.options.context) + " tokens", e.result());
  if (d.search && HasTest(*d.search))
    row("test split, used once", FiguresOf(d.search->search.test));
  if (d.search) row("search split, chosen on", FiguresOf(d.search->search.chosen));
  if (rows.empty()) return "";
  return Section(
      "quality", "Quality against dense",
      "The same engine's dense attention is the reference. Retrieval counts the probes that the "
      "plan answers over those that dense answers. The predicted loss is the sum over layers that "
      "the planner minimised, for text and answers on dense prompts.",
      "<div class=\"wide\"><table><tr><th>measured on</th><th>KV bytes</th>"
      "<th>predicted loss, nats</th><th>KL, nats</th>"
      "<th>top-1</th><th>NLL change</th><th>retrieval</th><th>KL at answers</th></tr>\n" +
          rows + "</table></div>\n");
}

// Only a search measures by kind, and one with a single kind has nothing to compare.
std::string KindsSection(const ReportData& d) {
  if (!d.search || d.search->search.kinds.size() < 2) return "";
  const PlanSearch& search = d.search->search;
  const auto cell = [](const std::vector<double>& values, size_t k) {
    return k < values.size() ? fmt::format("<td>{:.4f}</td>", values[k]) : "<td>–</td>";
  };
  std::string rows;
  for (size_t k = 0; k < search.kinds.size(); ++k) {
    rows += fmt::format("<tr><td>{}</td>", EscapeHtml(search.kinds[k]));
    for (const Candidate* c : {&search.test, &search.chosen})
      rows += cell(c->kind_kl, k) + cell(c->left_out_kl, k);
    const double spread = search.test.spread;
    rows +=
        spread > 1 && k < search.test.left_out_kl.size()
            ? fmt::format("<td>{:.4f} to {:.4f}</td></tr>\n", search.test.left_out_kl[k] / spread,
                          search.test.left_out_kl[k] * spread)
            : "<td>–</td></tr>\n";
  }
  return Section(
      "kinds", "By kind of text",
      "KL to dense in nats on each kind of text of the calibration. Left out: the KL on this kind "
      "of a plan that is chosen by the other kinds and reads no more bytes; it shows what to "
      "expect of text that nobody calibrated on.",
      "<div class=\"wide\"><table><tr><th>kind of text</th><th>test split</th><th>left out</th>"
      "<th>search split</th><th>left out</th><th>8 of 10 other texts</th></tr>\n" +
          rows + "</table></div>\n");
}

std::string RetrievalSection(const ReportData& d) {
  std::vector<NeedleResult> grid;
  for (const EvalRecord& e : d.evals)
    grid.insert(grid.end(), e.result().grid.begin(), e.result().grid.end());
  return Section("retrieval", "Retrieval by depth and length",
                 "Of the facts that dense attention finds, how many the plan finds.",
                 Figure(RetrievalGrid(grid)));
}

// The measured budget that is nearest to the one plans usually take.
size_t UsualBudget(const std::vector<int64_t>& budgets) {
  size_t best = 0;
  for (size_t b = 0; b < budgets.size(); ++b)
    if (std::abs(budgets[b] - 512) < std::abs(budgets[best] - 512)) best = b;
  return best;
}

std::string RecoveredSection(const ReportData& d) {
  if (!d.profile || d.profile->options.budgets.empty()) return "";
  const Profile& p = *d.profile;
  const size_t b = UsualBudget(p.options.budgets);
  const Plan* plan = d.plan ? &*d.plan : nullptr;
  const auto map = [&](const std::vector<std::vector<float>>& lost, const std::string& what) {
    return b < lost.size() ? RecoveredMass(lost[b], p.layers, plan, what) : std::string();
  };
  return Section(
      "recovered", "What layers share",
      fmt::format("Attention mass of a layer that the top {} tokens of an earlier layer hold. Text "
                  "and answers differ: a plan made from text alone loses facts.",
                  Count(p.options.budgets[b])),
      Row("", {map(p.text, "on text"), map(p.answer, "where probes are answered")}));
}

std::string SensitivitySection(const ReportData& d) {
  if (!d.profile) return "";
  const Profile& p = *d.profile;
  const Plan* plan = d.plan ? &*d.plan : nullptr;
  return Section(
      "sensitivity", "Which layers matter",
      "Left to right, top to bottom: the price of lost attention mass in nats, on text and at the "
      "answers of "
      "probes; the loss and the output error when one layer alone keeps 256 tokens." +
          std::string(plan ? " Colours are the roles of the plan." : ""),
      Row("", {LayerBars(p.price_text, plan, "Price of lost mass, text", "nats per unit"),
               LayerBars(p.price_answer, plan, "Price of lost mass, answers", "nats per unit"),
               LayerBars(p.own_kl, plan, "KL, this layer alone sparse", "nats"),
               LayerBars(p.rnmse, plan, "Output error, this layer alone sparse", "RNMSE")}));
}

std::string Fact(const std::string& name, const std::string& html) {
  return html.empty() ? "" : fmt::format("<tr><th>{}</th><td>{}</td></tr>\n", name, html);
}

std::string TextsHtml(const ReportData& d) {
  std::string html;
  std::set<std::pair<std::string, std::string>> seen;
  for (const Origin* o : Origins(d))
    for (const auto& text : o->texts) {
      if (!seen.insert({text.path, text.sha256}).second) continue;
      html += fmt::format("{}{} <code>{}</code>", html.empty() ? "" : "<br>",
                          EscapeHtml(LastPart(text.path)), EscapeHtml(text.sha256.substr(0, 16)));
    }
  return html;
}

std::string TookAsText(double seconds) { return Known(seconds) ? ", " + Duration(seconds) : ""; }

std::string MethodSection(const ReportData& d) {
  if (OnlyTrainings(d)) return "";
  std::string rows = Fact("model", EscapeHtml(ModelName(d)));
  std::set<std::string> fingerprints, machines;
  std::string commands;
  if (d.plan && !d.plan->fingerprint.empty()) fingerprints.insert(d.plan->fingerprint);
  for (const Origin* o : Origins(d)) {
    if (!o->model.fingerprint.empty()) fingerprints.insert(o->model.fingerprint);
    if (!o->cpu.empty())
      machines.insert(
          fmt::format("{}, {} threads, {}", o->cpu, o->model.threads, o->model.backend));
    if (!o->command.empty())
      commands +=
          fmt::format("{}<code>{}</code>", commands.empty() ? "" : "<br>", EscapeHtml(o->command));
  }
  const auto join = [](const std::set<std::string>& all, const char* tag) {
    std::string html;
    for (const std::string& s : all)
      html += fmt::format("{}<{}>{}</{}>", html.empty() ? "" : "<br>", tag, EscapeHtml(s), tag);
    return html;
  };
  rows += Fact("fingerprint", join(fingerprints, "code"));
  rows += Fact("machine", join(machines, "span"));
  for (const BenchRecord& b : d.benches)
    if (b.result.read_bandwidth > 0) {
      rows += Fact("memory reads",
                   Number(b.result.read_bandwidth / 1e9) + " GB/s, measured in the same run");
      break;
    }
  if (d.profile) {
    const ProfileOptions& o = d.profile->options;
    std::string budgets;
    for (const int64_t k : o.budgets) budgets += (budgets.empty() ? "" : ", ") + Count(k);
    rows += Fact(
        "profile",
        fmt::format("context {}, budgets {}, sink {}, recent {}, {} probes per split, seed {}{}",
                    Count(o.context), budgets, o.sink, o.recent, o.probes, o.seed,
                    TookAsText(d.profile->seconds)));
  }
  if (d.search)
    rows += Fact("search", fmt::format("{} candidates measured, chosen by {}{}",
                                       d.search->search.candidates.size(),
                                       EscapeHtml(d.search->search.chosen.origin),
                                       TookAsText(d.search->search.seconds)));
  for (const EvalRecord& e : d.evals)
    rows +=
        Fact("evaluation",
             fmt::format("context {}, {} positions, last {} of each window decoded under the plan, "
                         "{} probes, seed {}",
                         Count(e.options.context), Count(e.result().positions), e.options.rows,
                         Count(e.result().retrieval_total), e.options.seed));
  rows += Fact("texts", TextsHtml(d));
  rows += Fact("commands", commands);
  return Section("method", "Method",
                 "Loss is teacher-forced KL between next-token distributions, planned against "
                 "dense, in nats. KV bytes count "
                 "what one decode step reads of K, V and low-bit copies, against dense bf16.",
                 "<div class=\"wide\"><table class=\"facts\">\n" + rows + "</table></div>\n");
}

}  // namespace

Result<std::string> RenderReport(const ReportInputs& inputs) {
  BATON_ASSIGN(const ReportData d, ReadInputs(inputs));
  const bool planned = d.profile || d.plan || d.search || !d.evals.empty() || !d.benches.empty();
  const std::string name =
      OnlyTrainings(d) ? "Training" : ModelName(d) + (planned ? ", planned" : "");
  const std::string title = EscapeHtml(!d.title.empty() ? d.title : name);
  std::string lead =
      "One layer looks at the context and passes what it found to the layers behind it.";
  if (const Headline h = HeadlineOf(d); Known(h.figures.kv_bytes_share) && h.context > 0)
    lead = fmt::format(
        "{} tokens of context: a decode step reads {} of the KV bytes that dense attention reads.",
        Count(h.context), Percent(h.figures.kv_bytes_share));
  return fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<title>{0}</title>\n<style>{1}</style>\n</head>\n<body>\n<main>\n<h1>{0}</h1>\n"
      "<p class=\"lead\">{2}</p>\n{3}</main>\n</body>\n</html>\n",
      title, kStyle, lead,
      Cards(d) + LayersSection(d) + PlanSection(d) + RoutingSection(d) + FrontSection(d) +
          SpeedSection(d) + ExactSection(d) + QualitySection(d) + KindsSection(d) +
          RetrievalSection(d) + RecoveredSection(d) + SensitivitySection(d) + TrainingSection(d) +
          MethodSection(d));
}

}  // namespace baton
