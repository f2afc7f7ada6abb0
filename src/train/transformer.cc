#include "train/transformer.h"

#include <algorithm>
#include <limits>

#include "base/check.h"
#include "train/distil.h"
#include "train/lists.h"

namespace baton::train {
namespace {

using enum TensorRole;

constexpr TensorRole kGates[] = {kAttnGate, kAttnGateLocal};
constexpr TensorRole kSinks[] = {kAttnSinks, kAttnSinksLocal};

Tensor RoundedToBf16(const Tensor& x) { return x.to(torch::kBFloat16).to(x.scalar_type()); }

// Symmetric, a scale per 32 channels, as kv/low_bit.h, which keeps it in f16.
Tensor RoundedToBits(const Tensor& k, int64_t bits) {
  const int64_t channels = std::min<int64_t>(32, k.size(3));
  BATON_CHECK(k.size(3) % channels == 0);
  const Tensor parts = k.to(SumType(k)).reshape({k.size(0), k.size(1), k.size(2), -1, channels});
  const double most = static_cast<double>((1 << (bits - 1)) - 1);
  const Tensor scale = parts.abs().amax(4, /*keepdim=*/true).clamp_min(1e-6) / most;
  return ((parts / scale).round() * scale).reshape(k.sizes()).to(k.scalar_type());
}

// Ordinary models have their layers' plans and caches made.
ModelConfig WithLayers(ModelConfig config) {
  const ModelShape shape = ShapeOf(config, "");
  config.plan = shape.plan;
  config.caches = shape.caches;
  return config;
}

// [B, Hq, n, D] -> [B, D]: the mean over heads and the first and last `pool` rows of each prompt.
Tensor Pooled(const Tensor& q, const Routing& routing) {
  const Tensor row = torch::arange(routing.pool, routing.prompts.options()).unsqueeze(0);
  const Tensor last = routing.prompts.unsqueeze(1) - routing.pool + row;
  const Tensor at = torch::cat({row.expand_as(last), last}, 1).unsqueeze(1).unsqueeze(3);
  const Tensor taken = q.gather(2, at.expand({q.size(0), q.size(1), at.size(2), q.size(3)}));
  return taken.to(SumType(q)).mean(torch::IntArrayRef{1, 2});
}

bool ReadsMemory(const ModelConfig& c, const Branch& b) {
  return c.caches[static_cast<size_t>(b.cache)].owner == CacheSpec::kMemory;
}

}  // namespace

Status CheckTrainable(const ModelConfig& c) {
  if (!c.plan.empty()) return Status::Ok();
  const char* lacks = c.attention_bias                     ? "biases of q, k and v"
                      : c.post_norms || c.norm_plus_one    ? "norms of Gemma's form"
                      : c.activation != Activation::kSilu  ? "an activation other than SiLU"
                      : c.rope.size() != 1                 ? "several rotary embeddings"
                      : c.rope[0].attention_factor != 1.0f ? "a scaled rotary embedding"
                                                           : nullptr;
  for (const LayerConfig& l : c.layer)
    if (l.window > 0 || l.rope != 0) lacks = "windows, or layers without positions";
  if (lacks == nullptr) return Status::Ok();
  return Error::Unsupported("a {} model with {}: the trainer does not have these", c.architecture,
                            lacks);
}

Transformer::Transformer(const ModelConfig& config, const Parameters& parameters,
                         torch::ScalarType type)
    : config_(WithLayers(config)),
      parameters_(parameters),
      type_(type),
      frequencies_(RopeFrequencies(config.rope[0], config.rope_dims)) {
  BATON_CHECK(CheckTrainable(config).ok());
}

Tensor Transformer::Norm(const Tensor& x, const Tensor& weight) const {
#if BATON_TORCH_FUSED
  if (x.is_cuda())
    return torch::rms_norm(x, {x.size(-1)}, weight.to(x.scalar_type()), config_.norm_eps);
#endif
  const Tensor wide = x.to(SumType(x));
  const Tensor scale = torch::rsqrt(wide.square().mean(-1, /*keepdim=*/true) + config_.norm_eps);
  return (wide * scale * weight).to(x.scalar_type());
}

Tensor Transformer::Linear(const Tensor& x, const Tensor& weight) const {
  return torch::matmul(x, weight.to(x.scalar_type()).t());
}

// [B, n, C] -> [B, heads, n, head size]; the norm is per head.
Tensor Transformer::Heads(const Tensor& x, const Tensor& weight, const Tensor& norm) const {
  const int64_t heads = weight.size(0) / config_.head_dim;
  Tensor y = Linear(x, weight).reshape({x.size(0), x.size(1), heads, config_.head_dim});
  if (norm.defined()) y = Norm(y, norm);
  return y.transpose(1, 2);
}

void Transformer::PrepareRotation(Pass& pass) const {
  const Tensor& tokens = pass.in.tokens;
  const auto options = torch::TensorOptions(tokens.device()).dtype(SumType(pass.x));
  Tensor position = torch::arange(tokens.size(1), tokens.options()).unsqueeze(0);
  if (pass.in.starts.defined()) position = position - pass.in.starts;
  if (pass.rows.defined()) position = pass.rows;
  const Tensor frequency =
      torch::from_blob(const_cast<float*>(frequencies_.data()),
                       {static_cast<int64_t>(frequencies_.size())}, torch::kFloat32)
          .to(torch::kFloat64)
          .to(tokens.device());
  const Tensor angle = position.to(torch::kFloat64).unsqueeze(2) * frequency;
  pass.cos = angle.cos().to(options).unsqueeze(1).to(type_);
  pass.sin = angle.sin().to(options).unsqueeze(1).to(type_);
}

// The first rope_dims dims of a head; pairs (i, i + half) or (2i, 2i + 1).
Tensor Transformer::Rotated(const Pass& pass, const Tensor& x, int rope) const {
  if (rope < 0) return x;
  const int64_t dims = config_.rope_dims, size = x.size(3);
  const Tensor turned = x.narrow(3, 0, dims);
  Tensor a, b;
  if (config_.rope_interleaved) {
    const Tensor pairs = turned.reshape({x.size(0), x.size(1), x.size(2), -1, 2});
    a = pairs.select(4, 0), b = pairs.select(4, 1);
  } else {
    a = turned.narrow(3, 0, dims / 2), b = turned.narrow(3, dims / 2, dims / 2);
  }
  const Tensor first = a * pass.cos - b * pass.sin, second = b * pass.cos + a * pass.sin;
  const Tensor y = config_.rope_interleaved
                       ? torch::stack({first, second}, 4).reshape(turned.sizes())
                       : torch::cat({first, second}, 3);
  return dims == size ? y : torch::cat({y, x.narrow(3, dims, size - dims)}, 3);
}

Tensor Transformer::Embed(const ForwardInput& in) const {
  Tensor x = torch::embedding(parameters_.model(kEmbedding), in.tokens);
  if (config_.smear) {
    const Tensor before = torch::constant_pad_nd(x, {0, 0, 1, 0}).narrow(1, 0, x.size(1));
    Tensor smear = parameters_.model(kSmear) * before;
    if (in.starts.defined()) {
      const Tensor first = torch::arange(x.size(1), in.tokens.options()) == in.starts;
      smear = smear.masked_fill(first.unsqueeze(2), 0);
    }
    x = x + smear;
  }
  return (x * config_.embedding_scale).to(type_);
}

// K and V of a cache that another layer's entering stream feeds, from the stream as it is now.
void Transformer::Feed(Pass& pass, int c) const {
  const CacheSpec& spec = config_.caches[static_cast<size_t>(c)];
  Cache& cache = pass.caches[static_cast<size_t>(c)];
  if (spec.owner >= 0) {
    const auto tensor = [&](TensorRole role) { return parameters_.layer(spec.owner, role); };
    const Tensor norm = tensor(kBridgeNorm);
    const Tensor h =
        Norm(pass.x, norm.defined() ? norm : parameters_.layer(spec.kv_input, kAttnNorm));
    cache.k = Rotated(pass, Heads(h, tensor(kK), tensor(kKNorm)),
                      config_.layer[static_cast<size_t>(spec.owner)].rope);
    cache.v = Heads(h, tensor(kV), Tensor());
    return;
  }
  const Tensor h = Norm(pass.x, parameters_.model(kMemoryNorm));
  if (spec.values) {
    cache.k = Heads(h, parameters_.model(kMemoryK), parameters_.model(kMemoryKNorm));
    cache.v = Heads(h, parameters_.model(kMemoryV), Tensor());
    return;
  }
  // The indexer's loss does not reach the stream.
  const Tensor seen = h.detach();
  cache.k = Linear(seen, parameters_.model(kIndexerK)).unsqueeze(1);
  pass.index_q = Linear(seen, parameters_.model(kIndexerQ)).unsqueeze(1);
}

Transformer::List Transformer::Ranked(const Pass& pass, int l, const Tensor& q, const Tensor& k,
                                      const Tensor& lse, double scale) const {
  const Publish& publish = *config_.plan[static_cast<size_t>(l)].publish;
  const bool groups = publish.scope != Scope::kAll && lse.defined();
  return {Rank({.q = q,
                .k = k,
                .lse = lse,
                .scale = scale,
                .groups = groups ? k.size(1) : 1,
                .pool = publish.pool,
                .block = publish.block,
                .sink = publish.sink,
                .recent = publish.recent,
                .top_k = publish.budgets[0].tokens,
                .starts = pass.in.starts}),
          publish.block, publish.sink, publish.recent};
}

void Transformer::PublishIndexed(Pass& pass, int l) const {
  const Publish& publish = *config_.plan[static_cast<size_t>(l)].publish;
  const Tensor &q = pass.index_q, &k = pass.caches[static_cast<size_t>(publish.index_cache)].k;
  const bool round = publish.index_bf16;
  Tensor keys = round ? RoundedToBf16(k) : k;
  if (pass.in.rank_bits > 0) keys = RoundedToBits(keys, pass.in.rank_bits);
  pass.lists[l] =
      Ranked(pass, l, round ? RoundedToBf16(q) : q, keys, Tensor(), publish.index_scale);
}

c10::intrusive_ptr<Visible> Transformer::Seen(const Pass& pass, const Branch& branch) const {
  auto seen = c10::make_intrusive<Visible>();
  seen->starts = pass.in.starts;
  switch (branch.set.kind) {
    case TokenSet::Kind::kAll:
      break;
    case TokenSet::Kind::kWindow:
      seen->kind = Visible::Kind::kWindow;
      seen->sink = branch.set.sink;
      seen->recent = pass.in.window > 0 ? pass.in.window : branch.set.recent;
      break;
    case TokenSet::Kind::kIndex: {
      if (pass.in.dense_memory && ReadsMemory(config_, branch)) break;
      return Listed(pass, branch.set.publisher);
    }
  }
  return seen;
}

c10::intrusive_ptr<Visible> Transformer::Listed(const Pass& pass, int publisher) const {
  const List& list = pass.lists.at(publisher);
  auto seen = c10::make_intrusive<Visible>();
  seen->kind = Visible::Kind::kList;
  seen->starts = pass.in.starts;
  seen->list = list.index;
  seen->block = list.block;
  seen->sink = list.sink;
  seen->recent = list.recent;
  return seen;
}

// o: [B, Hq, n, D] -> [B, n, Hq * D], times the branch's gate where it has one.
Tensor Transformer::Gated(const Tensor& o, int l, size_t branch, const Tensor& h) const {
  const Tensor rows = o.transpose(1, 2);  // [B, n, Hq, D]
  const Tensor weight = parameters_.layer(l, kGates[branch]);
  const std::vector<int64_t> flat{rows.size(0), rows.size(1), -1};
  if (!weight.defined()) return rows.reshape(flat);
  const Tensor gate = torch::sigmoid(Linear(h, weight));
  if (gate.size(2) == config_.heads) return (rows * gate.unsqueeze(3)).reshape(flat);
  return rows.reshape(flat) * gate;
}

Tensor Transformer::Attention(Pass& pass, int l, const Tensor& h, const Tensor& q) const {
  const LayerPlan& plan = config_.plan[static_cast<size_t>(l)];
  const bool ranks = plan.publish && plan.publish->ranking == Publish::Ranking::kExact;
  Tensor sum;
  for (size_t b = 0; b < plan.branches.size(); ++b) {
    const Branch& branch = plan.branches[b];
    const Cache& cache = pass.caches[static_cast<size_t>(branch.cache)];
    if (b == 0 && ReadsMemory(config_, branch)) pass.memory_q.push_back(q.detach());
    AttendInput in{.q = q,
                   .k = cache.k,
                   .v = cache.v,
                   .visible = Seen(pass, branch),
                   .sink = parameters_.layer(l, kSinks[b]),
                   .scale = config_.attention_scale};
    const bool rounds = ranks && pass.in.rank_bits > 0;
    if (rounds) in.k = RoundedToBits(cache.k, pass.in.rank_bits);
    AttendOutput out = Attend(in, ranks);
    if (ranks) pass.lists[l] = Ranked(pass, l, q, in.k, out.lse, config_.attention_scale);
    if (rounds) {
      in.k = cache.k;
      in.visible = Listed(pass, l);
      out = Attend(in);
    }
    const Tensor o = Gated(out.o, l, b, h);
    sum = b == 0 ? o : sum + o;
  }
  return sum;
}

// Both kinds of attention, mixed by the layer's gate.
Tensor Transformer::Routed(Pass& pass, int l, const Tensor& plain, const Tensor& q) const {
  const Routing& routing = *pass.in.routing;
  const Cache& cache = pass.caches[static_cast<size_t>(config_.OwnCache(l))];
  Tensor pooled, full;
  std::function<Tensor()> window;
  if (pass.kept != nullptr) {
    const auto replaced = [&](const Tensor& all, const Tensor& rows) {
      return all.scatter(2, pass.rows.unsqueeze(1).unsqueeze(3).expand_as(rows), rows);
    };
    const Tensor k = replaced(pass.kept->k[static_cast<size_t>(l)], cache.k),
                 v = replaced(pass.kept->v[static_cast<size_t>(l)], cache.v);
    pooled = pass.kept->pooled[static_cast<size_t>(l)];
    full = AttendBiased(q, k, v, pass.full_bias, config_.attention_scale);
    window = [=, &pass, this] {
      return AttendBiased(q, k, v, pass.window_bias, config_.attention_scale);
    };
  } else {
    const auto attend = [&pass, &cache, q, this](c10::intrusive_ptr<Visible> visible) {
      return Attend({.q = q,
                     .k = cache.k,
                     .v = cache.v,
                     .visible = std::move(visible),
                     .scale = config_.attention_scale})
          .o;
    };
    pooled = Pooled(plain, routing);
    full = attend(c10::make_intrusive<Visible>());
    window = [=, &routing] {
      auto visible = c10::make_intrusive<Visible>();
      visible->kind = Visible::Kind::kWindow;
      visible->sink = routing.sink;
      visible->recent = routing.window;
      return attend(std::move(visible));
    };
  }
  if (pass.in.keep != nullptr) {
    pass.in.keep->k.push_back(cache.k);
    pass.in.keep->v.push_back(cache.v);
    pass.in.keep->pooled.push_back(pooled);
  }
  if (routing.gate) {
    const Tensor share = routing.gate(l, pooled).to(q.scalar_type()).reshape({-1, 1, 1, 1});
    full = torch::lerp(window(), full, share);
  }
  return full.transpose(1, 2).reshape({q.size(0), q.size(2), -1});
}

void Transformer::Layer(Pass& pass, int l) const {
  const auto tensor = [&](TensorRole role) { return parameters_.layer(l, role); };
  const int rope = config_.layer[static_cast<size_t>(l)].rope;
  const Tensor h = Norm(pass.x, tensor(kAttnNorm));
  const Tensor plain = Heads(h, tensor(kQ), tensor(kQNorm));
  const Tensor q = Rotated(pass, plain, rope);
  const int own = config_.OwnCache(l);
  if (own >= 0 && config_.caches[static_cast<size_t>(own)].kv_input == l) {
    Cache& cache = pass.caches[static_cast<size_t>(own)];
    cache.k = Rotated(pass, Heads(h, tensor(kK), tensor(kKNorm)), rope);
    cache.v = Heads(h, tensor(kV), Tensor());
  }
  const LayerPlan& plan = config_.plan[static_cast<size_t>(l)];
  if (plan.publish && plan.publish->ranking == Publish::Ranking::kIndexer && !pass.in.dense_memory)
    PublishIndexed(pass, l);
  const Tensor o =
      pass.in.routing != nullptr ? Routed(pass, l, plain, q) : Attention(pass, l, h, q);
  pass.x = pass.x + Linear(o, tensor(kO));
  const Tensor f = Norm(pass.x, tensor(kFfnNorm));
  pass.x = pass.x + Linear(torch::silu(Linear(f, tensor(kFfnGate))) * Linear(f, tensor(kFfnUp)),
                           tensor(kFfnDown));
}

Tensor Transformer::Distillation(const Pass& pass) const {
  int keys = -1, index = -1;
  for (size_t c = 0; c < config_.caches.size(); ++c) {
    if (config_.caches[c].owner != CacheSpec::kMemory) continue;
    (config_.caches[c].values ? keys : index) = static_cast<int>(c);
  }
  int64_t top_k = 0;
  for (const LayerPlan& plan : config_.plan) {
    if (plan.publish && plan.publish->ranking == Publish::Ranking::kIndexer)
      top_k = plan.publish->budgets[0].tokens;
  }
  return Distil({.queries = pass.memory_q,
                 .keys = pass.caches[static_cast<size_t>(keys)].k.detach(),
                 .index_q = pass.index_q.squeeze(1),
                 .index_k = pass.caches[static_cast<size_t>(index)].k.squeeze(1),
                 .rows = pass.in.distilled_rows,
                 .starts = pass.in.starts,
                 .scale = config_.attention_scale,
                 .index_scale = config_.indexer.scale,
                 .top_k = top_k},
                pass.in.coverage);
}

ForwardOutput Transformer::Forward(const ForwardInput& in) const {
  Pass pass{.in = in, .x = Embed(in), .caches = std::vector<Cache>(config_.caches.size())};
  PrepareRotation(pass);
  for (int l = 0; l < config_.layers; ++l) {
    for (size_t c = 0; c < config_.caches.size(); ++c) {
      const CacheSpec& cache = config_.caches[c];
      if (cache.kv_input == l && cache.owner != l) Feed(pass, static_cast<int>(c));
    }
    Layer(pass, l);
  }
  ForwardOutput out{.stream = Norm(pass.x, parameters_.model(kOutputNorm))};
  if (in.distilled_rows.defined() && has_indexer()) out.distillation = Distillation(pass);
  return out;
}

Tensor Transformer::ForwardRows(const Kept& kept, const Tensor& tokens, const Tensor& rows,
                                const Routing& routing) const {
  const ForwardInput in{.tokens = tokens, .routing = &routing};
  Pass pass{.in = in, .x = Embed(in), .caches = std::vector<Cache>(config_.caches.size())};
  pass.kept = &kept;
  pass.rows = rows;
  PrepareRotation(pass);
  const Tensor key = torch::arange(kept.k[0].size(2), rows.options()).reshape({1, 1, 1, -1});
  const Tensor row = rows.unsqueeze(1).unsqueeze(3);
  const Tensor behind = row >= routing.prompts.reshape({-1, 1, 1, 1});
  const Tensor hidden = key > row;
  const Tensor out_of_window = behind & (key >= routing.sink) & (row - key >= routing.window);
  const auto bias = [&](const Tensor& without) {
    return torch::zeros(without.sizes(), pass.x.options())
        .masked_fill_(without, -std::numeric_limits<double>::infinity());
  };
  pass.full_bias = bias(hidden);
  pass.window_bias = bias(hidden | out_of_window);
  for (int l = 0; l < config_.layers; ++l) Layer(pass, l);
  return Norm(pass.x, parameters_.model(kOutputNorm));
}

Tensor Transformer::Logits(const Tensor& stream) const {
  const Tensor& output = parameters_.model(kOutput);
  return Linear(stream, output.defined() ? output : parameters_.model(kEmbedding));
}

}  // namespace baton::train
