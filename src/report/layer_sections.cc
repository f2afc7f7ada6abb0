#include "report/layer_sections.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "report/figures.h"
#include "report/format.h"
#include "report/html.h"
#include "report/svg.h"

namespace baton {
namespace {

std::string SourceText(const RoutingReport& r) {
  if (r.source == "forced") return "mask";
  if (r.source == "plan") return "plan";
  if (r.source == "cached") return "an earlier turn";
  if (r.source == "dense") return "router, prompt dense";
  if (r.source == "two_pass") return "router, two passes";
  return "router, " + EscapeHtml(r.source);
}

// All layers of a routed model have rows of one size, so that tokens stand for bytes.
std::string RoutingRow(size_t number, const RunRecord& run) {
  const RequestStats& s = run.generation.stats;
  const RoutingReport& r = *s.routing;
  const auto windows = std::count(r.bitmap.begin(), r.bitmap.end(), 'S');
  const auto held = static_cast<double>(std::accumulate(
      r.held_token_equivalents.begin(), r.held_token_equivalents.end(), int64_t{0}));
  const auto dense = static_cast<double>(r.dense_token_equivalents);
  const bool bytes = s.kv_bytes_held > 0 && held > 0;
  const auto held_bytes = static_cast<double>(s.kv_bytes_held);
  return fmt::format(
      "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{} of {}</td><td>{}</td><td>{}</td>"
      "<td>{}</td></tr>\n",
      number, Count(s.prompt_tokens), SourceText(r), r.rows_pooled > 0 ? Count(r.rows_pooled) : "–",
      windows, r.bitmap.size(), bytes ? Bytes(held_bytes) : "–",
      bytes ? Bytes(held_bytes * dense / held) : "–", dense > 0 ? Percent(held / dense) : "–");
}

std::string CacheTable(const ModelInfo& m) {
  std::string rows;
  for (const ModelInfo::CacheBytes& c : m.cache_bytes)
    rows += fmt::format("<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n", Count(c.tokens),
                        Bytes(static_cast<double>(c.read)), Bytes(static_cast<double>(c.held)),
                        Bytes(static_cast<double>(c.dense)));
  if (rows.empty()) return "";
  return "<div class=\"wide\"><table><tr><th>context</th><th>a decode step reads</th><th>a "
         "sequence "
         "holds</th><th>full caches hold</th></tr>\n" +
         rows + "</table></div>\n";
}

std::string Extras(const LayerInfo& l) {
  std::string text = l.rope ? "" : "no positions";
  const auto add = [&](bool given, const char* what) {
    if (given) text += (text.empty() ? "" : ", ") + std::string(what);
  };
  add(l.gated, "gated");
  add(l.sink_logits, "sink logits");
  return text.empty() ? "–" : text;
}

}  // namespace

std::string RoutingSection(const ReportData& d) {
  std::string strips, rows;
  for (size_t i = 0; i < d.runs.size(); ++i) {
    rows += RoutingRow(i + 1, d.runs[i]);
    strips += fmt::format("<p><b>Request {}</b></p>\n", i + 1) +
              Figure(RoutingStrip(*d.runs[i].generation.stats.routing));
  }
  if (rows.empty()) return "";
  return Section(
      "routing", "How requests were routed",
      "Each layer is full or a window for the whole of a request. A window has freed the rest of "
      "its cache. Where a router decided, the lower bars are its logit for full minus that for "
      "sparse.",
      strips +
          "<ul class=\"legend\"><li><i class=\"c-full\"></i><b>F</b> full</li><li><i "
          "class=\"c-window\"></i><b>W</b> window</li></ul>\n"
          "<div class=\"wide\"><table><tr><th>request</th><th>prompt tokens</th><th>decided "
          "by</th><th>rows pooled</th><th>windows</th><th>KV held</th><th>dense would "
          "hold</th><th>share</th></tr>\n" +
          rows + "</table></div>\n");
}

std::string LayersSection(const ReportData& d) {
  if (!d.info || d.info->origin.model.layer.empty()) return "";
  const ModelInfo& m = d.info->origin.model;
  std::string rows;
  for (size_t l = 0; l < m.layer.size(); ++l) {
    const LayerInfo& layer = m.layer[l];
    rows +=
        fmt::format("<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
                    l, EscapeHtml(layer.kind), EscapeHtml(layer.branches), EscapeHtml(layer.cache),
                    layer.publishes.empty() ? "–" : EscapeHtml(layer.publishes), Extras(layer));
  }
  return Section("layers", "The model's own layers",
                 "What each layer reads, keeps and passes on by the model's design." +
                     (m.router.empty() ? "" : " Routers: " + EscapeHtml(m.router) + "."),
                 "<div class=\"wide\"><table class=\"layers\"><tr><th>layer</th><th>kind</th><th>"
                 "reads</th><th>own cache</th><th>publishes</th><th>besides</th></tr>\n" +
                     rows + "</table></div>\n" + CacheTable(m));
}

}  // namespace baton
