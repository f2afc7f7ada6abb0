#include "train/tasks.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace baton::train {
namespace {

constexpr int64_t kFact = 2, kAsk = 3, kPairs = 4, kSet = 5, kGet = 6, kStop = 7;
constexpr int64_t kHops = 4;          // variables of a chain
constexpr int64_t kFactSpacing = 64;  // tokens of text per fact, and per question
constexpr int64_t kChainSpacing = 256;
constexpr double kFewestKeys = 4;

// Puts the columns of `piece` [B, m, size] at positions at [B, m] of a row.
void Put(Tensor& row, const Tensor& at, const Tensor& piece) {
  const Tensor where = at.unsqueeze(2) + torch::arange(piece.size(2), at.options());
  row.scatter_(1, where.reshape({row.size(0), -1}), piece.reshape({row.size(0), -1}));
}

Tensor Full(const Tensor& like, int64_t value) { return torch::full_like(like, value); }

}  // namespace

Tasks::Tasks(Tensor text, int64_t vocab)
    : text_(std::move(text)), keys_(vocab / 4), values_(vocab / 8 * 5), width_(vocab / 8 * 3) {
  BATON_CHECK_GE(keys_, kStop + 1);
}

Tensor Tasks::Random(int64_t low, int64_t high, at::IntArrayRef shape, torch::Generator& g) const {
  return torch::randint(low, high, shape, g, text_.options().dtype(torch::kInt64));
}

Tensor Tasks::Uniform(at::IntArrayRef shape, torch::Generator& g) const {
  return torch::rand(shape, g, text_.options().dtype(torch::kFloat32));
}

Tensor Tasks::Range(int64_t n) const {
  return torch::arange(n, text_.options().dtype(torch::kInt64));
}

// [rows, count]: different numbers below `of`, in random order.
Tensor Tasks::Distinct(int64_t rows, int64_t of, int64_t count, torch::Generator& g) const {
  return std::get<1>(Uniform({rows, of}, g).sort(1)).narrow(1, 0, count);
}

// Ascending positions of `count` pieces of `size` tokens that do not overlap, in a part of the row;
// each row has an offset of its own, so that pieces do not align with blocks.
Tensor Tasks::Slots(int64_t rows, int64_t n, int64_t size, int64_t count, double from, double to,
                    torch::Generator& g) const {
  const auto total = static_cast<double>((n - size) / size);
  const auto first = static_cast<int64_t>(from * total), end = static_cast<int64_t>(to * total);
  BATON_CHECK_LE(count, end - first);
  const Tensor slot = std::get<0>(Distinct(rows, end - first, count, g).sort(1)) + first;
  return slot * size + Random(0, size, {rows, 1}, g);
}

Samples Tasks::Text(int64_t rows, int64_t n, torch::Generator& g) const {
  const Tensor at = Random(0, text_.size(0) - n, {rows, 1}, g) + Range(n);
  const Tensor tokens =
      text_.index_select(0, at.reshape({-1})).reshape({rows, n}).to(torch::kInt64);
  return {tokens, Full(tokens, kTextToken), torch::zeros_like(tokens)};
}

Tensor Tasks::Piece(int64_t first_row, int64_t rows, int64_t n) const {
  const Tensor at = ((first_row + Range(rows)).unsqueeze(1) * n + Range(n)) % (text_.size(0) - 1);
  return text_.index_select(0, at.reshape({-1})).reshape({rows, n}).to(torch::kInt64);
}

Samples Tasks::Facts(int64_t rows, int64_t n, int64_t width, torch::Generator& g) const {
  Samples s = Text(rows, n, g);
  const int64_t m = 2 * std::max<int64_t>(2, n / kFactSpacing);
  const Tensor at = Slots(rows, n, 6, m, 0, 1, g);
  Tensor asks = Uniform({rows, m}, g) < 0.5;
  asks.select(1, 0).fill_(false);
  const auto key = [&] { return Random(keys_, keys_ + width, {rows, m}, g); };
  const auto value = [&] { return Random(values_, values_ + width, {rows, m}, g); };
  // Half of the facts share their first key token, so that the second one counts.
  Tensor k1 = key();
  k1 = torch::where(Uniform({rows, m}, g) < 0.5, k1, k1.narrow(1, 0, 1));
  const Tensor k2 = key(), v1 = value(), v2 = value();
  // A question asks for one of the facts before it, any with equal chance.
  const Tensor facts = asks.logical_not();
  const Tensor stated = facts.cumsum(1);
  const Tensor order =
      std::get<1>(torch::where(facts, stated - 1, m).sort(1));  // i-th fact -> slot
  const Tensor pick = (Uniform({rows, m}, g) * stated).to(torch::kInt64).minimum(stated - 1);
  const Tensor source = torch::where(asks, order.gather(1, pick), Range(m));
  const auto of = [&](const Tensor& t) { return t.gather(1, source); };
  Put(s.tokens, at,
      torch::stack({torch::where(asks, Full(k1, kAsk), Full(k1, kFact)), of(k1), of(k2), of(v1),
                    of(v2), Full(k1, kStop)},
                   2));
  const Tensor answer = torch::where(asks, Full(k1, kFactAnswer), Full(k1, kRandomToken));
  const Tensor other = Full(k1, kRandomToken);
  Put(s.kinds, at, torch::stack({other, other, other, answer, answer, other}, 2));
  const Tensor back = (at - at.gather(1, source)).unsqueeze(2).expand({rows, m, 6});
  Put(s.distance, at, back);
  return s;
}

