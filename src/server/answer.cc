#include "server/answer.h"

#include <algorithm>

#include "server/messages.h"
#include "server/openai.h"
#include "server/responses.h"

namespace baton::server {

const Writer& WriterOf(Api api) {
  static const Writer* const writers[] = {&kChatWriter, &kCompletionWriter, &kResponsesWriter,
                                          &kMessagesWriter};
  return *writers[static_cast<int>(api)];
}

std::string_view FinishReason(const Generation& ended) {
  switch (ended.stop) {
    case Generation::Stop::kEndOfText:
    case Generation::Stop::kStopString:
      return "stop";
    case Generation::Stop::kLength:
    case Generation::Stop::kContext:
    case Generation::Stop::kCancelled:
      return "length";
  }
  return "length";
}

Usage UsageOf(const Answer& answer) {
  Usage usage;
  for (const Choice& c : answer.choices) {
    if (c.index % answer.call->n == 0) usage.prompt += c.prompt_tokens;
    if (!c.ended) continue;
    if (c.index % answer.call->n == 0) usage.cached += c.ended->stats.reused_tokens;
    usage.completion += c.ended->stats.generated_tokens;
  }
  return usage;
}

namespace {

// What the prefix cache had, and why not more.
Json CacheOf(const RequestStats& s) {
  Json cache = {{"hit_tokens", s.prefix.tokens}};
  if (s.prefix.from_disk > 0) cache["from_disk"] = s.prefix.from_disk;
  if (!s.prefix.miss.empty()) cache["miss"] = s.prefix.miss;
  return cache;
}

}  // namespace

Json TimingsOf(const RequestStats& s) {
  const auto per_second = [](int64_t n, double seconds) {
    return seconds > 0 ? static_cast<double>(n) / seconds : 0;
  };
  const int64_t processed = s.prompt_tokens - s.reused_tokens;
  // The prompt's last pass makes the first token.
  const int64_t decoded = std::max<int64_t>(0, s.generated_tokens - 1);
  return {{"cache_n", s.reused_tokens},
          {"prompt_n", processed},
          {"prompt_ms", s.prompt_seconds * 1e3},
          {"prompt_per_second", per_second(processed, s.prompt_seconds)},
          {"predicted_n", s.generated_tokens},
          {"predicted_ms", s.decode_seconds * 1e3},
          {"predicted_per_second", per_second(decoded, s.decode_seconds)},
          {"cache", CacheOf(s)},
          {"logits_hash", s.logits_hash}};
}

}  // namespace baton::server
