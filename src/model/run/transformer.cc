#include "model/run/transformer.h"

#include <algorithm>

#include "base/check.h"

namespace baton {
namespace {

// Logits are made for this many rows at a time: 64 rows of a 262,144 word vocabulary are 67 MB.
constexpr int64_t kLogitRows = 64;

using R = TensorRole;
constexpr R kGateRoles[] = {R::kAttnGate, R::kAttnGateLocal};
constexpr R kSinkRoles[] = {R::kAttnSinks, R::kAttnSinksLocal};

View<float> Matrix2(Array<float>& storage, int64_t rows, int64_t cols) {
  return View<float>(storage.Reserve(rows * cols), {rows, cols});
}

int64_t Bytes(const View<float>& v) { return v.size() * static_cast<int64_t>(sizeof(float)); }

std::byte* Address(float* data) { return reinterpret_cast<std::byte*>(data); }
const std::byte* Address(const float* data) { return reinterpret_cast<const std::byte*>(data); }

View<float> Heads(const View<float>& m, int64_t heads) {
  return View<float>(m.data(), {m.dim(0), heads, m.dim(1) / heads});
}

}  // namespace

Transformer::Transformer(const ModelConfig& config, Weights weights, Ops& ops, ModelShape shape)
    : config_(config),
      weights_(std::move(weights)),
      ops_(ops),
      shape_(std::move(shape)),
      attention_(ops, shape_, config.attention_scale),
      own_cache_(static_cast<size_t>(config.layers), -1),
      feeds_(static_cast<size_t>(config.layers) + 1),
      sampled_(ops.device()) {
  for (Array<float>* a : {&x_, &q_, &k_, &v_, &o_, &index_q_, &gates_[0], &gates_[1], &branch_,
                          &ffn_, &rows_x_, &logits_})
    *a = Array<float>(ops.device());
  for (const RopeConfig& r : config_.rope) {
    rope_.push_back({RopeFrequencies(r, config_.rope_dims), Array<float>(ops.device()),
                     Array<float>(ops.device())});
  }
  for (size_t c = 0; c < shape_.caches.size(); ++c) {
    const int owner = shape_.caches[c].owner;
    if (owner >= 0) own_cache_[static_cast<size_t>(owner)] = static_cast<int>(c);
    const int input = shape_.caches[c].kv_input;
    if (input != owner) feeds_[static_cast<size_t>(input)].push_back(static_cast<int>(c));
  }
  for (int l = 0; l < config_.layers; ++l) first_product_.push_back(FirstProduct(l));
  first_product_.push_back({weights_.model.matrix(R::kOutput)});
}

// The matrices that multiply the layer's normed input.
std::vector<const Matrix*> Transformer::FirstProduct(int l) const {
  const WeightSet& w = weights_.layers[static_cast<size_t>(l)];
  const int own = own_cache_[static_cast<size_t>(l)];
  const bool keys = own >= 0 && shape_.caches[static_cast<size_t>(own)].kv_input == l;
  std::vector<const Matrix*> all = {w.matrix(R::kQ)};
  if (keys) all.insert(all.end(), {w.matrix(R::kK), w.matrix(R::kV)});
  for (const R gate : kGateRoles)
    if (w.matrix(gate)) all.push_back(w.matrix(gate));
  return all;
}

void Transformer::Forward(const ForwardBatch& batch) {
  rows_ = static_cast<int64_t>(batch.tokens.size());
  if (rows_ == 0) return;
  const Ops::Pass pass(ops_);
  fine_ = std::any_of(batch.segments.begin(), batch.segments.end(),
                      [](const AttentionSegment& s) { return !s.prompt; });
  attention_.Begin(batch.segments, batch.observer);
  PrepareRope(batch);
  const View<float> x = Matrix2(x_, rows_, config_.width);
  Device& device = ops_.device();
  if (batch.hidden) {
    device.Copy(Address(x.data()), Address(batch.hidden), Bytes(x));
  } else {
    if (config_.smear) KeepTokens(batch);
    ops_.Embed({.table = &weights_.embedding,
                .tokens = batch.tokens,
                .scale = config_.embedding_scale,
                .x = x,
                .previous = previous_,
                .smear = weights_.smear});
  }
  const int end = batch.end_layer < 0 ? config_.layers : batch.end_layer;
  for (int l = batch.first_layer; l < end; ++l) {
    if (batch.capture) device.Download(batch.capture + l * x.size(), Address(x.data()), Bytes(x));
    if (l > batch.first_layer || !batch.fed) Feed(l);
    Layer(l, batch);
  }
  if (batch.feed_end) {
    Feed(end);
    // The layer's own K and V, whose rows go no further.
    if (end < config_.layers && own_cache_[static_cast<size_t>(end)] >= 0 &&
        shape_.caches[static_cast<size_t>(own_cache_[static_cast<size_t>(end)])].kv_input == end)
      FeedCache(own_cache_[static_cast<size_t>(end)]);
  }
  if (batch.leave) {
    const View<float> from = x.Slice(batch.leave_from, rows_);
    device.Copy(Address(batch.leave), Address(from.data()), Bytes(from));
  }
  if (end == config_.layers) return Output(batch);
  attention_.Finish();
}

// The token before each row, which may lie in an earlier pass.
void Transformer::KeepTokens(const ForwardBatch& batch) {
  previous_.resize(batch.tokens.size());
  for (const AttentionSegment& s : batch.segments) {
    const auto first = static_cast<size_t>(s.rows.first);
    const auto tokens = batch.tokens.subspan(first, static_cast<size_t>(s.rows.count));
    if (tokens.empty()) continue;
    previous_[first] = s.kv->TokenBefore(s.rows.position);
    std::copy(tokens.begin(), tokens.end() - 1, previous_.begin() + s.rows.first + 1);
    s.kv->KeepTokens(s.rows.position, tokens);
  }
}

void Transformer::SetRotation(int rope, StoreParams* store) const {
  store->norm_eps = config_.norm_eps;
  if (rope < 0) return;
  const RopeTable& table = rope_[static_cast<size_t>(rope)];
  store->cos = View<const float>(table.cos.data(), {rows_, config_.rope_dims / 2});
  store->sin = View<const float>(table.sin.data(), {rows_, config_.rope_dims / 2});
  store->interleaved = config_.rope_interleaved;
}

// Writes the caches of other owners that the stream entering layer l feeds.
void Transformer::Feed(int l) {
  for (const int c : feeds_[static_cast<size_t>(l)]) FeedCache(c);
}

// K and V (or an indexer's K) of the rows at hand, from the stream as it is now.
void Transformer::FeedCache(int c) {
  const CacheSpec& cache = shape_.caches[static_cast<size_t>(c)];
  const bool memory = cache.owner == CacheSpec::kMemory;
  const WeightSet& w = memory ? weights_.model : weights_.layers[static_cast<size_t>(cache.owner)];
  const float* norm = memory ? w.vector(R::kMemoryNorm) : w.vector(R::kBridgeNorm);
  if (norm == nullptr)
    norm = weights_.layers[static_cast<size_t>(cache.kv_input)].vector(R::kAttnNorm);
  const View<float> k = Matrix2(k_, rows_, cache.kv_heads * cache.head_dim);
  const View<float> v = Matrix2(v_, rows_, k.dim(1));
  const LinearParams::Out outs[] = {{w.matrix(!memory        ? R::kK
                                              : cache.values ? R::kMemoryK
                                                             : R::kIndexerK),
                                     nullptr, k},
                                    {w.matrix(memory ? R::kMemoryV : R::kV), nullptr, v}};
  ops_.Linear({.x = Matrix2(x_, rows_, config_.width),
               .norm_weight = norm,
               .norm_eps = config_.norm_eps,
               .outs = std::span(outs).first(cache.values ? 2 : 1),
               .fine = fine_});
  StoreParams store{
      .k = Heads(k, cache.kv_heads),
      .k_norm = !cache.values ? nullptr : w.vector(memory ? R::kMemoryKNorm : R::kKNorm)};
  if (cache.values) store.v = Heads(v, cache.kv_heads);
  store.round_bf16 = !cache.values && config_.indexer.bf16;
  SetRotation(memory ? -1 : config_.layer[static_cast<size_t>(cache.owner)].rope, &store);
  attention_.Append(c, store);
}

// What an indexer asks with, from the stream that feeds the memory: [T, 1, d_idx].
View<float> Transformer::IndexQueries(bool bf16) {
  const View<float> q = Matrix2(index_q_, rows_, config_.indexer.key_length);
  const LinearParams::Out out{weights_.model.matrix(R::kIndexerQ), nullptr, q};
  ops_.Linear({.x = Matrix2(x_, rows_, config_.width),
               .norm_weight = weights_.model.vector(R::kMemoryNorm),
               .norm_eps = config_.norm_eps,
               .outs = std::span(&out, 1),
               .fine = fine_});
  if (bf16) ops_.Store({.q = Heads(q, 1), .round_bf16 = true});
  return Heads(q, 1);
}

void Transformer::Queries(int l, View<const float> x, View<float> q) {
  const WeightSet& w = weights_.layers[static_cast<size_t>(l)];
  const LinearParams::Out out{w.matrix(R::kQ), w.vector(R::kQBias),
                              View<float>(q.data(), {q.dim(0), q.dim(1) * q.dim(2)})};
  ops_.Linear({.x = x,
               .norm_weight = w.vector(R::kAttnNorm),
               .norm_eps = config_.norm_eps,
               .outs = std::span(&out, 1),
               .fine = true});
  if (w.vector(R::kQNorm))
    ops_.Store({.q = q, .q_norm = w.vector(R::kQNorm), .norm_eps = config_.norm_eps});
}

// Projects q (and k, v, gates where the layer has them) and attends.
void Transformer::Attend(int l, const ForwardBatch& batch, View<float> o) {
  const WeightSet& w = weights_.layers[static_cast<size_t>(l)];
  const ModelConfig& c = config_;
  const LayerPlan& plan = shape_.plan[static_cast<size_t>(l)];
  const int own = own_cache_[static_cast<size_t>(l)];
  const bool writes = own >= 0 && shape_.caches[static_cast<size_t>(own)].kv_input == l &&
                      !(batch.fed && l == batch.first_layer);
  const View<float> q = Matrix2(q_, rows_, c.heads * c.head_dim);
  outs_.assign({{w.matrix(R::kQ), w.vector(R::kQBias), q}});
  LayerInput in{.store = {.q = Heads(q, c.heads), .q_norm = w.vector(R::kQNorm)}};
  if (writes) {
    const View<float> k = Matrix2(k_, rows_, c.kv_heads * c.head_dim);
    const View<float> v = Matrix2(v_, rows_, c.kv_heads * c.head_dim);
    outs_.push_back({w.matrix(R::kK), w.vector(R::kKBias), k});
    outs_.push_back({w.matrix(R::kV), w.vector(R::kVBias), v});
    in.store.k = Heads(k, c.kv_heads);
    in.store.v = Heads(v, c.kv_heads);
    in.store.k_norm = w.vector(R::kKNorm);
  }
  for (size_t b = 0; b < plan.branches.size(); ++b) {
    in.sink_logits[b] = w.vector(kSinkRoles[b]);
    const Matrix* gate = w.matrix(kGateRoles[b]);
    if (gate == nullptr) continue;
    const View<float> logits = Matrix2(gates_[b], rows_, gate->rows);
    outs_.push_back({gate, nullptr, logits});
    in.gates[b] = logits;
  }
  ops_.Linear({.x = Matrix2(x_, rows_, c.width),
               .norm_weight = w.vector(R::kAttnNorm),
               .norm_eps = c.norm_eps,
               .outs = outs_,
               .fine = fine_});
  if (plan.publish && plan.publish->ranking == Publish::Ranking::kIndexer)
    in.index_q = IndexQueries(plan.publish->index_bf16);
  SetRotation(c.layer[static_cast<size_t>(l)].rope, &in.store);
  attention_.Run(l, in, Heads(o, c.heads));
}

// The model card: x += attention(norm(x)); x += ffn(norm(x)). Norms in front are fused into the
// products that follow them; where the model norms a branch before adding it (Gemma 3), the branch
// is kept apart.
void Transformer::Layer(int l, const ForwardBatch& batch) {
  const WeightSet& w = weights_.layers[static_cast<size_t>(l)];
  const ModelConfig& c = config_;
  const View<float> x = Matrix2(x_, rows_, c.width);
  const View<float> o = Matrix2(o_, rows_, c.heads * c.head_dim);
  Attend(l, batch, o);
  const Matrix* const gate[] = {w.matrix(R::kFfnGate)};
  AddBranch(o, *w.matrix(R::kO), w.vector(R::kPostAttnNorm), gate,
            batch.tap_layer == l ? batch.tap : nullptr);

  const View<float> ffn = Matrix2(ffn_, rows_, c.ffn_width);
  const Matrix* const down[] = {w.matrix(R::kFfnDown)};
  ops_.Glu({.x = x,
            .norm_weight = w.vector(R::kFfnNorm),
            .norm_eps = c.norm_eps,
            .gate = w.matrix(R::kFfnGate),
            .up = w.matrix(R::kFfnUp),
            .activation =
                c.activation == Activation::kSilu ? GluActivation::kSilu : GluActivation::kGeluTanh,
            .y = ffn,
            .then = down,
            .fine = fine_});
  AddBranch(ffn, *w.matrix(R::kFfnDown), w.vector(R::kPostFfnNorm),
            first_product_[static_cast<size_t>(l) + 1], nullptr);
}

// x += norm(input W^T), the norm where the model has one. `then` is what the next product
// multiplies with; `tap` receives input W^T.
void Transformer::AddBranch(const View<float>& input, const Matrix& w, const float* norm,
                            std::span<const Matrix* const> then, float* tap) {
  const View<float> x = Matrix2(x_, rows_, config_.width);
  if (norm == nullptr && tap == nullptr) {
    const LinearParams::Out out{&w, nullptr, x};
    ops_.Linear(
        {.x = input, .outs = std::span(&out, 1), .accumulate = true, .then = then, .fine = fine_});
    return;
  }
  const View<float> branch = Matrix2(branch_, rows_, config_.width);
  const LinearParams::Out out{&w, nullptr, branch};
  ops_.Linear({.x = input, .outs = std::span(&out, 1), .then = then, .fine = fine_});
  if (tap) ops_.device().Download(tap, Address(branch.data()), Bytes(branch));
  if (norm) {
    ops_.Norm({.x = branch, .weight = norm, .eps = config_.norm_eps, .y = x, .accumulate = true});
  } else {
    ops_.Add({.x = x, .y = branch});
  }
}

void Transformer::PrepareRope(const ForwardBatch& batch) {
  rotated_.assign(batch.rotated.begin(), batch.rotated.end());
  if (rotated_.empty()) {
    for (const AttentionSegment& s : batch.segments) rotated_.push_back(s.rows);
  }
  const int64_t pairs = config_.rope_dims / 2;
  for (size_t r = 0; r < rope_.size(); ++r) {
    RopeTable& table = rope_[r];
    const float gain = config_.rope[r].scaling == RopeConfig::Scaling::kYarn
                           ? config_.rope[r].attention_factor
                           : 1.0f;
    ops_.RotaryTable({.frequencies = table.frequencies,
                      .gain = gain,
                      .segments = rotated_,
                      .cos = Matrix2(table.cos, rows_, pairs),
                      .sin = Matrix2(table.sin, rows_, pairs)});
  }
}

void Transformer::Output(const ForwardBatch& batch) {
  if (!batch.on_logits && !batch.on_sampled) return attention_.Finish();
  const auto wanted = static_cast<int64_t>(batch.logit_rows.size());
  if (batch.on_sampled) BATON_CHECK_EQ(std::ssize(batch.sample), wanted);
  for (int64_t first = 0; first < wanted; first += kLogitRows) {
    const int64_t n = std::min(kLogitRows, wanted - first);
    const View<float> rows = Matrix2(rows_x_, n, config_.width);
    ops_.CopyRows(
        {.from = Matrix2(x_, rows_, config_.width),
         .rows = batch.logit_rows.subspan(static_cast<size_t>(first), static_cast<size_t>(n)),
         .to = rows});
    const View<float> logits = Matrix2(logits_, n, config_.vocab);
    const LinearParams::Out out{weights_.model.matrix(R::kOutput), nullptr, logits};
    ops_.Linear({.x = rows,
                 .norm_weight = weights_.model.vector(R::kOutputNorm),
                 .norm_eps = config_.norm_eps,
                 .outs = std::span(&out, 1),
                 .fine = true});
    if (batch.on_sampled) {
      ops_.Sample({.logits = logits,
                   .rows = batch.sample.subspan(static_cast<size_t>(first), static_cast<size_t>(n)),
                   .sampled = sampled_.Reserve(n)});
      if (first == 0) attention_.Finish();
      batch.on_sampled(first, sampled_.OnHost(n, host_sampled_), logits);
      continue;
    }
    if (first == 0) attention_.Finish();
    const float* on_host = logits_.OnHost(logits.size(), host_logits_).data();
    batch.on_logits(first, View<const float>(on_host, {n, config_.vocab}));
  }
  if (wanted == 0) attention_.Finish();
}

}  // namespace baton
