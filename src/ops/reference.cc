// The oracle: every operation exactly as defined, in single precision with double accumulators
// where sums are long.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/buffer.h"
#include "base/check.h"
#include "formats/dequantize.h"
#include "kv/low_bit.h"
#include "ops/ops.h"

namespace baton {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

struct FloatMatrix : Matrix {
  Buffer values;  // [rows, cols] f32
  const float* row(int64_t r) const { return values.as<float>() + r * cols; }
};

float LoadElement(const KvView& kv, int64_t position, bool value, int head, int64_t d) {
  const KvLayout& l = kv.layout;
  const std::byte* p = kv.row(position) + (value ? l.value_offset() : 0) + head * l.head_bytes();
  switch (l.dtype) {
    case DType::kF32:
      return reinterpret_cast<const float*>(p)[d];
    case DType::kBF16:
      return ToFloat(reinterpret_cast<const bf16*>(p)[d]);
    default:
      return static_cast<float>(reinterpret_cast<const int8_t*>(p)[d]) *
             *kv.scale(position, value, head);
  }
}

void StoreRow(const KvView& kv, int64_t position, bool value, int head, const float* x) {
  const KvLayout& l = kv.layout;
  std::byte* p = kv.row(position) + (value ? l.value_offset() : 0) + head * l.head_bytes();
  switch (l.dtype) {
    case DType::kF32:
      std::copy_n(x, l.head_dim, reinterpret_cast<float*>(p));
      return;
    case DType::kBF16:
      for (int64_t d = 0; d < l.head_dim; ++d) reinterpret_cast<bf16*>(p)[d] = ToBf16(x[d]);
      return;
    default: {
      float largest = 0;
      for (int64_t d = 0; d < l.head_dim; ++d) largest = std::max(largest, std::fabs(x[d]));
      const float scale = largest / 127.0f;
      const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
      *kv.scale(position, value, head) = scale;
      for (int64_t d = 0; d < l.head_dim; ++d) {
        reinterpret_cast<int8_t*>(p)[d] = static_cast<int8_t>(std::lrintf(x[d] * inverse));
      }
    }
  }
}

float SiluOrGelu(GluActivation a, float x) {
  if (a == GluActivation::kSilu) return x / (1.0f + std::exp(-x));
  const float inner = 0.7978845608028654f * (x + 0.044715f * x * x * x);
  return 0.5f * x * (1.0f + std::tanh(inner));
}

void RmsNorm(const float* x, const float* weight, float eps, int64_t n, float* y) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * x[i];
  const float scale = 1.0f / std::sqrt(static_cast<float>(sum / static_cast<double>(n)) + eps);
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] * scale * weight[i];
}

// Rotates the first `dim` values of a head.
void Rotate(float* x, const float* cos, const float* sin, int64_t dim, bool interleaved) {
  for (int64_t i = 0; i < dim / 2; ++i) {
    float& a = interleaved ? x[2 * i] : x[i];
    float& b = interleaved ? x[2 * i + 1] : x[i + dim / 2];
    const float r = a * cos[i] - b * sin[i];
    b = a * sin[i] + b * cos[i];
    a = r;
  }
}

// What Store does to one head of q or k in row t.
void PrepareHead(const StoreParams& p, float* x, int64_t dim, const float* norm, int64_t t) {
  if (norm) RmsNorm(x, norm, p.norm_eps, dim, x);
  if (!p.cos.empty()) Rotate(x, p.cos.row(t), p.sin.row(t), p.cos.dim(1) * 2, p.interleaved);
  if (p.round_bf16) std::transform(x, x + dim, x, [](float v) { return ToFloat(ToBf16(v)); });
}