Samples Tasks::Pairs(int64_t rows, int64_t n, int64_t width, int64_t keys, int64_t most_keys,
                     torch::Generator& g) const {
  const int64_t pairs = n / 2;
  Tensor count = Full(Range(1).expand({rows, 1}), keys);
  if (keys == 0) {
    const double span = std::log(static_cast<double>(most_keys) / kFewestKeys);
    count = (Uniform({rows, 1}, g) * span).exp().mul(kFewestKeys).to(torch::kInt64);
  }
  const Tensor key = keys_ + Distinct(rows, width, width, g);
  const Tensor value = Random(values_, values_ + width, {rows, width}, g);
  const Tensor drawn = (Uniform({rows, pairs}, g) * count).to(torch::kInt64);
  // A pair that is the first of its key: sorted by key and time, it follows another key.
  const auto [sorted, at] = (drawn * pairs + Range(pairs)).sort(1);
  const Tensor its_key = sorted.div(pairs, "floor");
  Tensor first = torch::ones_like(its_key, torch::kBool);
  first.narrow(1, 1, pairs - 1) =
      its_key.narrow(1, 1, pairs - 1) != its_key.narrow(1, 0, pairs - 1);
  const Tensor is_first = torch::zeros_like(first).scatter(1, at, first);
  Samples s;
  s.tokens = torch::stack({key.gather(1, drawn), value.gather(1, drawn)}, 2).reshape({rows, n});
  const Tensor answer = torch::where(is_first, Full(drawn, kRandomToken), Full(drawn, kPairAnswer));
  s.kinds = torch::stack({Full(drawn, kRandomToken), answer}, 2).reshape({rows, n});
  s.tokens.select(1, 0).fill_(kPairs);  // in place of the first key, whose value is no answer
  s.distance = count.expand({rows, n}).contiguous();
  return s;
}

Samples Tasks::Chains(int64_t rows, int64_t n, int64_t width, torch::Generator& g) const {
  Samples s = Text(rows, n, g);
  const int64_t chains = std::max<int64_t>(2, n / kChainSpacing), links = chains * kHops;
  const Tensor at = Slots(rows, n, 4, links, 0, 0.85, g);
  const Tensor name =
      keys_ + Distinct(rows, width, links, g);  // of link i of chain c: c * hops + i
  const Tensor value = Random(values_, values_ + width, {rows, chains}, g);
  // Chains are interleaved; the links of one come in order.
  const Tensor mixed = Distinct(rows, links, links, g);
  const Tensor chain = mixed.div(kHops, "floor");
  const Tensor same = chain.unsqueeze(2) == chain.unsqueeze(1);
  const Tensor link = same.tril(-1).sum(2);
  const auto name_of = [&](const Tensor& i) { return name.gather(1, chain * kHops + i); };
  const Tensor source =
      torch::where(link == 0, value.gather(1, chain), name_of((link - 1).clamp_min(0)));
  const Tensor me = name_of(link);
  Put(s.tokens, at, torch::stack({Full(me, kSet), me, source, Full(me, kStop)}, 2));
  const Tensor random = Full(me, kRandomToken);
  Put(s.kinds, at, torch::stack({random, random, random, random}, 2));
  const int64_t questions = chains * 2;
  const Tensor ask_at = Slots(rows, n, 4, questions, 0.86, 1, g);
  const Tensor c = Random(0, chains, {rows, questions}, g);
  const Tensor i = Random(0, kHops, {rows, questions}, g);
  Put(s.tokens, ask_at,
      torch::stack(
          {Full(c, kGet), name.gather(1, c * kHops + i), value.gather(1, c), Full(c, kStop)}, 2));
  const Tensor other = Full(c, kRandomToken);
  Put(s.kinds, ask_at, torch::stack({other, other, Full(c, kChainAnswer), other}, 2));
  Put(s.distance, ask_at, (i + 1).unsqueeze(2).expand({rows, questions, 4}));
  return s;
}

}  // namespace baton::train
