#include "model/transformer.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "formats/dequantize.h"

namespace baton {
namespace {

// Logits are made for this many rows at a time: 64 rows of a 262,144 word vocabulary are 67 MB.
constexpr int64_t kLogitRows = 64;

std::vector<float> Expand(const TensorInfo* t, float add = 0) {
  if (t == nullptr) return {};
  std::vector<float> values(static_cast<size_t>(t->elements()));
  Dequantize(t->dtype, t->data, 0, t->elements(), values.data());
  for (float& v : values) v += add;
  return values;
}

RawMatrix Raw(const TensorInfo& t) { return {t.dtype, t.data, t.shape[0], t.shape[1]}; }

const float* OrNull(const std::vector<float>& v) { return v.empty() ? nullptr : v.data(); }

View<float> Matrix2(std::vector<float>& storage, int64_t rows, int64_t cols) {
  if (static_cast<int64_t>(storage.size()) < rows * cols)
    storage.resize(static_cast<size_t>(rows * cols));
  return View<float>(storage.data(), {rows, cols});
}

View<float> Heads(const View<float>& m, int64_t heads) {
  return View<float>(m.data(), {m.dim(0), heads, m.dim(1) / heads});
}

}  // namespace

Result<Weights> Weights::Load(const Checkpoint& checkpoint, Ops& ops) {
  Weights w;
  const float plus = checkpoint.config.norm_plus_one ? 1.0f : 0.0f;
  const auto pack = [&](const TensorInfo* t, std::unique_ptr<Matrix>& to) -> Status {
    BATON_ASSIGN(to, ops.Pack(Raw(*t)));
    if (checkpoint.storage) checkpoint.Release(*t);  // the copy is what is read from now on
    w.bytes_per_token += to->bytes;
    return Status::Ok();
  };
  // The largest first: while one is packed, its original counts beside all copies made so far.
  BATON_TRY(pack(checkpoint.output, w.output));
  for (const LayerTensors& t : checkpoint.layers) {
    LayerWeights& l = w.layers.emplace_back();
    l.attn_norm = Expand(t.attn_norm, plus);
    l.q_norm = Expand(t.q_norm, plus);
    l.k_norm = Expand(t.k_norm, plus);
    l.post_attn_norm = Expand(t.post_attn_norm, plus);
    l.ffn_norm = Expand(t.ffn_norm, plus);
    l.post_ffn_norm = Expand(t.post_ffn_norm, plus);
    l.q_bias = Expand(t.q_bias);
    l.k_bias = Expand(t.k_bias);
    l.v_bias = Expand(t.v_bias);
    BATON_TRY(pack(t.q, l.q));
    BATON_TRY(pack(t.k, l.k));
    BATON_TRY(pack(t.v, l.v));
    BATON_TRY(pack(t.o, l.o));
    BATON_TRY(pack(t.gate, l.gate));
    BATON_TRY(pack(t.up, l.up));
    BATON_TRY(pack(t.down, l.down));
  }
  w.output_norm = Expand(checkpoint.output_norm, plus);
  w.embedding = Raw(*checkpoint.embedding);
  return w;
}

Transformer::Transformer(const ModelConfig& config, Weights weights, Ops& ops, ModelShape shape)
    : config_(config),
      weights_(std::move(weights)),
      ops_(ops),
      shape_(std::move(shape)),
      attention_(ops, shape_, config.attention_scale) {
  for (const RopeConfig& r : config_.rope)
    rope_.push_back({RopeFrequencies(r, config_.head_dim), {}, {}});
}

Status Transformer::Forward(const ForwardBatch& batch) {
  rows_ = static_cast<int64_t>(batch.tokens.size());
  if (rows_ == 0) return Status::Ok();
  ThreadPool::Hot hot(ops_.threads());
  fine_ = std::any_of(batch.segments.begin(), batch.segments.end(),
                      [](const AttentionSegment& s) { return !s.prompt; });
  attention_.Begin(batch.segments, batch.observer);
  PrepareRope(batch);
  const View<float> x = Matrix2(x_, rows_, config_.width);
  if (batch.hidden) {
    std::copy_n(batch.hidden, x.size(), x.data());
  } else {
    ops_.Embed({.table = &weights_.embedding,
                .tokens = batch.tokens,
                .scale = config_.embedding_scale,
                .x = x});
  }
  const int end = batch.end_layer < 0 ? config_.layers : batch.end_layer;
  for (int l = batch.first_layer; l < end; ++l) {
    if (batch.capture) std::copy_n(x.data(), x.size(), batch.capture + l * x.size());
    BATON_TRY(Layer(l, batch));
  }
  Output(batch);
  return Status::Ok();
}

// The model card: x += attention(norm(x)); x += ffn(norm(x)). Norms in front are fused into the
// products that follow them; where the model norms a branch before adding it (Gemma 3), the branch
// is kept apart.
Status Transformer::Layer(int l, const ForwardBatch& batch) {
  const LayerWeights& w = weights_.layers[static_cast<size_t>(l)];
  const ModelConfig& c = config_;
  const View<float> x = Matrix2(x_, rows_, c.width);
  const View<float> q = Matrix2(q_, rows_, c.heads * c.head_dim);
  const View<float> k = Matrix2(k_, rows_, c.kv_heads * c.head_dim);
  const View<float> v = Matrix2(v_, rows_, c.kv_heads * c.head_dim);
  const View<float> o = Matrix2(o_, rows_, c.heads * c.head_dim);
  const View<float> ffn = Matrix2(ffn_, rows_, c.ffn_width);

  const LinearParams::Out qkv[] = {{w.q.get(), OrNull(w.q_bias), q},
                                   {w.k.get(), OrNull(w.k_bias), k},
                                   {w.v.get(), OrNull(w.v_bias), v}};
  ops_.Linear({.x = x,
               .norm_weight = w.attn_norm.data(),
               .norm_eps = c.norm_eps,
               .outs = qkv,
               .fine = fine_});

  const RopeTable& rope = rope_[static_cast<size_t>(c.layer[static_cast<size_t>(l)].rope)];
  BATON_TRY(attention_.Run(l,
                           {.q = Heads(q, c.heads),
                            .k = Heads(k, c.kv_heads),
                            .v = Heads(v, c.kv_heads),
                            .q_norm = OrNull(w.q_norm),
                            .k_norm = OrNull(w.k_norm),
                            .norm_eps = c.norm_eps,
                            .cos = View<const float>(rope.cos.data(), {rows_, c.head_dim / 2}),
                            .sin = View<const float>(rope.sin.data(), {rows_, c.head_dim / 2}),
                            .interleaved = c.rope_interleaved,
                            .segments = {}},
                           Heads(o, c.heads)));
  const Matrix* const gate[] = {w.gate.get()};
  AddBranch(o, *w.o, w.post_attn_norm, gate, batch.tap_layer == l ? batch.tap : nullptr);

  const Matrix* const down[] = {w.down.get()};
  ops_.Glu({.x = x,
            .norm_weight = w.ffn_norm.data(),
            .norm_eps = c.norm_eps,
            .gate = w.gate.get(),
            .up = w.up.get(),
            .activation =
                c.activation == Activation::kSilu ? GluActivation::kSilu : GluActivation::kGeluTanh,
            .y = ffn,
            .then = down,
            .fine = fine_});
  const bool last = l + 1 == c.layers;
  const LayerWeights& after = weights_.layers[static_cast<size_t>(last ? l : l + 1)];
  const Matrix* const qkv_after[] = {after.q.get(), after.k.get(), after.v.get()};
  const Matrix* const output[] = {weights_.output.get()};
  AddBranch(ffn, *w.down, w.post_ffn_norm,
            last ? std::span<const Matrix* const>(output) : qkv_after, nullptr);
  return Status::Ok();
}

// x += norm(input W^T), the norm where the model has one. `then` is what the next product
// multiplies with; `tap` receives input W^T.
void Transformer::AddBranch(const View<float>& input, const Matrix& w,
                            const std::vector<float>& norm, std::span<const Matrix* const> then,
                            float* tap) {
  const View<float> x = Matrix2(x_, rows_, config_.width);
  if (norm.empty() && tap == nullptr) {
    const LinearParams::Out out{&w, nullptr, x};
    ops_.Linear(
        {.x = input, .outs = std::span(&out, 1), .accumulate = true, .then = then, .fine = fine_});
    return;
  }
  const View<float> branch = Matrix2(branch_, rows_, config_.width);
  const LinearParams::Out out{&w, nullptr, branch};
  ops_.Linear({.x = input, .outs = std::span(&out, 1), .then = then, .fine = fine_});
  if (tap) std::copy_n(branch.data(), branch.size(), tap);
  if (!norm.empty()) {
    ops_.Norm(
        {.x = branch, .weight = norm.data(), .eps = config_.norm_eps, .y = x, .accumulate = true});
  } else {
    ops_.Add({.x = x, .y = branch});
  }
}

void Transformer::PrepareRope(const ForwardBatch& batch) {
  std::vector<Rows> segments;
  for (const AttentionSegment& s : batch.segments) segments.push_back(s.rows);
  for (size_t r = 0; r < rope_.size(); ++r) {
    RopeTable& table = rope_[r];
    const RopeConfig& config = config_.rope[r];
    const int64_t half = std::ssize(table.frequencies);
    ops_.RotaryTable(
        {.frequencies = table.frequencies,
         .gain = config.scaling == RopeConfig::Scaling::kYarn ? config.attention_factor : 1.0f,
         .segments = segments,
         .cos = Matrix2(table.cos, rows_, half),
         .sin = Matrix2(table.sin, rows_, half)});
  }
}

void Transformer::Output(const ForwardBatch& batch) {
  if (!batch.on_logits) return;
  const auto wanted = static_cast<int64_t>(batch.logit_rows.size());
  for (int64_t first = 0; first < wanted; first += kLogitRows) {
    const int64_t n = std::min(kLogitRows, wanted - first);
    const View<float> rows = Matrix2(rows_x_, n, config_.width);
    ops_.CopyRows(
        {.from = Matrix2(x_, rows_, config_.width),
         .rows = batch.logit_rows.subspan(static_cast<size_t>(first), static_cast<size_t>(n)),
         .to = rows});
    const View<float> logits = Matrix2(logits_, n, config_.vocab);
    const LinearParams::Out out{weights_.output.get(), nullptr, logits};
    ops_.Linear({.x = rows,
                 .norm_weight = weights_.output_norm.data(),
                 .norm_eps = config_.norm_eps,
                 .outs = std::span(&out, 1),
                 .fine = true});
    batch.on_logits(first, logits);
  }
}

}  // namespace baton