// Calls f(position) for each key that row t (at `position`) attends to, ascending.
template <typename F>
void ForEachKey(const KeySet& keys, int64_t t, int64_t position, int kv_head, F&& f) {
  if (keys.kind == KeySet::Kind::kIndex) {
    const int64_t set = t / keys.rows_per_set;
    const int64_t group =
        keys.index->groups == 1 ? 0 : (keys.head_map ? keys.head_map[kv_head] : kv_head);
    const int32_t* list = keys.index->list(set, group);
    for (int32_t i = 0; i < keys.index->count(set, group); ++i) {
      if (list[i] <= position) f(list[i]);
    }
    return;
  }
  for (int64_t n = 0; n <= position; ++n) {
    if (keys.kind == KeySet::Kind::kWindow && n >= keys.sink && n <= position - keys.recent)
      continue;
    f(n);
  }
}

class ReferenceOps final : public Ops {
 public:
  explicit ReferenceOps(ThreadPool& threads) : Ops(threads) {}
  std::string name() const override { return "ref"; }

  Result<std::unique_ptr<Matrix>> Pack(const RawMatrix& raw) override {
    auto m = std::make_unique<FloatMatrix>();
    m->rows = raw.rows;
    m->cols = raw.cols;
    m->bytes = raw.rows * raw.cols * 4;
    BATON_ASSIGN(m->values, Buffer::Allocate(m->bytes));
    threads_.For(raw.rows, [&](int64_t r, int) {
      Dequantize(raw.dtype, raw.data, r * raw.cols, raw.cols, m->values.as<float>() + r * raw.cols);
    });
    return std::unique_ptr<Matrix>(std::move(m));
  }

 protected:
  static const FloatMatrix& Cast(const Matrix* m) { return *static_cast<const FloatMatrix*>(m); }

  // x with the norm applied, when there is one.
  static std::vector<float> Input(View<const float> x, const float* weight, float eps) {
    const int64_t n = x.dim(1);
    std::vector<float> y(static_cast<size_t>(x.dim(0) * n));
    for (int64_t t = 0; t < x.dim(0); ++t) {
      float* row = y.data() + t * n;
      if (weight) {
        RmsNorm(x.row(t), weight, eps, n, row);
      } else {
        std::copy_n(x.row(t), n, row);
      }
    }
    return y;
  }

