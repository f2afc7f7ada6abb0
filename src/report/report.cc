// The page: a headline, then one section per question. A section without numbers is left out.
#include "baton/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "report/figures.h"
#include "report/format.h"
#include "report/inputs.h"
#include "report/style.h"
#include "report/svg.h"

namespace baton {
namespace {

std::string Section(const std::string& id, const std::string& title, const std::string& note,
                    const std::string& body) {
  if (body.empty()) return "";
  return fmt::format("<section id=\"{}\">\n<h2>{}</h2>\n<p class=\"note\">{}</p>\n{}</section>\n",
                     id, title, note, body);
}

std::string Figure(const std::string& svg) {
  return svg.empty() ? "" : "<figure>" + svg + "</figure>\n";
}

std::string Row(const std::string& css, const std::vector<std::string>& figures) {
  std::string inner;
  for (const std::string& svg : figures) inner += Figure(svg);
  return inner.empty() ? "" : fmt::format("<div class=\"row {}\">\n{}</div>\n", css, inner);
}

std::string LastPart(const std::string& path) {
  const size_t end = path.find_last_not_of('/');
  if (end == std::string::npos) return path;
  const size_t slash = path.find_last_of('/', end);
  return path.substr(slash == std::string::npos ? 0 : slash + 1,
                     end - (slash == std::string::npos ? 0 : slash + 1) + 1);
}

std::vector<const Origin*> Origins(const ReportData& d) {
  std::vector<const Origin*> all;
  if (d.profile) all.push_back(&d.profile->origin);
  if (d.search) all.push_back(&d.search->origin);
  for (const EvalData& e : d.evals) all.push_back(&e.origin);
  for (const BenchData& b : d.benches) all.push_back(&b.origin);
  return all;
}

std::string ModelName(const ReportData& d) {
  for (const Origin* o : Origins(d))
    if (!o->model_path.empty()) return LastPart(o->model_path);
  for (const Origin* o : Origins(d))
    if (!o->model_name.empty()) return o->model_name;
  return "A model";
}

int64_t ContextOf(const ReportData& d) {
  if (d.plan && d.plan->evidence.context > 0) return d.plan->evidence.context;
  if (d.profile && d.profile->context > 0) return d.profile->context;
  return d.evals.empty() ? 0 : d.evals.back().context;
}

// The figures of the headline, each from the best source there is: an evaluation on other text,
// then the search's test split, then the plan's own evidence.
struct Headline {
  std::string source;
  int64_t context = 0;
  Maybe kv_bytes_share, kl, kl_error, top1, found, dense_found, answer_kl;
};

Headline HeadlineOf(const ReportData& d) {
  if (!d.evals.empty()) {
    const EvalData& e = d.evals.back();
    return {"held-out text", e.context, e.kv_bytes_share, e.kl,       e.kl_error,
            e.top1,          e.found,   e.dense_found,    e.answer_kl};
  }
  if (d.search) {
    const CandidateData& c = d.search->test ? *d.search->test : d.search->chosen;
    return {d.search->test ? "test split" : "search split",
            ContextOf(d),
            c.kv_bytes_share,
            c.kl,
            {},
            c.top1,
            c.found,
            c.dense_found,
            c.answer_kl};
  }
  if (!d.plan || !d.plan->evidence.present) return {};
  const Evidence& e = d.plan->evidence;
  return {"plan's evidence",
          e.context,
          e.kv_bytes_share,
          e.kl,
          {},
          e.top1,
          static_cast<double>(e.retrieval_found),
          static_cast<double>(e.retrieval_dense_found),
          e.answer_kl};
}

std::string At(int64_t context) {
  return context > 0 ? fmt::format("at {} tokens", Count(context)) : "";
}

// Rows of all benches by depth; where two measured the same, the later counts.
std::map<int64_t, std::pair<BenchRowData, BenchRowData>> RowsByDepth(const ReportData& d) {
  std::map<int64_t, std::pair<BenchRowData, BenchRowData>> rows;
  for (const BenchData& b : d.benches)
    for (const BenchRowData& row : b.rows)
      (row.planned ? rows[row.depth].second : rows[row.depth].first) = row;
  return rows;
}

std::string Card(const std::string& value, const std::string& what, const std::string& detail) {
  return fmt::format("<div class=\"card\"><b>{}</b><span>{}</span><small>{}</small></div>\n", value,
                     what, detail);
}

std::string Cards(const ReportData& d) {
  const Headline h = HeadlineOf(d);
  std::string out;
  if (h.kv_bytes_share)
    out += Card(Percent(*h.kv_bytes_share), "of the KV bytes",
                "read by a decode step " + At(h.context));
  if (h.kl)
    out += Card(fmt::format("{:.4f}", *h.kl), "nats of KL to dense",
                (h.kl_error && *h.kl_error > 0 ? fmt::format("± {:.4f}, ", *h.kl_error) : "") +
                    "teacher forced, " + h.source);
  if (h.top1) out += Card(Percent(*h.top1), "same likeliest token", "as dense attention");
  if (h.found && h.dense_found && *h.dense_found > 0)
    out += Card(fmt::format("{:.0f} / {:.0f}", *h.found, *h.dense_found), "facts retrieved",
                "planned / dense, probes at all depths");
  const auto rows = RowsByDepth(d);
  for (auto it = rows.rbegin(); it != rows.rend(); ++it) {
    const auto& [dense, planned] = it->second;
    if (!dense.decode || !planned.decode) continue;
    out += Card(fmt::format("{:.2f}×", *planned.decode / *dense.decode), "decode speed",
                fmt::format("{} → {} tokens/s at depth {}", Number(*dense.decode),
                            Number(*planned.decode), Count(it->first)));
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
  const auto measured = d.search->candidates.size();
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

std::string SpeedSection(const ReportData& d) {
  std::vector<SpeedPoint> decode, prompt;
  std::string table;
  for (const auto& [depth, row] : RowsByDepth(d)) {
    const auto& [dense, planned] = row;
    if (dense.decode || planned.decode) decode.push_back({depth, dense.decode, planned.decode});
    if (dense.prompt || planned.prompt) prompt.push_back({depth, dense.prompt, planned.prompt});
    for (const auto& [name, r] : {std::pair{"dense", dense}, {"planned", planned}})
      if (r.decode)
        table +=
            fmt::format("<tr><td>{}</td><td>{}</td><td>{:.2f}</td><td>{}</td><td>{}</td></tr>\n",
                        name, Count(depth), 1000 / *r.decode, r.kv_bytes ? Bytes(*r.kv_bytes) : "–",
                        r.share_of_bandwidth ? Percent(*r.share_of_bandwidth) : "–");
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

std::string QualitySection(const ReportData& d) {
  std::string rows;
  struct Figures {
    Maybe share, predicted, kl, error, top1, nll, found, dense_found, answer;
  };
  const auto row = [&](const std::string& name, const Figures& f) {
    const auto show = [](const Maybe& v, auto format) { return v ? format(*v) : std::string("–"); };
    const auto four = [](double v) { return fmt::format("{:.4f}", v); };
    rows += fmt::format(
        "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}{}</td><td>{}</td><td>{}</td><td>{}</td>"
        "<td>{}</td></tr>\n",
        name, show(f.share, Percent), show(f.predicted, four), show(f.kl, four),
        f.error && *f.error > 0 ? fmt::format(" ± {:.4f}", *f.error) : "", show(f.top1, Percent),
        show(f.nll, [](double v) { return fmt::format("{:+.4f}", v); }),
        f.found && f.dense_found ? fmt::format("{:.0f} / {:.0f}", *f.found, *f.dense_found) : "–",
        show(f.answer, four));
  };
  for (const EvalData& e : d.evals)
    row("held-out text, " + Count(e.context) + " tokens", {.share = e.kv_bytes_share,
                                                           .predicted = e.predicted_nats,
                                                           .kl = e.kl,
                                                           .error = e.kl_error,
                                                           .top1 = e.top1,
                                                           .nll = e.nll_delta,
                                                           .found = e.found,
                                                           .dense_found = e.dense_found,
                                                           .answer = e.answer_kl});
  const auto candidate = [&](const std::string& name, const CandidateData& c) {
    row(name, {.share = c.kv_bytes_share,
               .predicted = c.predicted_nats,
               .kl = c.kl,
               .error = {},
               .top1 = c.top1,
               .nll = {},
               .found = c.found,
               .dense_found = c.dense_found,
               .answer = c.answer_kl});
  };
  if (d.search && d.search->test) candidate("test split, used once", *d.search->test);
  if (d.search) candidate("search split, chosen on", d.search->chosen);
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

std::string RetrievalSection(const ReportData& d) {
  std::vector<NeedleData> grid;
  for (const EvalData& e : d.evals) grid.insert(grid.end(), e.grid.begin(), e.grid.end());
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
  if (!d.profile || d.profile->budgets.empty()) return "";
  const ProfileData& p = *d.profile;
  const size_t b = UsualBudget(p.budgets);
  const Plan* plan = d.plan ? &*d.plan : nullptr;
  const auto map = [&](const std::vector<std::vector<double>>& lost, const std::string& what) {
    return b < lost.size() ? RecoveredMass(lost[b], p.layers, plan, what) : std::string();
  };
  return Section(
      "recovered", "What layers share",
      fmt::format("Attention mass of a layer that the top {} tokens of an earlier layer hold. Text "
                  "and answers differ: a plan made from text alone loses facts.",
                  Count(p.budgets[b])),
      Row("", {map(p.text, "on text"), map(p.answer, "where probes are answered")}));
}

std::string SensitivitySection(const ReportData& d) {
  if (!d.profile) return "";
  const ProfileData& p = *d.profile;
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
      if (!seen.insert(text).second) continue;
      html += fmt::format("{}{} <code>{}</code>", html.empty() ? "" : "<br>",
                          EscapeHtml(LastPart(text.first)), EscapeHtml(text.second.substr(0, 16)));
    }
  return html;
}

std::string MethodSection(const ReportData& d) {
  std::string rows = Fact("model", EscapeHtml(ModelName(d)));
  std::set<std::string> fingerprints, machines;
  std::string commands;
  if (d.plan && !d.plan->fingerprint.empty()) fingerprints.insert(d.plan->fingerprint);
  for (const Origin* o : Origins(d)) {
    if (!o->fingerprint.empty()) fingerprints.insert(o->fingerprint);
    if (!o->cpu.empty())
      machines.insert(fmt::format("{}, {} threads, {}", o->cpu, o->threads, o->backend));
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
  for (const BenchData& b : d.benches)
    if (b.read_bandwidth && *b.read_bandwidth > 0) {
      rows +=
          Fact("memory reads", Number(*b.read_bandwidth / 1e9) + " GB/s, measured in the same run");
      break;
    }
  if (d.profile) {
    const ProfileData& p = *d.profile;
    std::string budgets;
    for (const int64_t k : p.budgets) budgets += (budgets.empty() ? "" : ", ") + Count(k);
    rows += Fact(
        "profile",
        fmt::format("context {}, budgets {}, sink {}, recent {}, {} probes per split, seed {}{}",
                    Count(p.context), budgets, p.sink, p.recent, p.probes, p.seed,
                    p.seconds ? ", " + Duration(*p.seconds) : ""));
  }
  if (d.search)
    rows +=
        Fact("search", fmt::format("{} candidates measured, chosen by {}{}",
                                   d.search->candidates.size(), EscapeHtml(d.search->chosen.origin),
                                   d.search->seconds ? ", " + Duration(*d.search->seconds) : ""));
  for (const EvalData& e : d.evals)
    rows +=
        Fact("evaluation",
             fmt::format("context {}, {} positions, last {} of each window decoded under the plan, "
                         "{} probes, seed {}",
                         Count(e.context), Count(static_cast<int64_t>(e.positions.value_or(0))),
                         e.rows, Count(static_cast<int64_t>(e.total.value_or(0))), e.seed));
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
  const std::string title = EscapeHtml(d.title.empty() ? ModelName(d) + ", planned" : d.title);
  std::string lead =
      "One layer looks at the context and passes what it found to the layers behind it.";
  if (const Headline h = HeadlineOf(d); h.kv_bytes_share && h.context > 0)
    lead = fmt::format(
        "{} tokens of context: a decode step reads {} of the KV bytes that dense attention reads.",
        Count(h.context), Percent(*h.kv_bytes_share));
  return fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<title>{0}</title>\n<style>{1}</style>\n</head>\n<body>\n<main>\n<h1>{0}</h1>\n"
      "<p class=\"lead\">{2}</p>\n{3}</main>\n</body>\n</html>\n",
      title, kStyle, lead,
      Cards(d) + PlanSection(d) + FrontSection(d) + SpeedSection(d) + QualitySection(d) +
          RetrievalSection(d) + RecoveredSection(d) + SensitivitySection(d) + MethodSection(d));
}

}  // namespace baton
