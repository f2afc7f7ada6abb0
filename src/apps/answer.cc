#include "apps/answer.h"

#include <algorithm>
#include <numeric>

#include "apps/exact.h"

namespace baton::apps {
namespace {

void PrintRouting(const RoutingReport& r) {
  const auto sparse = std::count(r.bitmap.begin(), r.bitmap.end(), 'S');
  const int64_t held =
      std::accumulate(r.held_token_equivalents.begin(), r.held_token_equivalents.end(), int64_t{0});
  const std::string by = r.source == "forced"   ? "by the mask"
                         : r.source == "plan"   ? "by the plan"
                         : r.source == "cached" ? "by an earlier turn"
                                                : fmt::format("by the router ({}, {} prompt rows)",
                                                              r.source, r.rows_pooled);
  Note(fmt::format("routing  {}", r.bitmap));
  Note(
      fmt::format("         {} of {} layers are windows, decided {}", sparse, r.bitmap.size(), by));
  Note(fmt::format("         holds {} of {} token-equivalents, {}", Count(held),
                   Count(r.dense_token_equivalents),
                   Percent(static_cast<double>(held) /
                           static_cast<double>(std::max<int64_t>(1, r.dense_token_equivalents)))));
}

}  // namespace

double PerSecond(int64_t tokens, double seconds) {
  return seconds > 0 ? static_cast<double>(tokens) / seconds : 0;
}

int64_t ProcessedPrompt(const RequestStats& s) { return s.prompt_tokens - s.reused_tokens; }

void PrintStats(const Generation& g, const Sampling& sampling) {
  const RequestStats& s = g.stats;
  Note(fmt::format("prompt   {} tokens{}, {} tok/s", Count(s.prompt_tokens),
                   s.reused_tokens ? fmt::format(" ({} cached)", Count(s.reused_tokens)) : "",
                   Number(PerSecond(ProcessedPrompt(s), s.prompt_seconds))));
  Note(fmt::format("decode   {} tokens, {} tok/s, stopped by {}", Count(s.generated_tokens),
                   Number(PerSecond(s.generated_tokens, s.decode_seconds)),
                   results::StopName(g.stop)));
  if (sampling.temperature > 0) Note(fmt::format("seed     {}", sampling.seed));
  const double dense = s.kv_bytes_per_token_dense;
  if (s.kv_bytes_per_token > 0)
    Note(fmt::format("KV read  {} per token{}", Bytes(s.kv_bytes_per_token),
                     dense > 0 ? ", " + Percent(s.kv_bytes_per_token / dense) + " of dense" : ""));
  if (s.kv_bytes_held > 0)
    Note(fmt::format("KV held  {}", Bytes(static_cast<double>(s.kv_bytes_held))));
  if (s.routing) PrintRouting(*s.routing);
  if (s.exact) {
    for (const std::string& line : ExactLines(*s.exact, s.generated_tokens)) Note(line);
  }
  const MemoryUse memory = Engine::Memory();
  Note(fmt::format("memory   {}, {} on huge pages{}",
                   Bytes(static_cast<double>(memory.anonymous_bytes)),
                   Bytes(static_cast<double>(memory.huge_bytes)),
                   memory.huge_pages_allowed ? "" : " (not allowed on this system)"));
  Note("logits   " + (s.logits_hash.empty() ? "-" : s.logits_hash));
  if (s.watched.empty()) return;
  std::string watched;
  int promoted = 0;
  for (const LayerWatch& w : s.watched) {
    watched += fmt::format(" {}:{}{}", w.layer, Percent(w.captured), w.promoted ? "!" : "");
    promoted += w.promoted;
  }
  Note(fmt::format("watched  {} layers, {} promoted to full attention (!):{}", s.watched.size(),
                   promoted, watched));
}

void NoteIfCut(const Generation& g, const Request& request, const Engine& engine) {
  if (g.stop == Generation::Stop::kLength) {
    Note(fmt::format(
        "baton: the answer was cut at {} tokens; -n N allows more, -n -1 all there is room for",
        Count(request.max_tokens)));
  } else if (g.stop == Generation::Stop::kContext) {
    Note(fmt::format(
        "baton: the answer was cut where the context of {} tokens was full; --context N "
        "allows more",
        Count(engine.options().context)));
  }
}

Result<Generation> Stream(Engine& engine, const Request& request) {
  Status written;
  auto generation = engine.Generate(request, [&](std::string_view piece) {
    written = Print(piece);
    return written.ok();
  });
  BATON_TRY(written);
  if (generation.ok() && !generation->text.ends_with('\n')) BATON_TRY(Print("\n"));
  return generation;
}

}  // namespace baton::apps