  static float Dot(const float* a, const float* b, int64_t n) {
    float lanes[16] = {};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
      for (int l = 0; l < 16; ++l) lanes[l] += a[i + l] * b[i + l];
    }
    float sum = 0;
    for (; i < n; ++i) sum += a[i] * b[i];
    for (float l : lanes) sum += l;
    return sum;
  }

  void DoLinear(const LinearParams& p) override {
    const std::vector<float> x = Input(p.x, p.norm_weight, p.norm_eps);
    const int64_t in = p.x.dim(1);
    for (const auto& out : p.outs) {
      const FloatMatrix& w = Cast(out.w);
      threads_.For(w.rows, [&](int64_t r, int) {
        for (int64_t t = 0; t < p.x.dim(0); ++t) {
          float y = Dot(x.data() + t * in, w.row(r), in) + (out.bias ? out.bias[r] : 0.0f);
          if (p.accumulate) y += out.y.row(t)[r];
          out.y.row(t)[r] = y;
        }
      });
    }
  }

  void DoGlu(const GluParams& p) override {
    const std::vector<float> x = Input(p.x, p.norm_weight, p.norm_eps);
    const int64_t in = p.x.dim(1);
    threads_.For(p.gate->rows, [&](int64_t r, int) {
      for (int64_t t = 0; t < p.x.dim(0); ++t) {
        const float gate = Dot(x.data() + t * in, Cast(p.gate).row(r), in);
        const float up = Dot(x.data() + t * in, Cast(p.up).row(r), in);
        p.y.row(t)[r] = SiluOrGelu(p.activation, gate) * up;
      }
    });
  }

  void DoNorm(const NormParams& p) override {
    const int64_t n = p.x.dim(1);
    std::vector<float> y(static_cast<size_t>(n));
    for (int64_t t = 0; t < p.x.dim(0); ++t) {
      RmsNorm(p.x.row(t), p.weight, p.eps, n, y.data());
      for (int64_t i = 0; i < n; ++i) {
        p.y.row(t)[i] =
            p.accumulate ? p.y.row(t)[i] + y[static_cast<size_t>(i)] : y[static_cast<size_t>(i)];
      }
    }
  }

  void DoStore(const StoreParams& p) override {
    const auto queries = [&](int64_t t) {
      for (int h = 0; !p.q.empty() && h < p.q.dim(1); ++h)
        PrepareHead(p, p.q.row(t, h), p.q.dim(2), p.q_norm, t);
    };
    if (p.k.empty()) {
      for (int64_t t = 0; t < p.q.dim(0); ++t) queries(t);
      return;
    }
    const int64_t dim = p.k.dim(2);
    for (const auto& s : p.segments) {
      for (int64_t i = 0; i < s.rows.count; ++i) {
        const int64_t t = s.rows.first + i;
        const int64_t position = s.rows.position + i;
        queries(t);
        for (int h = 0; h < p.k.dim(1); ++h) {
          PrepareHead(p, p.k.row(t, h), dim, p.k_norm, t);
          StoreRow(s.kv, position, false, h, p.k.row(t, h));
          if (s.kv.layout.values) StoreRow(s.kv, position, true, h, p.v.row(t, h));
          if (s.kv.layout.low_bit) {
            std::vector<float> k(static_cast<size_t>(dim));
            for (int64_t d = 0; d < dim; ++d)
              k[static_cast<size_t>(d)] = LoadElement(s.kv, position, false, h, d);
            StoreLowBit(s.kv, position, h, k.data());
          }
        }
      }
    }
  }

  // K or V of the first `n` positions as floats, [n, Hkv, D]: expanded once a call instead of once
  // a use.
  std::vector<float> Expand(const KvView& kv, bool value, int64_t n) {
    const KvLayout& l = kv.layout;
    std::vector<float> all(static_cast<size_t>(n * l.kv_heads * l.head_dim));
    threads_.For(n, [&](int64_t i, int) {
      if (kv.pages[i / KvLayout::kSlots] < 0) return;  // dropped by a ring: no row reads it
      float* to = all.data() + i * l.kv_heads * l.head_dim;
      for (int h = 0; h < l.kv_heads; ++h) {
        for (int64_t d = 0; d < l.head_dim; ++d) *to++ = LoadElement(kv, i, value, h, d);
      }
    });
    return all;
  }

  void DoAttend(const AttendParams& p) override {
    const int64_t dim = p.q.dim(2);
    const int64_t heads = p.q.dim(1);
    for (const auto& s : p.segments) {
      const int64_t kv_heads = s.kv.layout.kv_heads;
      const std::vector<float> k = Expand(s.kv, false, s.rows.position + s.rows.count);
      const std::vector<float> v = Expand(s.kv, true, s.rows.position + s.rows.count);
      threads_.For(s.rows.count * heads, [&](int64_t unit, int) {
        const int64_t i = unit / heads;
        const int64_t h = unit % heads;
        const int64_t t = s.rows.first + i;
        const int kv_head = static_cast<int>(h / (heads / kv_heads));
        std::vector<int64_t> keys;
        std::vector<float> scores;
        ForEachKey(s.keys, i, s.rows.position + i, kv_head, [&](int64_t n) {
          keys.push_back(n);
          scores.push_back(p.scale *
                           Dot(p.q.row(t, h), k.data() + (n * kv_heads + kv_head) * dim, dim));
        });
        if (s.scores)
          std::copy(scores.begin(), scores.end(), s.scores + (i * heads + h) * s.score_stride);
        float lse = kMinusInfinity;
        AttendRow(keys, scores, v.data() + kv_head * dim, kv_heads * dim, dim, p.o.row(t, h), lse);
        if (!p.lse.empty()) p.lse.row(t)[h] = lse;
      });
    }
  }

  // o = softmax(scores) V over the listed keys.
  static void AttendRow(const std::vector<int64_t>& keys, const std::vector<float>& scores,
                        const float* v, int64_t v_stride, int64_t dim, float* o, float& lse) {
    std::fill_n(o, dim, 0.0f);
    if (keys.empty()) return;
    float largest = kMinusInfinity;
    for (float x : scores) {
      if (std::isnan(x)) {
        lse = std::numeric_limits<float>::quiet_NaN();
        std::fill_n(o, dim, lse);
        return;
      }
      largest = std::max(largest, x);
    }
    double sum = 0;
    std::vector<double> total(static_cast<size_t>(dim));
    for (size_t n = 0; n < keys.size(); ++n) {
      const double e = std::exp(static_cast<double>(scores[n]) - largest);
      sum += e;
      for (int64_t d = 0; d < dim; ++d)
        total[static_cast<size_t>(d)] += e * v[keys[n] * v_stride + d];
    }
    for (int64_t d = 0; d < dim; ++d)
      o[d] = static_cast<float>(total[static_cast<size_t>(d)] / sum);
    lse = static_cast<float>(largest + std::log(sum));
  }

  void DoMerge(const MergeParams& p) override {
    const int64_t heads = p.out.dim(1), dim = p.out.dim(2);
    threads_.For(p.out.dim(0) * heads, [&](int64_t unit, int) {
      const int64_t t = unit / heads, h = unit % heads;
      const std::vector<double> shares = Shares(p, t, h);
      for (int64_t d = 0; d < dim; ++d) {
        double sum = 0;
        for (size_t b = 0; b < p.parts.size(); ++b) {
          if (shares[b] == 0) continue;
          const double factor = p.gated_sum ? Gate(p.parts[b].gate, heads, t, h, d, dim) : 1;
          sum += shares[b] * factor * p.parts[b].o.row(t, h)[d];
        }
        if (!p.gated_sum) sum *= Gate(p.parts[0].gate, heads, t, h, d, dim);
        p.out.row(t, h)[d] = static_cast<float>(sum);
      }
    });
  }

  // The weight of each part for one row and head, before its gate.
  static std::vector<double> Shares(const MergeParams& p, int64_t t, int64_t h) {
    std::vector<double> shares;
    for (const auto& part : p.parts) {
      const double lse = part.lse.row(t)[h];
      double total = 0;  // the softmax's denominator, divided by e^lse
      if (lse > kMinusInfinity || std::isnan(lse)) {
        for (const auto& other : p.parts) {
          if (p.gated_sum && &other != &part) continue;
          total += std::exp(other.lse.row(t)[h] - lse);
          if (other.sink_logit) total += std::exp(other.sink_logit[h] - lse);
        }
      }
      shares.push_back(total == 0 ? 0 : 1 / total);
    }
    return shares;
  }

  // The factor of a channel; the gate's logits are per channel or per head.
  static double Gate(const View<const float>& gate, int64_t heads, int64_t t, int64_t h, int64_t d,
                     int64_t dim) {
    if (gate.empty()) return 1;
    const double logit = gate.row(t)[gate.dim(1) == heads ? h : h * dim + d];
    return 1 / (1 + std::exp(-logit));
  }

  // Scaled scores of one query head and keys [0, position], [position + 1].
  static std::vector<float> Scores(const MassParams& p, const MassParams::Segment& s, int64_t i,
                                   int64_t h) {
    const int64_t dim = p.q.dim(2);
    const int64_t heads = p.q.dim(1);
    const int kv_head = static_cast<int>(h / (heads / s.kv.layout.kv_heads));
    const int64_t n = s.rows.position + i + 1;
    const float* q = p.q.row(s.rows.first + i, h);
    std::vector<float> x(static_cast<size_t>(n));
    std::vector<float> k(static_cast<size_t>(dim));
    for (int64_t j = 0; j < n; ++j) {
      if (p.source == MassParams::Source::kScores) {
        x[static_cast<size_t>(j)] = s.scores[(i * heads + h) * s.score_stride + j];
        continue;
      }
      if (p.source == MassParams::Source::kLowBit) {
        LoadLowBit(s.kv, j, kv_head, k.data());
      } else {
        for (int64_t d = 0; d < dim; ++d)
          k[static_cast<size_t>(d)] = LoadElement(s.kv, j, false, kv_head, d);
      }
      x[static_cast<size_t>(j)] = p.scale * std::inner_product(q, q + dim, k.begin(), 0.0f);
    }
    return x;
  }

  // Probabilities of one query head over keys [0, position], [position + 1].
  static std::vector<float> Probabilities(const MassParams& p, const MassParams::Segment& s,
                                          int64_t i, int64_t h) {
    std::vector<float> x = Scores(p, s, i, h);
    double lse;
    if (p.source == MassParams::Source::kLowBit) {
      const float largest = *std::max_element(x.begin(), x.end());
      double sum = 0;
      for (float v : x) sum += std::exp(static_cast<double>(v) - largest);
      lse = largest + std::log(sum);
    } else {
      lse = p.lse.row(s.rows.first + i)[h];
    }
    for (float& v : x) v = static_cast<float>(std::exp(static_cast<double>(v) - lse));
    return x;
  }

  // One set of kLogProbability, its heads [first, last).
  static void LogProbabilities(const MassParams& p, const MassParams::Segment& s, int64_t i,
                               int64_t first, int64_t last, float* mass) {
    std::vector<std::vector<float>> heads;  // z - lse, or a block's largest
    const auto larger = [](float a, float b) { return a >= b || std::isnan(a) ? a : b; };
    for (int64_t h = first; h < last; ++h) {
      std::vector<float>& x = heads.emplace_back(Scores(p, s, i, h));
      const float lse = p.lse.empty() ? 0.0f : p.lse.row(s.rows.first + i)[h];
      for (float& v : x) v -= lse;
      const auto block = static_cast<size_t>(p.pool == Pool::kSum ? p.block : 1);
      for (size_t n = 0; n < x.size(); n += block) {
        const auto begin = x.begin() + static_cast<int64_t>(n);
        const auto end = x.begin() + static_cast<int64_t>(std::min(x.size(), n + block));
        std::fill(begin, end, std::accumulate(begin, end, kMinusInfinity, larger));
      }
    }
    std::fill_n(mass, s.rows.position + s.rows.count, kMinusInfinity);
    for (size_t n = 0; n < heads[0].size(); ++n) {
      float largest = kMinusInfinity;
      double sum = 0;
      for (const auto& x : heads) largest = larger(largest, x[n]);
      for (const auto& x : heads) sum += std::exp(static_cast<double>(x[n]) - largest);
      const bool add = p.pool == Pool::kSum && largest > kMinusInfinity;  // false for NaN
      mass[n] = add ? static_cast<float>(largest + std::log(sum)) : largest;
    }
  }

  void DoMass(const MassParams& p) override {
    const int64_t heads = p.q.dim(1);
    for (const auto& s : p.segments) {
      const int64_t groups = p.scope == MassScope::kAll     ? 1
                             : p.scope == MassScope::kGroup ? s.kv.layout.kv_heads
                                                            : heads;
      const int64_t sets = (s.rows.count + s.rows_per_set - 1) / s.rows_per_set;
      threads_.For(sets * groups, [&](int64_t unit, int) {
        const int64_t set = unit / groups;
        const int64_t group = unit % groups;
        const int64_t first_head = group * heads / groups, end_head = (group + 1) * heads / groups;
        float* mass = s.mass + unit * s.mass_stride;
        if (p.score == MassParams::Score::kLogProbability)
          return LogProbabilities(p, s, set, first_head, end_head, mass);
        std::fill_n(mass, s.rows.position + s.rows.count, 0.0f);
        const int64_t last = std::min(s.rows.count, (set + 1) * s.rows_per_set);
        for (int64_t i = set * s.rows_per_set; i < last; ++i) {
          std::vector<float> pooled(static_cast<size_t>(s.rows.position + i + 1));
          for (int64_t h = first_head; h < end_head; ++h) {
            const std::vector<float> x = Probabilities(p, s, i, h);
            for (size_t n = 0; n < x.size(); ++n) {
              pooled[n] = p.pool == Pool::kSum ? pooled[n] + x[n] : std::max(pooled[n], x[n]);
            }
          }
          for (size_t n = 0; n < pooled.size(); ++n) mass[n] += pooled[n];
        }
      });
    }
  }

  void DoSelect(const SelectParams& p) override {
    for (const auto& s : p.segments) {
      int64_t bad = std::numeric_limits<int64_t>::max();
      for (int64_t set = 0; set < s.sets; ++set) {
        for (int64_t group = 0; group < p.groups; ++group)
          bad = std::min(bad, SelectOne(p, s, set, group));
      }
      if (s.bad_position && bad < std::numeric_limits<int64_t>::max()) *s.bad_position = bad;
    }
  }

  // Returns the first position whose mass is NaN, or the largest number.
  static int64_t SelectOne(const SelectParams& p, const SelectParams::Segment& s, int64_t set,
                           int64_t group) {
    const float* mass = s.mass + (set * p.groups + group) * s.mass_stride;
    const int64_t visible = s.visible[static_cast<size_t>(set)];
    const int64_t recent = s.recent[static_cast<size_t>(set)];
    const int64_t units = (visible + p.block - 1) / p.block;
    const int64_t k = s.k[static_cast<size_t>(set)];
    const bool none = k == 0 && p.sink <= 0 && recent <= 0;
    const int64_t take = none ? 0 : std::min(units, std::max<int64_t>(1, k / p.block));
    const bool max = p.block > 1 && p.block_score == SelectParams::BlockScore::kMax;
    std::vector<float> score(static_cast<size_t>(units), max ? kMinusInfinity : 0.0f);
    std::vector<char> forced(static_cast<size_t>(units), 0);
    int64_t bad = std::numeric_limits<int64_t>::max();
    for (int64_t n = 0; n < visible; ++n) {
      if (std::isnan(mass[n])) bad = std::min(bad, n);
      float& of_unit = score[static_cast<size_t>(n / p.block)];
      of_unit = max ? std::max(of_unit, mass[n]) : of_unit + mass[n];
      if (n < p.sink || n >= visible - recent) forced[static_cast<size_t>(n / p.block)] = 1;
    }
    if (bad < visible) std::fill(score.begin(), score.end(), 0.0f);  // by position alone
    std::vector<int64_t> order(static_cast<size_t>(units));
    std::iota(order.begin(), order.end(), int64_t{0});
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      const auto i = static_cast<size_t>(a), j = static_cast<size_t>(b);
      if (forced[i] != forced[j]) return forced[i] > forced[j];
      return !forced[i] && score[i] > score[j];
    });
    order.resize(static_cast<size_t>(take));
    std::sort(order.begin(), order.end());
    int32_t* list = s.out->list(set, group);
    int32_t count = 0;
    for (int64_t unit : order) {
      for (int64_t n = unit * p.block; n < std::min(visible, (unit + 1) * p.block); ++n) {
        BATON_CHECK_LT(count, s.out->capacity);
        list[count++] = static_cast<int32_t>(n);
      }
    }
    s.out->count(set, group) = count;
    return bad;
  }
};

}  // namespace

std::unique_ptr<Ops> MakeReferenceOps(ThreadPool& threads) {
  return std::make_unique<ReferenceOps>(threads);
}

}  // namespace baton
