#include "server/metrics.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

namespace baton::server {
namespace {

void Describe(std::string& out, std::string_view name, std::string_view type,
              std::string_view help) {
  fmt::format_to(std::back_inserter(out), "# HELP {} {}\n# TYPE {} {}\n", name, help, name, type);
}

void Value(std::string& out, std::string_view name, std::string_view labels, double value) {
  fmt::format_to(std::back_inserter(out), "{}{{{}}} {}\n", name, labels, value);
}

std::string Escaped(const std::string& text) {
  std::string escaped;
  for (const char c : text) {
    if (c == '\\' || c == '"') escaped += '\\';
    escaped += c == '\n' ? ' ' : c;
  }
  return escaped;
}

}  // namespace

void Histogram::Add(double seconds) {
  const auto at = std::lower_bound(kBounds.begin(), kBounds.end(), seconds);
  counts_[static_cast<size_t>(at - kBounds.begin())]++;
  sum_ += seconds;
}

void Histogram::Write(std::string_view name, std::string_view labels, std::string& out) const {
  int64_t below = 0;
  for (size_t i = 0; i < counts_.size(); ++i) {
    below += counts_[i];
    const std::string bound = i < kBounds.size() ? fmt::format("{}", kBounds[i]) : "+Inf";
    Value(out, fmt::format("{}_bucket", name), fmt::format("{},le=\"{}\"", labels, bound),
          static_cast<double>(below));
  }
  Value(out, fmt::format("{}_sum", name), labels, sum_);
  Value(out, fmt::format("{}_count", name), labels, static_cast<double>(below));
}

void Metrics::CountAnswer(const Generation& g, const std::string& plan) {
  const RequestStats& s = g.stats;
  prompt_tokens += s.prompt_tokens;
  generated_tokens += s.generated_tokens;
  const auto steps = static_cast<double>(std::max<int64_t>(0, s.generated_tokens - 1));
  kv_bytes_read += steps * s.kv_bytes_per_token;
  kv_bytes_dense += steps * s.kv_bytes_per_token_dense;
  promotions += std::count_if(s.watched.begin(), s.watched.end(),
                              [](const LayerWatch& w) { return w.promoted; });
  if (!s.watched.empty()) plans[plan].watched = s.watched;
  if (!s.routing) return;
  plans[plan].routed = s.routing->bitmap;
  const std::string& bitmap = s.routing->bitmap;
  routed_sparse += std::count(bitmap.begin(), bitmap.end(), 'S');
  routed_full += std::count(bitmap.begin(), bitmap.end(), 'F');
}

std::string WriteMetrics(const Metrics& m, const Gauges& g, const std::string& model) {
  std::string out;
  const std::string labels = fmt::format("model_name=\"{}\"", Escaped(model));
  const auto add = [&](std::string_view name, std::string_view type, double value,
                       std::string_view help) {
    Describe(out, name, type, help);
    Value(out, name, labels, value);
  };
  const auto gauge = [&](std::string_view name, double value, std::string_view help) {
    add(name, "gauge", value, help);
  };
  const auto counter = [&](std::string_view name, double value, std::string_view help) {
    add(name, "counter", value, help);
  };
  const auto number = [](int64_t n) { return static_cast<double>(n); };
  const double used =
      g.cache.most_tokens > 0 ? number(g.cache.claimed_tokens) / number(g.cache.most_tokens) : 0;
  gauge("vllm:num_requests_running", number(g.running), "Requests in the engine.");
  gauge("vllm:num_requests_waiting", number(g.waiting), "Requests that wait for their turn.");
  gauge("vllm:kv_cache_usage_perc", used, "Share of the KV cache that is set aside; 1 is all.");
  gauge("vllm:gpu_cache_usage_perc", used, "The same under its older name.");
  counter("vllm:prefix_cache_queries_total", number(g.prefix.queries),
          "Prompt tokens that were looked up.");
  counter("vllm:prefix_cache_hits_total", number(g.prefix.hits),
          "Prompt tokens whose cache was there.");
  counter("vllm:prompt_tokens_total", number(m.prompt_tokens), "Prompt tokens of answers.");
  counter("vllm:generation_tokens_total", number(m.generated_tokens), "Tokens generated.");
  Describe(out, "vllm:request_success_total", "counter", "Answers that ended, by why.");
  for (const auto& [reason, count] : m.finished)
    Value(out, "vllm:request_success_total",
          fmt::format("{},finished_reason=\"{}\"", labels, reason), number(count));
  const std::pair<const char*, const Histogram*> histograms[] = {
      {"vllm:time_to_first_token_seconds", &m.first_token},
      {"vllm:inter_token_latency_seconds", &m.inter_token},
      {"vllm:e2e_request_latency_seconds", &m.whole_answer}};
  for (const auto& [name, histogram] : histograms) {
    Describe(out, name, "histogram", "Seconds.");
    histogram->Write(name, labels, out);
  }
  gauge("baton_connections", number(g.connections), "Open connections.");
  counter("baton_connections_opened_total", number(m.connections_opened), "Connections accepted.");
  counter("baton_connections_refused_total", number(m.connections_refused),
          "Connections over the limit.");
  counter("baton_disconnects_total", number(m.disconnects),
          "Clients that left before their answer ended.");
  counter("baton_slow_readers_total", number(m.slow_readers),
          "Answers ended because nobody read them.");
  gauge("baton_kv_claimed_tokens", number(g.cache.claimed_tokens), "Tokens of cache set aside.");
  gauge("baton_kv_held_bytes", number(g.cache.held_bytes), "Bytes of cache pages in use.");
  counter("baton_kv_read_bytes_total", m.kv_bytes_read, "Bytes of KV that decode steps read.");
  counter("baton_kv_dense_bytes_total", m.kv_bytes_dense,
          "Bytes of KV that dense decode steps would have read.");
  counter("baton_promotions_total", number(m.promotions), "Layers that a watch made full.");
  gauge("baton_prefix_cache_tokens", number(g.prefix.held), "Tokens of prompts that are cached.");
  gauge("baton_prefix_cache_most_tokens", number(g.prefix.most), "What it may hold.");
  counter("baton_prefix_cache_dropped_tokens_total", number(g.prefix.dropped),
          "Tokens that were dropped for others.");
  counter("baton_prefix_cache_disk_hits_total", number(g.prefix.hits_from_disk),
          "Prompt tokens whose cache came from disk.");
  gauge("baton_prefix_cache_disk_bytes", number(g.prefix.disk_bytes), "Bytes in --cache-dir.");
  counter("baton_prefix_cache_disk_written_bytes_total", number(g.prefix.disk_written_bytes),
          "Bytes written there.");
  counter("baton_prefix_cache_disk_read_bytes_total", number(g.prefix.disk_read_bytes),
          "Bytes read from there.");
  counter("baton_prefix_cache_disk_damaged_total", number(g.prefix.disk_damaged),
          "Files that were damaged, and dropped.");
  counter("baton_prefix_cache_disk_skipped_total", number(g.prefix.disk_skipped),
          "Prompts that were not written, because the disk was behind or full.");
  Describe(out, "baton_routed_layers_total", "counter", "Layers that a router decided.");
  Value(out, "baton_routed_layers_total", labels + ",kind=\"sparse\"", number(m.routed_sparse));
  Value(out, "baton_routed_layers_total", labels + ",kind=\"full\"", number(m.routed_full));
  Describe(out, "baton_http_replies_total", "counter", "Replies by HTTP status.");
  for (const auto& [status, count] : m.replies)
    Value(out, "baton_http_replies_total", fmt::format("{},status=\"{}\"", labels, status),
          number(count));
  return out;
}

}  // namespace baton::server
