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
#include "server/tool_parser.h"

namespace baton::server {

// What came of an answer: some text, or a part of a call, and the tokens since the piece before.
struct Piece {
  std::string text;
  std::vector<Generation::Logprobs> tokens;
  AnswerPart part;  // of a call; its text is the piece's
  size_t at = 0;    // in the choice's parts
};

// One answer. Its text, its parts and its tokens are those of its pieces; tokens that were streamed
// are not kept.
struct Choice {
  int index = 0;
  std::string text;               // without calls
  std::vector<AnswerPart> parts;  // texts and whole calls, in their order
  std::vector<Generation::Logprobs> tokens;
  ToolParser parser;
  std::vector<Generation::Logprobs> unsent;  // of text that the parser holds back
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
  size_t written = 0;  // of the only choice's parts: those that have begun in a stream
};

// Adds a piece to its choice, as the pieces that are written: its text taken apart by the parser.
std::vector<Piece> TakePiece(const Answer& answer, Choice& choice, Piece piece);
// What the parser held back.
std::vector<Piece> TakeEnd(const Answer& answer, Choice& choice);

// How an API writes an answer: events of a stream, or one document.
struct Writer {
  // Before the first piece.
  std::string (*begin)(Answer&);
  std::string (*progress)(Answer&, const Choice&, int64_t done, int64_t total);
  std::string (*piece)(Answer&, Choice&, const Piece&);
  // After a choice's last piece, and after the last choice.
  std::string (*end_choice)(Answer&, Choice&);
  std::string (*end)(Answer&);
  // Ends a stream that cannot go on.
  std::string (*fail)(const ApiError&);
  std::string (*whole)(Answer&);
  std::string (*error)(const ApiError&);  // in place of an answer
};
const Writer& WriterOf(Api api);

// "stop", "length" or "tool_calls", of a choice that has ended.
std::string_view FinishReason(const Choice& choice);
// Tokens of the prompts (each once), and of all answers.
struct Usage {
  int64_t prompt = 0, cached = 0, completion = 0;
};
Usage UsageOf(const Answer& answer);
// What an answer took: {"prompt_n", "prompt_ms", "predicted_n", ...}.
Json TimingsOf(const RequestStats& stats);

}  // namespace baton::server
