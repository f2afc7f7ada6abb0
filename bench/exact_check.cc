// Exact answers held to dense ones on real prompts (docs/exact.md): `scripts/exact` gives the
// texts.
//
//   exact_check MODEL --plan PLAN [--prompts N] [--least N] [--most N] [--tokens N] [--threads N]
//               [--text FILE...] [--code FILE...] [--chat FILE...]
//
// Prompts of text, code and chat take turns. Their lengths go from --least to --most, the shorter
// ones closer together. Each is answered densely, greedy or at temperature 0.8, and then exactly:
// alone, and in batches of four among requests that are cancelled or end at a stop string. Drafts
// come from the plan, from the text and from both, in fixed numbers and in as many as pay. Tokens,
// text, stop and logits hash have to be dense decoding's. The last line counts the answers
// compared; the exit status is 1 if one differs.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "baton/engine.h"

namespace baton {
namespace {

struct Options {
  std::string model, plan;
  int64_t prompts = 20, least = 2048, most = 8192, tokens = 64;
  int threads = 0;
  std::map<std::string, std::string> texts;  // by kind: all files, joined
};

template <typename T>
T OrDie(Result<T> r) {
  if (r.ok()) return std::move(r).value();
  fmt::print(stderr, "exact_check: {}\n", r.error().ToString());
  std::exit(2);
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  if (!file || text.view().empty()) {
    fmt::print(stderr, "exact_check: cannot read {}\n", path);
    std::exit(2);
  }
  return text.str();
}

// ---- prompts

using Tokens = std::vector<int32_t>;

Tokens Part(const Tokens& all, size_t begin, int64_t count) {
  Tokens part;
  for (int64_t i = 0; i < count; ++i)
    part.push_back(all[(begin + static_cast<size_t>(i)) % all.size()]);
  return part;
}

// Turns about passages of the text, as long as they fit; without a template, the turns as lines.
Tokens ChatPromptOf(const Engine& engine, const Tokens& text, size_t begin, int64_t length) {
  constexpr int64_t kPassage = 320, kAnswer = 160;
  const bool has_template = engine.info().has_chat_template;
  std::vector<ChatTurn> turns = {{"system", "You answer questions about passages.", ""}};
  Tokens prompt;
  for (;; begin += kPassage + kAnswer) {
    std::vector<ChatTurn> longer = turns;
    if (turns.size() > 1)
      longer.push_back({"assistant", engine.Detokenize(Part(text, begin, kAnswer)), ""});
    longer.push_back({"user",
                      "What does this passage say, in two sentences?\n\n" +
                          engine.Detokenize(Part(text, begin + kAnswer, kPassage)),
                      ""});
    Tokens now;
    if (has_template) {
      now = OrDie(engine.MakeChatPrompt(longer)).tokens;
    } else {
      std::string lines;
      for (const ChatTurn& t : longer) lines += t.role + ": " + t.content + "\n";
      now = engine.Tokenize(lines + "assistant:", true, true);
    }
    if (std::ssize(now) > length && !prompt.empty()) return prompt;
    prompt = std::move(now);
    turns = std::move(longer);
  }
}

struct Prompt {
  std::string kind;
  Tokens tokens;
};

std::vector<Prompt> Prompts(const Engine& engine, const Options& o) {
  std::map<std::string, Tokens> texts;
  for (const auto& [kind, text] : o.texts) texts[kind] = engine.Tokenize(text, false, false);
  const Tokens bos = engine.Tokenize("", true, false);
  const double growth = std::log(static_cast<double>(o.most) / static_cast<double>(o.least));
  std::vector<Prompt> prompts;
  std::map<std::string, int64_t> made;
  auto kind = texts.begin();
  for (int64_t i = 0; i < o.prompts; ++i) {
    const double share =
        o.prompts > 1 ? static_cast<double>(i) / static_cast<double>(o.prompts - 1) : 0;
    const auto length =
        static_cast<int64_t>(static_cast<double>(o.least) * std::exp(growth * share * share)) -
        o.tokens;
    const Tokens& text = kind->second;
    // Every prompt of a kind begins elsewhere.
    const size_t begin = static_cast<size_t>(made[kind->first]++) * text.size() * 3 / 8;
    Prompt p{.kind = kind->first, .tokens = {}};
    if (p.kind == "chat") {
      p.tokens = ChatPromptOf(engine, text, begin, length);
    } else {
      p.tokens = bos;
      const Tokens part = Part(text, begin, length - std::ssize(bos));
      p.tokens.insert(p.tokens.end(), part.begin(), part.end());
    }
    prompts.push_back(std::move(p));
    if (++kind == texts.end()) kind = texts.begin();
  }
  return prompts;
}

// ---- requests

// The prompt's number decides what drafts, and how many tokens.
Request ExactTwin(Request r, const Plan& plan, size_t number) {
  constexpr std::array<int64_t, 5> kDrafts = {3, 0, 7, 1, 15};  // 0: as many as pay
  const int64_t drafts = kDrafts[number % kDrafts.size()];
  const bool lookup = number % 3 != 0, planned = number % 3 != 2;
  if (planned) r.plan = plan;
  r.exact = ExactOptions{.plan = planned, .lookup = lookup};
  if (drafts > 0) r.exact->most_drafts = drafts;
  r.exact->adaptive = drafts == 0;
  return r;
}

std::string Described(const Request& r) {
  const ExactOptions& e = *r.exact;
  return fmt::format("{} {}{}", e.plan ? e.lookup ? "both" : "plan" : "lookup",
                     e.adaptive ? "up to " : "", e.most_drafts);
}

struct Tally {
  int64_t compared = 0, different = 0;
  void Count(bool equal, const std::string& what) {
    ++compared;
    if (equal) return;
    ++different;
    fmt::print("DIFFERENT: {}\n", what);
  }
};

bool Equal(const Generation& a, const Generation& b) {
  return a.tokens == b.tokens && a.text == b.text && a.stop == b.stop &&
         a.stats.logits_hash == b.stats.logits_hash;
}

bool IsBeginning(const Generation& part, const Generation& whole) {
  return part.tokens.size() <= whole.tokens.size() && whole.text.starts_with(part.text) &&
         std::equal(part.tokens.begin(), part.tokens.end(), whole.tokens.begin());
}

// A piece of the answer that is no part of its beginning.
std::string StopIn(const Generation& dense) {
  const std::string& text = dense.text;
  for (size_t at = text.size() / 2; at + 4 < text.size(); ++at) {
    const std::string stop = text.substr(at, 4);
    if (text.find(stop) == at) return stop;
  }
  return "";
}

// ---- the comparison

class Check {
 public:
  Check(Engine& engine, const Options& options, const Plan& plan)
      : engine_(engine), options_(options), plan_(plan), prompts_(Prompts(engine, options)) {}

