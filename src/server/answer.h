// What goes back to the client: answers as they grow, written in the words of each API.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/call.h"
#include "server/json.h"

namespace baton::server {

// A part of an answer: some text, and the tokens that came since the part before.
struct Piece {
  std::string text;
  std::vector<Generation::Logprobs> tokens;
};

// One answer. Its text and its tokens are those of its pieces; tokens that were streamed are not
// kept.
struct Choice {
  int index = 0;
  std::string text;
  std::vector<Generation::Logprobs> tokens;
  int64_t prompt_tokens = 0;
  std::string prompt_text;          // of an echo
  std::vector<int32_t> prompt_ids;  // of an echo with logprobs
  int64_t characters_written = 0;   // of a completion's text, for offsets
  std::optional<Generation> ended;  // without text and tokens
};

struct Answer {
  const Call* call = nullptr;
  std::string id, model;
  int64_t created = 0;  // seconds since 1970
  std::vector<Choice> choices;
  std::function<std::string(int32_t)> token_bytes;
  int64_t events = 0;  // written so far, where an API counts them
};

// How an API writes an answer: events of a stream, or one document.
struct Writer {
  // Before the first piece.
  std::string (*begin)(Answer&);
  std::string (*progress)(Answer&, const Choice&, int64_t done, int64_t total);
  std::string (*piece)(Answer&, Choice&, const Piece&);
  // After a choice's last piece, and after the last choice.
  std::string (*end_choice)(Answer&, const Choice&);
  std::string (*end)(Answer&);
  // Ends a stream that cannot go on.
  std::string (*fail)(const ApiError&);
  std::string (*whole)(Answer&);
  std::string (*error)(const ApiError&);  // in place of an answer
};
const Writer& WriterOf(Api api);

// "stop" or "length"
std::string_view FinishReason(const Generation& ended);
// Tokens of the prompts (each once), and of all answers.
struct Usage {
  int64_t prompt = 0, cached = 0, completion = 0;
};
Usage UsageOf(const Answer& answer);
// What an answer took: {"prompt_n", "prompt_ms", "predicted_n", ...}.
Json TimingsOf(const RequestStats& stats);

}  // namespace baton::server
