#include "engine/decode_step.h"

#include <numeric>

#include "base/thread_pool.h"

namespace baton {

Status DecodeStep::Add(const Part& part) {
  const int64_t position = part.kv->length(), count = std::ssize(part.tokens);
  BATON_TRY(part.kv->Reserve(position + count));
  segments_.push_back({.rows = {rows(), count, position},
                       .kv = part.kv,
                       .plan = part.plan,
                       .prompt = false,
                       .rows_alone = part.rows_alone,
                       .watch = part.watch});
  tokens_.insert(tokens_.end(), part.tokens.begin(), part.tokens.end());
  sequences_.push_back(part.kv);
  return Status::Ok();
}

void DecodeStep::Forward(Transformer& model, const OnLogits& on_logits, ForwardBatch batch,
                         ThreadPool* threads) {
  failures_.assign(segments_.size(), {});
  for (size_t i = 0; i < segments_.size(); ++i) segments_[i].failure = &failures_[i];
  batch.tokens = tokens_;
  batch.segments = segments_;
  std::vector<int64_t> all;
  if ((on_logits || batch.on_greedy) && batch.logit_rows.empty()) {
    all.resize(tokens_.size());
    std::iota(all.begin(), all.end(), int64_t{0});
    batch.logit_rows = all;
  }
  size_t part = 0;
  int64_t seen = 0;  // wanted rows of that part
  struct Rows {
    size_t part;
    int64_t first;
    View<const float> logits;
  };
  std::vector<Rows> parts;
  const auto by_part = [&](int64_t first, View<const float> logits) {
    parts.clear();
    const auto row = [&](int64_t i) { return batch.logit_rows[static_cast<size_t>(first + i)]; };
    const auto limit = [&] { return segments_[part].rows.first + segments_[part].rows.count; };
    for (int64_t begin = 0, end = 0; begin < logits.dim(0); begin = end) {
      while (row(begin) >= limit()) ++part, seen = 0;
      while (end < logits.dim(0) && row(end) < limit()) ++end;
      if (!failures_[part].failed()) parts.push_back({part, seen, logits.Slice(begin, end)});
      seen += end - begin;
    }
    const auto call = [&](int64_t i, int) {
      const Rows& rows = parts[static_cast<size_t>(i)];
      on_logits(rows.part, rows.first, rows.logits);
    };
    if (threads && parts.size() > 1) return threads->For(std::ssize(parts), call);
    for (int64_t i = 0; i < std::ssize(parts); ++i) call(i, 0);
  };
  if (on_logits) batch.on_logits = by_part;
  model.Forward(batch);
  for (KvSequence* kv : sequences_) kv->Evict();
}

}  // namespace baton
