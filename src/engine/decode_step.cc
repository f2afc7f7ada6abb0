#include "engine/decode_step.h"

#include <algorithm>
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
  logits_wanted_.push_back(part.logits);
  return Status::Ok();
}

void DecodeStep::Run(Transformer& model, ForwardBatch batch) {
  failures_.assign(segments_.size(), {});
  for (size_t i = 0; i < segments_.size(); ++i) segments_[i].failure = &failures_[i];
  batch.tokens = tokens_;
  batch.segments = segments_;
  std::vector<int64_t> all;
  if ((batch.on_logits || batch.on_sampled) && batch.logit_rows.empty()) {
    all.resize(tokens_.size());
    std::iota(all.begin(), all.end(), int64_t{0});
    batch.logit_rows = all;
  }
  model.Forward(batch);
  for (KvSequence* kv : sequences_) kv->Evict();
}

void DecodeStep::Forward(Transformer& model, const OnLogits& on_logits, ForwardBatch batch) {
  size_t part = 0;
  int64_t seen = 0;  // wanted rows of that part
  const std::span<const int64_t> wanted = batch.logit_rows;
  const auto by_part = [&](int64_t first, View<const float> logits) {
    const auto row = [&](int64_t i) {
      return wanted.empty() ? first + i : wanted[static_cast<size_t>(first + i)];
    };
    const auto limit = [&] { return segments_[part].rows.first + segments_[part].rows.count; };
    for (int64_t begin = 0, end = 0; begin < logits.dim(0); begin = end) {
      while (row(begin) >= limit()) ++part, seen = 0;
      while (end < logits.dim(0) && row(end) < limit()) ++end;
      if (!failures_[part].failed()) on_logits(part, seen, logits.Slice(begin, end));
      seen += end - begin;
    }
  };
  if (on_logits) batch.on_logits = by_part;
  Run(model, batch);
}

void DecodeStep::Sample(Transformer& model, const SampleCalls& calls) {
  ThreadPool& threads = model.ops().threads();
  const ThreadPool::Hot hot(threads);
  const auto of = [](const AttentionSegment& s, auto& rows) {
    return std::span(rows).subspan(static_cast<size_t>(s.rows.first),
                                   static_cast<size_t>(s.rows.count));
  };
  const auto parts = std::ssize(segments_);
  std::vector<SampleRow> rows(tokens_.size());
  if (calls.before) {
    threads.For(parts, [&](int64_t i, int) {
      const auto part = static_cast<size_t>(i);
      calls.before(part, of(segments_[part], rows));
    });
  }
  std::vector<SampledRow> sampled(tokens_.size());
  std::vector<std::vector<float>> logits(segments_.size());
  Device& device = model.ops().device();
  const int64_t vocab = model.config().vocab;
  ForwardBatch batch{.sample = rows};
  batch.on_sampled = [&](int64_t first, std::span<const SampledRow> some, View<const float> from) {
    std::copy(some.begin(), some.end(), sampled.begin() + first);
    for (size_t part = 0; part < segments_.size(); ++part) {
      const Rows& r = segments_[part].rows;
      const int64_t begin = std::max(r.first, first);
      const int64_t end = std::min(r.first + r.count, first + std::ssize(some));
      if (!logits_wanted_[part] || begin >= end) continue;
      logits[part].resize(static_cast<size_t>(r.count * vocab));
      device.Download(logits[part].data() + (begin - r.first) * vocab,
                      reinterpret_cast<const std::byte*>(from.row(begin - first)),
                      (end - begin) * vocab * static_cast<int64_t>(sizeof(float)));
    }
  };
  Run(model, batch);
  if (!calls.after) return;
  threads.For(parts, [&](int64_t i, int) {
    const auto part = static_cast<size_t>(i);
    const int64_t n = segments_[part].rows.count;
    if (failures_[part].failed()) return;
    calls.after(part, of(segments_[part], sampled),
                logits_wanted_[part] ? View<const float>(logits[part].data(), {n, vocab})
                                     : View<const float>());
  });
}

}  // namespace baton
