#include "server/answer.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <span>
#include <utility>

#include "base/checksum.h"
#include "server/messages.h"
#include "server/openai.h"
#include "server/responses.h"

namespace baton::server {

const Writer& WriterOf(Api api) {
  static const Writer* const writers[] = {&kChatWriter, &kCompletionWriter, &kResponsesWriter,
                                          &kMessagesWriter};
  return *writers[static_cast<int>(api)];
}

namespace {

// Nine letters and digits, which is what Mistral's templates take.
std::string CallId(const Answer& answer, const Choice& c, int call) {
  constexpr std::string_view kDigits =
      "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
  const std::string name = fmt::format("{} {} {}", answer.id, c.index, call);
  std::string id;
  for (uint64_t n = Checksum(std::as_bytes(std::span(name))); id.size() < 9; n /= kDigits.size())
    id += kDigits[n % kDigits.size()];
  return id;
}

// One piece for each part; the first has all tokens.
std::vector<Piece> PiecesOf(const Answer& answer, Choice& c, std::vector<AnswerPart> parts) {
  std::vector<Piece> pieces;
  for (AnswerPart& part : parts) {
    if (part.call < 0 && part.text.empty()) {  // tokens alone
      pieces.emplace_back();
      continue;
    }
    if (c.parts.empty() || c.parts.back().call != part.call) {
      c.parts.push_back({.call = part.call});
      if (part.call >= 0) c.parts.back().id = CallId(answer, c, part.call);
    }
    AnswerPart& whole = c.parts.back();
    whole.text += part.text;
    whole.name += part.name;
    whole.arguments += part.arguments;
    part.id = whole.id;
    c.text += part.text;
    Piece piece{.text = std::exchange(part.text, {}), .at = c.parts.size() - 1};
    piece.part = std::move(part);
    pieces.push_back(std::move(piece));
  }
  if (!pieces.empty()) pieces[0].tokens = std::exchange(c.unsent, {});
  return pieces;
}

}  // namespace

std::vector<Piece> TakePiece(const Answer& answer, Choice& c, Piece piece) {
  std::move(piece.tokens.begin(), piece.tokens.end(), std::back_inserter(c.unsent));
  return PiecesOf(answer, c, c.parser.Push(piece.text));
}

std::vector<Piece> TakeEnd(const Answer& answer, Choice& c) {
  std::vector<AnswerPart> parts = c.parser.End();
  if (parts.empty() && !c.unsent.empty()) parts.emplace_back();
  return PiecesOf(answer, c, std::move(parts));
}

std::string_view FinishReason(const Choice& choice) {
  switch (choice.ended->stop) {
    case Generation::Stop::kEndOfText:
    case Generation::Stop::kStopString: {
      const auto called = [](const AnswerPart& part) { return part.call >= 0; };
      return std::any_of(choice.parts.begin(), choice.parts.end(), called) ? "tool_calls" : "stop";
    }
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
          {"grammar_ms", s.constraint_seconds * 1e3},
          {"kv_bytes_per_token", s.kv_bytes_per_token},
          {"kv_bytes_per_token_dense", s.kv_bytes_per_token_dense},
          {"cache", CacheOf(s)},
          {"logits_hash", s.logits_hash}};
}

}  // namespace baton::server
