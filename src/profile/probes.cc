#include "profile/probes.h"

#include <algorithm>
#include <array>

namespace baton {
namespace {

// Drawn by remainder, not by a distribution: the standard leaves those to the library, and seeds
// should mean the same anywhere.
class Draw {
 public:
  explicit Draw(uint64_t seed) : random_(seed) {}
  uint64_t Below(uint64_t n) { return random_() % n; }
  std::string Digits(int n) {
    std::string s;
    for (int i = 0; i < n; ++i) s += static_cast<char>('0' + Below(10));
    return s;
  }
  std::string Letters(int n) {
    std::string s;
    for (int i = 0; i < n; ++i) s += static_cast<char>('A' + Below(26));
    return s;
  }

 private:
  std::mt19937_64 random_;
};

constexpr std::array kCities = {"Lisbon", "Oslo",   "Quito",  "Hanoi",   "Accra",  "Perth",
                                "Lima",   "Cairo",  "Delhi",  "Seoul",   "Turin",  "Kyoto",
                                "Bogota", "Dublin", "Havana", "Nairobi", "Prague", "Sydney",
                                "Tunis",  "Vienna", "Warsaw", "Zagreb",  "Athens", "Boston"};

// Facts of one context are about different things: a small model asked for one of eight magic
// numbers mixes up their digits, and a probe that dense fails measures nothing.
constexpr std::array kThings = {
    "special magic number for {}",      "access code of the {} office",
    "serial number of the {} printer",  "ticket number of the {} train",
    "phone extension of the {} museum", "invoice number of the {} hotel",
    "locker number at the {} airport",  "flight number of the {} charter"};

std::string Thing(int index, const std::string& city) {
  return fmt::format(fmt::runtime(kThings[static_cast<size_t>(index) % kThings.size()]), city);
}

std::string NumberFact(const std::string& thing, const std::string& number) {
  return fmt::format(" The {} is {}. ", thing, number);
}

void AskNumber(Probe& p, const std::string& thing, const std::string& number) {
  p.question = fmt::format("What is the {} mentioned in the text?", thing);
  p.answer_start = fmt::format("The {} is ", thing);
  p.answer = number;
}

Probe MakeProbe(ProbeKind kind, int index, double depth, const std::string& city,
                const std::string& other, Draw& draw) {
  Probe p;
  p.kind = kind;
  p.depth = depth;
  const std::string number = draw.Digits(5);
  switch (kind) {
    case ProbeKind::kDigits:
      p.facts = {NumberFact(Thing(index, city), number)};
      AskNumber(p, Thing(index, city), number);
      break;
    case ProbeKind::kSeveral:
      p.facts = {NumberFact(Thing(index, other), draw.Digits(5)),
                 NumberFact(Thing(index, city), number)};
      AskNumber(p, Thing(index, city), number);
      break;
    case ProbeKind::kKeyValue: {
      const std::string key = draw.Letters(3) + draw.Digits(2);
      p.facts = {fmt::format(" The value of key {} is {}. ", key, number)};
      p.question = fmt::format("What is the value of key {} mentioned in the text?", key);
      p.answer_start = fmt::format("The value of key {} is ", key);
      p.answer = number;
      break;
    }
    case ProbeKind::kVariable: {
      const std::string a = draw.Letters(4), b = draw.Letters(4);
      p.facts = {fmt::format(" Variable {} is set to {}. ", a, number),
                 fmt::format(" Variable {} is set to the value of variable {}, which is {}. ", b, a,
                             number)};
      p.question = fmt::format("What is the value of variable {} in the text?", b);
      p.answer_start = fmt::format("The value of variable {} is ", b);
      p.answer = number;
      break;
    }
  }
  return p;
}

}  // namespace

std::string ToString(ProbeKind kind) {
  constexpr const char* kNames[] = {"digits", "key-value", "several", "variables"};
  return kNames[static_cast<int>(kind)];
}

std::vector<Probe> MakeProbes(int count, uint64_t seed, bool digits_only) {
  Draw draw(seed);
  std::vector<std::string> cities(kCities.begin(), kCities.end());
  for (size_t i = cities.size(); i > 1; --i) std::swap(cities[i - 1], cities[draw.Below(i)]);
  std::vector<Probe> probes;
  for (int i = 0; i < count; ++i) {
    const auto kind = digits_only
                          ? ProbeKind::kDigits
                          : static_cast<ProbeKind>(std::array{0, 1, 0, 2, 0, 1, 0, 3}[i % 8]);
    const size_t at = static_cast<size_t>(2 * i);
    probes.push_back(MakeProbe(kind, i, (i + 0.5) / count, cities[at % cities.size()],
                               cities[(at + 1) % cities.size()], draw));
  }
  return probes;
}

Result<ProbeContext> HideProbes(const Engine& engine, const std::vector<Probe>& probes,
                                std::span<const int32_t> filler, int64_t length) {
  const std::string mark = "\x02";
  std::string framed = fmt::format("Read the text and answer the question.\n{}", mark);
  std::string after;
  const bool chat = engine.info().has_chat_template;
  if (chat) {
    BATON_ASSIGN(framed, engine.RenderChat({{"user", framed}}));
  }
  const size_t cut = framed.find(mark);
  after = framed.substr(cut + mark.size());
  const auto encode = [&](const std::string& s) { return engine.Tokenize(s, false, true); };

  ProbeContext c;
  c.tokens = engine.Tokenize(framed.substr(0, cut), true, true);
  // Where each fact goes, as a share of the text.
  std::vector<std::pair<double, std::vector<int32_t>>> facts;
  int64_t fact_tokens = 0;
  for (const Probe& p : probes) {
    for (size_t f = 0; f < p.facts.size(); ++f) {
      const bool asked = f + 1 == p.facts.size();
      // Other facts of the same probe lie elsewhere, half a text away.
      const double depth = asked ? p.depth : p.depth < 0.5 ? p.depth + 0.45 : p.depth - 0.45;
      facts.emplace_back(depth, encode(p.facts[f]));
      fact_tokens += static_cast<int64_t>(facts.back().second.size());
    }
  }
  std::stable_sort(facts.begin(), facts.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  const int64_t room = length - static_cast<int64_t>(c.tokens.size()) - fact_tokens;
  if (room < 64 || filler.empty()) {
    return Error::InvalidArgument("{} probes do not fit into a context of {} tokens", probes.size(),
                                  length)
        .Hint("use fewer probes or a longer --context");
  }
  int64_t placed = 0;
  const auto fill = [&](int64_t to) {
    for (; placed < to; ++placed)
      c.tokens.push_back(filler[static_cast<size_t>(placed) % filler.size()]);
  };
  for (const auto& [depth, tokens] : facts) {
    fill(static_cast<int64_t>(depth * static_cast<double>(room)));
    c.tokens.insert(c.tokens.end(), tokens.begin(), tokens.end());
  }
  fill(room);
  for (const Probe& p : probes) {
    ProbeContext::Question q{p.kind, p.depth, {}, {}};
    q.ask = encode(fmt::format("\n{}{}{}{}", p.question, chat ? "" : "\n", after, p.answer_start));
    // The answer as it would be continued: digits are tokens of their own in some vocabularies and
    // merge in others.
    const std::vector<int32_t> both = encode(
        fmt::format("\n{}{}{}{}{}", p.question, chat ? "" : "\n", after, p.answer_start, p.answer));
    size_t common = 0;
    while (common < q.ask.size() && common < both.size() && q.ask[common] == both[common]) ++common;
    q.ask.resize(common);
    q.answer.assign(both.begin() + static_cast<ptrdiff_t>(common), both.end());
    c.questions.push_back(std::move(q));
  }
  return c;
}

}  // namespace baton
