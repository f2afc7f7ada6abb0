// Generated retrieval probes: facts hidden in a text, asked for at its end. Natural text alone
// picks plans that lose facts in the middle of the context (docs/planning.md), so every calibration
// and every evaluation asks some.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "baton/engine.h"
#include "baton/error.h"

namespace baton {

enum class ProbeKind { kDigits, kKeyValue, kSeveral, kVariable };
std::string ToString(ProbeKind kind);

struct Probe {
  ProbeKind kind = ProbeKind::kDigits;
  double depth = 0;  // of the asked fact, [0, 1)
  std::vector<std::string>
      facts;  // sentences to hide; the last one is at `depth`, others spread over the text
  std::string question, answer_start, answer;
};

// A context with hidden facts and, for each probe, what follows it.
struct ProbeContext {
  std::vector<int32_t> tokens;  // instruction and text with the facts in it, without any question
  struct Question {
    ProbeKind kind;
    double depth;
    std::vector<int32_t> ask;     // question, and the start of the answer
    std::vector<int32_t> answer;  // what the model must say
  };
  std::vector<Question> questions;
};

// `count` probes at evenly spread depths; kinds in turn, or digits only.
std::vector<Probe> MakeProbes(int count, uint64_t seed, bool digits_only);

// Hides the facts of all probes in `filler`, cut so that the context has `length` tokens. The
// model's chat template frames it, where there is one.
Result<ProbeContext> HideProbes(const Engine& engine, const std::vector<Probe>& probes,
                                std::span<const int32_t> filler, int64_t length);

}  // namespace baton
