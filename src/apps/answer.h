// What one answer of `baton run` and the turns of its chat share.
#pragma once

#include "apps/command.h"

namespace baton::apps {

// Generates with the text going out as it comes. A write error stops the request and is returned.
Result<Generation> Stream(Engine& engine, const Request& request);

// Speed, bytes and layers, on standard error.
void PrintStats(const Generation& generation, const Sampling& sampling);

// New prompt tokens: those whose cache a chat still held cost nothing.
int64_t ProcessedPrompt(const RequestStats& stats);
double PerSecond(int64_t tokens, double seconds);

// Says on standard error that an answer ended before the model ended it.
void NoteIfCut(const Generation& generation, const Request& request, const Engine& engine);

// Asks on the terminal and answers until /quit. `base`: everything but the conversation, which
// begins with base.chat (a system turn).
Result<int> Chat(Engine& engine, const Request& base, bool stats);

}  // namespace baton::apps
