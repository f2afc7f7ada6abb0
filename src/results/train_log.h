// The log of `baton-train`, one JSON object a line: the trainer writes it, the report draws it.
#pragma once

#include "results/fields.h"

namespace baton::results {

// event "start": the first line of a run, and of each of its continuations.
struct TrainStart {
  std::string trains;  // "lm", "router" or "list"
  std::string model;   // its file's name, without folder and ending
  int64_t parameters = 0, steps = 0, tokens = 0;
  uint64_t seed = 0;
  int64_t step = 0;  // from which it goes on
  std::string device, torch;
};

void Fields(auto& v, TrainStart& s) {
  v("trains", s.trains);
  v("model", s.model);
  v("parameters", s.parameters);
  v("steps", s.steps);
  v("tokens", s.tokens, 0);
  v("seed", s.seed);
  v("step", s.step);
  v("device", s.device);
  v("torch", s.torch);
}

// How far the run is, in every later line.
void ProgressFields(auto& v, auto& line) {
  v("step", line.step);
  v("tokens", line.tokens);
  v("seconds", line.seconds);
}

// event "losses" of a model: means since the line before, nats a token; NaN: there were no such
// tokens.
struct LmLosses {
  int64_t step = 0, tokens = 0;
  double seconds = 0;
  double text = 0, facts = 0, pairs = 0, chains = 0, distillation = 0;
};

void Fields(auto& v, LmLosses& l) {
  ProgressFields(v, l);
  v.Object("losses", [&](auto& losses) {
    losses("text", l.text);
    losses("facts", l.facts);
    losses("pairs", l.pairs);
    losses("chains", l.chains);
    losses("distillation", l.distillation);
  });
}

// event "losses" of routers and lists: means over samples since the line before.
struct GateLosses {
  int64_t step = 0, tokens = 0;
  double seconds = 0;
  struct Pair {
    double answer = 0, text = 0;
  };
  Pair loss, windows;  // windows: share of layers
};

void Fields(auto& v, GateLosses::Pair& p) {
  v("answer", p.answer);
  v("text", p.text);
}

void Fields(auto& v, GateLosses& l) {
  ProgressFields(v, l);
  v("loss", l.loss);
  v("windows", l.windows);
}

// events "test", during a run, and "result", at its end: what the report reads of them.
struct LmTest {
  int64_t step = 0, tokens = 0;
  double seconds = 0;
  int64_t n = 0;                                    // tokens of a row
  double text = 0;                                  // nats a token
  double facts = 0, far = 0;                        // shares of right answers; far: > 1,024 back
  double pairs64 = 0, pairs256 = 0, pairs1024 = 0;  // by keys in the row
  double chains1 = 0, chains2 = 0, chains3 = 0;     // by links
  double held = 0, best = 0;                        // of an indexer's lists
};

void Fields(auto& v, LmTest& t) {
  ProgressFields(v, t);
  v.Object("evaluation", [&](auto& e) {
    e("n", t.n);
    e("text_loss", t.text);
    e.Object("facts", [&](auto& facts) {
      facts("all", t.facts);
      facts("<=4096", t.far);
    });
    e.Object("pairs", [&](auto& pairs) {
      pairs("64", t.pairs64);
      pairs("256", t.pairs256);
      pairs("1024", t.pairs1024);
    });
    e.Object("chains", [&](auto& chains) {
      chains("1", t.chains1);
      chains("2", t.chains2);
      chains("3", t.chains3);
    });
    e.Object("coverage", [&](auto& coverage) {
      coverage("held", t.held);
      coverage("best", t.best);
    });
  });
}

// `record` as a line of the log.
inline OrderedJson TrainLine(const char* event, const auto& record) {
  OrderedJson line = {{"event", event}};
  line.update(ToJson(record));
  return line;
}

}  // namespace baton::results