  Tally Run() {
    for (size_t i = 0; i < prompts_.size(); i += 4) {
      const size_t end = std::min(prompts_.size(), i + 4);
      for (size_t p = i; p < end; ++p) Alone(p);
      Batch(i, end);
    }
    return tally_;
  }

 private:
  Request DenseRequest(size_t prompt) const {
    Request r{.tokens = prompts_[prompt].tokens, .max_tokens = options_.tokens, .ignore_end = true};
    if (Sampled(prompt)) r.sampling = {.temperature = 0.8f, .seed = prompt + 1};
    return r;
  }

  // Of every kind of prompt, some are answered greedily and some at temperature 0.8.
  bool Sampled(size_t prompt) const { return prompt / options_.texts.size() % 2 == 1; }

  // One prompt, dense and exact in turn.
  void Alone(size_t i) {
    const Request dense = DenseRequest(i);
    const Request exact = ExactTwin(dense, plan_, i);
    const Generation want = OrDie(engine_.Generate(dense)), got = OrDie(engine_.Generate(exact));
    const ExactReport& e = *got.stats.exact;
    const std::string what =
        fmt::format("{:2} {:4} {:5} tokens, {:6}, {:12}: {:3} drafted, {:3} accepted, time {:.2f}",
                    i, prompts_[i].kind, prompts_[i].tokens.size(), Sampled(i) ? "0.8" : "greedy",
                    Described(exact), e.drafted + e.looked_up, e.accepted,
                    got.stats.decode_seconds / want.stats.decode_seconds);
    fmt::print("{}\n", what);
    std::fflush(stdout);
    tally_.Count(Equal(want, got), what);
    dense_.push_back(want);
  }

