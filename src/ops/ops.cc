#include "ops/ops.h"

#include <algorithm>

#include "base/check.h"

namespace baton {
namespace {

double VisibleKeys(const AttendParams::Segment& s) {
  const double n = static_cast<double>(s.rows.position) + static_cast<double>(s.rows.count);
  switch (s.keys.kind) {
    case KeySet::Kind::kAll:
      return n;
    case KeySet::Kind::kWindow:
      return std::min(n, static_cast<double>(s.keys.sink + s.keys.recent));
    case KeySet::Kind::kIndex:
      return std::min(n, static_cast<double>(s.keys.index->capacity));
  }
  return n;
}

void CheckRows(const Rows& r, int64_t batch_rows, const KvView& kv) {
  BATON_CHECK(r.first >= 0 && r.count >= 0 && r.position >= 0);
  BATON_CHECK_LE(r.first + r.count, batch_rows);
  BATON_CHECK_LE(r.position + r.count, kv.length);
  BATON_CHECK(kv.arena != nullptr && kv.pages != nullptr);
}

}  // namespace

IndexSets IndexSets::OnHost() && {
  if (positions.device().host()) return std::move(*this);
  IndexSets copy;
  copy.Reset(sets, groups, capacity);
  positions.Download({copy.positions.data(), static_cast<size_t>(sets * groups * capacity)});
  counts.Download({copy.counts.data(), static_cast<size_t>(sets * groups)});
  return copy;
}

void Ops::Linear(const LinearParams& p) {
  double bytes = 0, flops = 0;
  bool output_layer = false;
  for (const auto& o : p.outs) {
    BATON_CHECK(o.w != nullptr && o.y.contiguous());
    BATON_CHECK_EQ(o.w->cols, p.x.dim(1));
    BATON_CHECK_EQ(o.y.dim(0), p.x.dim(0));
    BATON_CHECK_EQ(o.y.dim(1), o.w->rows);
    bytes += static_cast<double>(o.w->bytes);
    flops += 2.0 * static_cast<double>(p.x.dim(0)) * static_cast<double>(o.w->rows * o.w->cols);
    output_layer |= o.w->rows > 16 * o.w->cols;
  }
  if (p.x.dim(0) == 0) return;
  Trace::Scope scope(trace_, output_layer ? OpKind::kOutput : OpKind::kLinear, bytes, flops);
  DoLinear(p);
}

void Ops::Glu(const GluParams& p) {
  BATON_CHECK(p.gate != nullptr && p.up != nullptr && p.y.contiguous());
  BATON_CHECK_EQ(p.gate->cols, p.x.dim(1));
  BATON_CHECK_EQ(p.up->cols, p.x.dim(1));
  BATON_CHECK_EQ(p.gate->rows, p.y.dim(1));
  BATON_CHECK_EQ(p.up->rows, p.y.dim(1));
  BATON_CHECK_EQ(p.y.dim(0), p.x.dim(0));
  if (p.x.dim(0) == 0) return;
  Trace::Scope scope(
      trace_, OpKind::kGlu, static_cast<double>(p.gate->bytes + p.up->bytes),
      4.0 * static_cast<double>(p.x.dim(0)) * static_cast<double>(p.gate->rows * p.gate->cols));
  DoGlu(p);
}

void Ops::Norm(const NormParams& p) {
  BATON_CHECK(p.weight != nullptr);
  BATON_CHECK_EQ(p.x.dim(0), p.y.dim(0));
  BATON_CHECK_EQ(p.x.dim(1), p.y.dim(1));
  if (p.x.dim(0) == 0) return;
  Trace::Scope scope(trace_, OpKind::kNorm, 8.0 * static_cast<double>(p.x.size()),
                     4.0 * static_cast<double>(p.x.size()));
  DoNorm(p);
}

void Ops::Store(const StoreParams& p) {
  const View<float>& any = p.q.empty() ? p.k : p.q;
  BATON_CHECK(p.q.empty() || p.q.rank() == 3);
  BATON_CHECK(p.k.empty() || p.k.rank() == 3);
  BATON_CHECK(p.v.empty() || p.v.rank() == 3);
  BATON_CHECK(!p.k.empty() || p.segments.empty());
  if (!p.q.empty() && !p.k.empty()) BATON_CHECK_EQ(p.q.dim(2), p.k.dim(2));
  BATON_CHECK_EQ(p.cos.empty(), p.sin.empty());
  if (!p.cos.empty()) {
    BATON_CHECK_EQ(p.cos.dim(1), p.sin.dim(1));
    BATON_CHECK_LE(p.cos.dim(1) * 2, any.dim(2));
  }
  double bytes = 0;
  for (const auto& s : p.segments) {
    CheckRows(s.rows, any.dim(0), s.kv);
    BATON_CHECK_EQ(s.kv.layout.kv_heads, p.k.dim(1));
    BATON_CHECK_EQ(s.kv.layout.head_dim, p.k.dim(2));
    BATON_CHECK_EQ(s.kv.layout.values, !p.v.empty());
    bytes += static_cast<double>(s.rows.count * s.kv.layout.row_bytes());
  }
  Trace::Scope scope(trace_, OpKind::kStore, bytes,
                     3.0 * static_cast<double>(p.q.size() + p.k.size()));
  DoStore(p);
}

void Ops::Attend(const AttendParams& p) {
  BATON_CHECK(p.q.rank() == 3 && p.o.rank() == 3);
  BATON_CHECK(p.o.contiguous() && p.q.contiguous());
  BATON_CHECK(p.scale > 0);  // amx applies it after a row's maximum
  double bytes = 0, flops = 0;
  for (const auto& s : p.segments) {
    CheckRows(s.rows, p.q.dim(0), s.kv);
    BATON_CHECK_EQ(p.q.dim(1) % s.kv.layout.kv_heads, 0);
    BATON_CHECK_EQ(s.kv.layout.head_dim, p.q.dim(2));
    BATON_CHECK(s.kv.layout.values);
    BATON_CHECK(s.scores == nullptr || s.keys.kind == KeySet::Kind::kAll);
    BATON_CHECK(s.keys.kind != KeySet::Kind::kIndex || s.keys.index != nullptr);
    if (trace_.enabled) {
      const double keys = VisibleKeys(s);
      bytes += keys * static_cast<double>(s.kv.layout.row_bytes());
      flops += 4.0 * keys * static_cast<double>(s.rows.count * p.q.dim(1) * p.q.dim(2));
    }
  }
  Trace::Scope scope(trace_, OpKind::kAttend, bytes, flops);
  DoAttend(p);
}

void Ops::Merge(const MergeParams& p) {
  BATON_CHECK(p.out.rank() == 3);
  const int64_t rows = p.out.dim(0), heads = p.out.dim(1), dim = p.out.dim(2);
  BATON_CHECK(!p.parts.empty() && p.parts.size() <= size_t{MergeParams::kMaxParts});
  double bytes = 4.0 * static_cast<double>(p.out.size());
  for (const auto& part : p.parts) {
    BATON_CHECK(part.o.rank() == 3 && part.lse.rank() == 2);
    BATON_CHECK(part.o.dim(0) == rows && part.o.dim(1) == heads && part.o.dim(2) == dim);
    BATON_CHECK(part.lse.dim(0) == rows && part.lse.dim(1) == heads);
    const bool first = &part == &p.parts[0];
    BATON_CHECK(p.gated_sum || first || (part.sink_logit == nullptr && part.gate.empty()));
    if (!part.gate.empty()) {
      BATON_CHECK_EQ(part.gate.dim(0), rows);
      BATON_CHECK(part.gate.dim(1) == heads || part.gate.dim(1) == heads * dim);
    }
    bytes += 4.0 * static_cast<double>(part.o.size() + part.gate.size());
  }
  if (rows == 0) return;
  Trace::Scope scope(trace_, OpKind::kMerge, bytes,
                     2.0 * static_cast<double>(p.out.size()) * static_cast<double>(p.parts.size()));
  DoMerge(p);
}

void Ops::Mass(const MassParams& p) {
  const bool log = p.score == MassParams::Score::kLogProbability;
  BATON_CHECK(p.block >= 1 && (log || p.block == 1));
  BATON_CHECK(!log || p.source != MassParams::Source::kLowBit);
  BATON_CHECK(log || p.source == MassParams::Source::kLowBit || !p.lse.empty());
  double bytes = 0, flops = 0;
  for (const auto& s : p.segments) {
    CheckRows(s.rows, p.q.dim(0), s.kv);
    BATON_CHECK(s.mass != nullptr && s.rows_per_set >= 1 && (!log || s.rows_per_set == 1));
    BATON_CHECK_GE(s.mass_stride, s.rows.position + s.rows.count);
    BATON_CHECK(p.source != MassParams::Source::kScores || s.scores != nullptr);
    BATON_CHECK(p.source != MassParams::Source::kLowBit || s.kv.layout.low_bit);
    const double n = static_cast<double>(s.rows.position + s.rows.count);
    const auto& l = s.kv.layout;
    if (p.source == MassParams::Source::kLowBit) {
      bytes += n * static_cast<double>(l.kv_heads * (l.head_dim / 2 + l.head_dim / 32 * 2));
    } else if (p.source == MassParams::Source::kScores) {
      bytes += n * 4.0 * static_cast<double>(s.rows.count * p.q.dim(1));
    } else {
      bytes += n * static_cast<double>(l.value_offset());
    }
    flops += 2.0 * n * static_cast<double>(s.rows.count * p.q.dim(1) * p.q.dim(2));
  }
  Trace::Scope scope(trace_, OpKind::kMass, bytes, flops);
  DoMass(p);
}

void Ops::Select(const SelectParams& p) {
  double bytes = 0;
  BATON_CHECK(p.block >= 1);
  for (const auto& s : p.segments) {
    BATON_CHECK(s.out != nullptr && s.out->sets == s.sets && s.out->groups == p.groups);
    BATON_CHECK_EQ(static_cast<int64_t>(s.visible.size()), s.sets);
    BATON_CHECK_EQ(static_cast<int64_t>(s.k.size()), s.sets);
    BATON_CHECK_EQ(static_cast<int64_t>(s.recent.size()), s.sets);
    for (int64_t i = 0; i < s.sets; ++i) {
      bytes += 4.0 * static_cast<double>(p.groups * s.visible[static_cast<size_t>(i)]);
    }
  }
  Trace::Scope scope(trace_, OpKind::kSelect, bytes, 0);
  DoSelect(p);
}

void Ops::Embed(const EmbedParams& p) {
  BATON_CHECK(p.table != nullptr && p.x.rank() == 2);
  BATON_CHECK_EQ(p.x.dim(0), std::ssize(p.tokens));
  BATON_CHECK_EQ(p.x.dim(1), p.table->cols);
  for (int32_t token : p.tokens) BATON_CHECK(token >= 0 && token < p.table->rows);
  if (!p.smear.empty()) {
    BATON_CHECK_EQ(std::ssize(p.smear), p.table->cols);
    BATON_CHECK_EQ(std::ssize(p.previous), std::ssize(p.tokens));
    for (int32_t token : p.previous) BATON_CHECK(token >= -1 && token < p.table->rows);
  }
  const double bytes = static_cast<double>(p.x.dim(0)) *
                       static_cast<double>(BytesOf(p.table->dtype, p.table->cols) + 4 * p.x.dim(1));
  Trace::Scope scope(trace_, OpKind::kEmbed, bytes, static_cast<double>(p.x.size()));
  DoEmbed(p);
}

void Ops::Gather(const GatherParams& p) {
  const KvLayout &from = p.from.layout, &to = p.to.layout;
  BATON_CHECK(from.dtype == to.dtype && from.kv_heads == to.kv_heads &&
              from.head_dim == to.head_dim && from.values == to.values);
  BATON_CHECK_LE(std::ssize(p.positions), p.to.length);
  if (device().host()) {
    for (const int32_t position : p.positions)
      BATON_CHECK(position >= 0 && position < p.from.length);
  }
  const double bytes =
      2.0 * static_cast<double>(std::ssize(p.positions)) * static_cast<double>(from.row_bytes());
  Trace::Scope scope(trace_, OpKind::kGather, bytes, 0);
  DoGather(p);
}

void Ops::CopyRows(const CopyRowsParams& p) {
  BATON_CHECK(p.from.rank() == 2 && p.to.rank() == 2);
  BATON_CHECK_EQ(p.to.dim(0), std::ssize(p.rows));
  BATON_CHECK_EQ(p.to.dim(1), p.from.dim(1));
  for (int64_t row : p.rows) BATON_CHECK(row >= 0 && row < p.from.dim(0));
  Trace::Scope scope(trace_, OpKind::kCopyRows, 8.0 * static_cast<double>(p.to.size()), 0);
  DoCopyRows(p);
}

void Ops::Sample(const SampleParams& p) {
  BATON_CHECK(p.logits.contiguous() && p.logits.dim(1) > 0 && p.sampled != nullptr);
  BATON_CHECK_EQ(p.logits.dim(0), std::ssize(p.rows));
  const int64_t vocab = p.logits.dim(1);
  for (const SampleRow& r : p.rows) {
    BATON_CHECK(r.uniform >= 0 && r.uniform < 1);
    BATON_CHECK(r.temperature >= 0 && r.top_k >= 0 && r.top_p > 0 && r.top_p <= 1);
    BATON_CHECK(r.min_p >= 0 && r.min_p <= 1 && r.repetition_penalty > 0);
    BATON_CHECK(r.mask.empty() || std::ssize(r.mask) == (vocab + 31) / 32);
    for (size_t i = 0; i < r.entries.size(); ++i) {
      BATON_CHECK(r.entries[i].token > (i > 0 ? r.entries[i - 1].token : -1));
      BATON_CHECK_LT(r.entries[i].token, vocab);
    }
  }
  if (p.rows.empty()) return;
  Trace::Scope scope(trace_, OpKind::kSample, 4.0 * static_cast<double>(p.logits.size()), 0);
  DoSample(p);
}

void Ops::Add(const AddParams& p) {
  BATON_CHECK(p.x.contiguous() && p.y.contiguous());
  BATON_CHECK_EQ(p.x.size(), p.y.size());
  Trace::Scope scope(trace_, OpKind::kAdd, 12.0 * static_cast<double>(p.x.size()),
                     static_cast<double>(p.x.size()));
  DoAdd(p);
}

void Ops::RotaryTable(const RotaryTableParams& p) {
  BATON_CHECK(p.cos.rank() == 2 && p.sin.rank() == 2);
  BATON_CHECK_EQ(p.cos.dim(1), std::ssize(p.frequencies));
  BATON_CHECK_EQ(p.sin.dim(1), std::ssize(p.frequencies));
  double bytes = 0;
  for (const Rows& r : p.segments) {
    BATON_CHECK(r.first >= 0 && r.count >= 0 && r.position >= 0);
    BATON_CHECK(r.first + r.count <= p.cos.dim(0) && r.first + r.count <= p.sin.dim(0));
    bytes += 8.0 * static_cast<double>(r.count * p.cos.dim(1));
  }
  Trace::Scope scope(trace_, OpKind::kRotaryTable, bytes, 0);
  DoRotaryTable(p);
}

void Ops::Route(const RouteParams& p) {
  BATON_CHECK(p.q.rank() == 3 && p.q.dim(0) > 0 && p.weights != nullptr && p.logits != nullptr);
  double parameters = 0;
  int64_t in = p.q.dim(2);
  const auto check = [&](const RouterWeights::Layer& l) {
    BATON_CHECK(l.weight.rank() == 2 && l.bias != nullptr);
    BATON_CHECK_EQ(l.weight.dim(1), in);
    in = l.weight.dim(0);
    parameters += static_cast<double>(l.weight.size() + in);
  };
  for (const auto& l : p.weights->encoder) check(l);
  for (const auto& l : p.weights->head) check(l);
  BATON_CHECK_EQ(in, 2);
  Trace::Scope scope(trace_, OpKind::kRoute, 4 * (parameters + static_cast<double>(p.q.size())),
                     2 * parameters + static_cast<double>(p.q.size()));
  DoRoute(p);
}

}  // namespace baton