  // Prompts [begin, end) together, each drafted by another rule than alone. After each, a request
  // for the first prompt, the shortest, that is cancelled or ends at a stop string.
  void Batch(size_t begin, size_t end) {
    std::vector<Request> requests;
    std::vector<RequestCallbacks> callbacks;
    std::vector<Generation> answers(2 * (end - begin));
    const auto add = [&](Request r, int64_t pieces) {
      RequestCallbacks c;
      const size_t at = requests.size();
      c.on_done = [&answers, at](Result<Generation> g) { answers[at] = OrDie(std::move(g)); };
      if (pieces > 0) c.on_text = [left = pieces](std::string_view) mutable { return --left > 0; };
      requests.push_back(std::move(r));
      callbacks.push_back(std::move(c));
    };
    for (size_t i = begin; i < end; ++i) {
      add(ExactTwin(DenseRequest(i), plan_, i + 2), 0);
      Request interrupted = ExactTwin(DenseRequest(0), plan_, i + 3);
      const bool cancelled = i % 2 == 0;
      if (!cancelled) interrupted.stop = {StopIn(dense_[0])};
      add(std::move(interrupted), cancelled ? options_.tokens / 3 : 0);
    }
    const Status status = engine_.GenerateBatch(requests, callbacks);
    if (!status.ok()) OrDie(Result<int>(status.error()));
    for (size_t i = begin, at = 0; i < end; ++i, at += 2) {
      const std::string what = fmt::format("batch of prompts {} to {}, {}", begin, end - 1, i);
      tally_.Count(Equal(dense_[i], answers[at]), what);
      Interrupted(requests[at + 1], answers[at + 1], what);
    }
    fmt::print("batch of prompts {} to {}: done\n", begin, end - 1);
    std::fflush(stdout);
  }

  void Interrupted(const Request& r, const Generation& got, const std::string& what) {
    const Generation& whole = dense_[0];
    if (r.stop.empty()) {
      tally_.Count(got.stop == Generation::Stop::kCancelled && IsBeginning(got, whole),
                   what + ", cancelled");
      return;
    }
    const std::string& stop = r.stop.front();
    const bool stops = !stop.empty();
    tally_.Count(IsBeginning(got, whole) &&
                     (!stops || (got.stop == Generation::Stop::kStopString &&
                                 got.text == whole.text.substr(0, whole.text.find(stop)))),
                 what + ", stop string");
  }

  Engine& engine_;
  const Options& options_;
  const Plan& plan_;
  const std::vector<Prompt> prompts_;
  std::vector<Generation> dense_;  // by prompt
  Tally tally_;
};

Options Parse(int argc, char** argv) {
  Options o;
  std::string kind;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    const auto value = [&]() -> std::string { return i + 1 < argc ? argv[++i] : ""; };
    const auto number = [&] { return std::max<int64_t>(1, std::atoll(value().c_str())); };
    if (arg == "--plan") {
      o.plan = value();
    } else if (arg == "--prompts") {
      o.prompts = number();
    } else if (arg == "--least") {
      o.least = number();
    } else if (arg == "--most") {
      o.most = number();
    } else if (arg == "--tokens") {
      o.tokens = number();
    } else if (arg == "--threads") {
      o.threads = static_cast<int>(number());
    } else if (arg == "--text" || arg == "--code" || arg == "--chat") {
      kind = arg.substr(2);
    } else if (!kind.empty()) {
      o.texts[kind] += ReadFile(arg);
    } else {
      o.model = arg;
    }
  }
  return o;
}

int Main(int argc, char** argv) {
  const Options o = Parse(argc, argv);
  if (o.model.empty() || o.plan.empty() || o.texts.empty()) {
    fmt::print(stderr,
               "exact_check: needs a model, --plan FILE and texts; see bench/exact_check.cc\n");
    return 2;
  }
  auto engine = OrDie(Engine::Load(
      o.model, {.threads = o.threads, .context = o.most + 64, .kv_tokens = 8 * (o.most + 64)}));
  const Plan plan = OrDie(Plan::Load(o.plan));
  const Tally tally = Check(*engine, o, plan).Run();
  fmt::print("{}: {} answers compared, {} different\n", engine->info().name, tally.compared,
             tally.different);
  return tally.different > 0 ? 1 : 0;
}

}  // namespace
}  // namespace baton

int main(int argc, char** argv) { return baton::Main(argc, argv); }
