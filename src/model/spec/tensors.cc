#include "model/spec/tensors.h"

#include <algorithm>

#include "base/check.h"

namespace baton {
namespace {

using enum TensorRole;

constexpr TensorRule kRules[] = {
    {kEmbedding, "token_embd.weight", "model.embed_tokens.weight", {Dim::kVocab, Dim::kWidth}},
    {kSmear, "token_smear.weight", "", {Dim::kWidth}, kSmeared},
    {kOutputNorm, "output_norm.weight", "model.norm.weight", {Dim::kWidth}},
    {kOutput,
     "output.weight",
     "lm_head.weight",
     {Dim::kVocab, Dim::kWidth},
     kAlways,
     Need::kUnlessTied},
    {kRopeDivisors, "rope_freqs.weight", "", {Dim::kRotaryPairs}, kDividedRope, Need::kOptional},
    {kMemoryNorm, "memory.norm.weight", "", {Dim::kWidth}, kSharedMemory},
    {kMemoryK, "memory.attn_k.weight", "", {Dim::kKeys, Dim::kWidth}, kSharedMemory},
    {kMemoryV, "memory.attn_v.weight", "", {Dim::kKeys, Dim::kWidth}, kSharedMemory},
    {kMemoryKNorm, "memory.attn_k_norm.weight", "", {Dim::kHeadDim}, kNormedMemory},
    {kIndexerQ, "indexer.q.weight", "", {Dim::kIndexerKeys, Dim::kWidth}, kIndexed},
    {kIndexerK, "indexer.k.weight", "", {Dim::kIndexerKeys, Dim::kWidth}, kIndexed},
    {kAttnNorm, "blk.{}.attn_norm.weight", "model.layers.{}.input_layernorm.weight", {Dim::kWidth}},
    {kQ,
     "blk.{}.attn_q.weight",
     "model.layers.{}.self_attn.q_proj.weight",
     {Dim::kQueries, Dim::kWidth}},
    {kK,
     "blk.{}.attn_k.weight",
     "model.layers.{}.self_attn.k_proj.weight",
     {Dim::kKeys, Dim::kWidth},
     kOwnKv},
    {kV,
     "blk.{}.attn_v.weight",
     "model.layers.{}.self_attn.v_proj.weight",
     {Dim::kKeys, Dim::kWidth},
     kOwnKv},
    {kO,
     "blk.{}.attn_output.weight",
     "model.layers.{}.self_attn.o_proj.weight",
     {Dim::kWidth, Dim::kQueries}},
    {kFfnGate,
     "blk.{}.ffn_gate.weight",
     "model.layers.{}.mlp.gate_proj.weight",
     {Dim::kFfn, Dim::kWidth}},
    {kFfnUp,
     "blk.{}.ffn_up.weight",
     "model.layers.{}.mlp.up_proj.weight",
     {Dim::kFfn, Dim::kWidth}},
    {kFfnDown,
     "blk.{}.ffn_down.weight",
     "model.layers.{}.mlp.down_proj.weight",
     {Dim::kWidth, Dim::kFfn}},
    // Gemma's post_attention_layernorm is what its name says; elsewhere that name is the norm
    // before the FFN.
    {kFfnNorm,
     "blk.{}.ffn_norm.weight",
     "model.layers.{}.post_attention_layernorm.weight",
     {Dim::kWidth},
     kTwoNorms},
    {kPostAttnNorm,
     "blk.{}.post_attention_norm.weight",
     "model.layers.{}.post_attention_layernorm.weight",
     {Dim::kWidth},
     kFourNorms},
    {kFfnNorm,
     "blk.{}.ffn_norm.weight",
     "model.layers.{}.pre_feedforward_layernorm.weight",
     {Dim::kWidth},
     kFourNorms},
    {kPostFfnNorm,
     "blk.{}.post_ffw_norm.weight",
     "model.layers.{}.post_feedforward_layernorm.weight",
     {Dim::kWidth},
     kFourNorms},
    {kQBias,
     "blk.{}.attn_q.bias",
     "model.layers.{}.self_attn.q_proj.bias",
     {Dim::kQueries},
     kQkvBias},
    {kKBias, "blk.{}.attn_k.bias", "model.layers.{}.self_attn.k_proj.bias", {Dim::kKeys}, kQkvBias},
    {kVBias, "blk.{}.attn_v.bias", "model.layers.{}.self_attn.v_proj.bias", {Dim::kKeys}, kQkvBias},
    {kQNorm,
     "blk.{}.attn_q_norm.weight",
     "model.layers.{}.self_attn.q_norm.weight",
     {Dim::kHeadDim},
     kNormedQ},
    {kKNorm,
     "blk.{}.attn_k_norm.weight",
     "model.layers.{}.self_attn.k_norm.weight",
     {Dim::kHeadDim},
     kNormedK},
    {kAttnGate,
     "blk.{}.attn_gate.weight",
     "",
     {Dim::kQueries, Dim::kWidth},
     kOneBranch | kChannelGate},
    {kAttnGate, "blk.{}.attn_gate.weight", "", {Dim::kHeads, Dim::kWidth}, kOneBranch | kHeadGate},
    {kAttnGate,
     "blk.{}.attn_gate_global.weight",
     "",
     {Dim::kQueries, Dim::kWidth},
     kTwoBranches | kChannelGate},
    {kAttnGate,
     "blk.{}.attn_gate_global.weight",
     "",
     {Dim::kHeads, Dim::kWidth},
     kTwoBranches | kHeadGate},
    {kAttnGateLocal,
     "blk.{}.attn_gate_local.weight",
     "",
     {Dim::kQueries, Dim::kWidth},
     kTwoBranches | kChannelGate},
    {kAttnGateLocal,
     "blk.{}.attn_gate_local.weight",
     "",
     {Dim::kHeads, Dim::kWidth},
     kTwoBranches | kHeadGate},
    {kAttnSinks, "blk.{}.attn_sinks.weight", "", {Dim::kHeads}, kOneBranch | kSinkLogits},
    {kAttnSinks, "blk.{}.attn_sinks_global.weight", "", {Dim::kHeads}, kTwoBranches | kSinkLogits},
    {kAttnSinksLocal,
     "blk.{}.attn_sinks_local.weight",
     "",
     {Dim::kHeads},
     kTwoBranches | kSinkLogits},
    {kBridgeNorm, "blk.{}.bridge_norm.weight", "", {Dim::kWidth}, kBridgeNormed},
};

}  // namespace

int64_t SizeOf(Dim d, const ModelConfig& c) {
  switch (d) {
    case Dim::kNone:
      return 1;
    case Dim::kVocab:
      return c.vocab;
    case Dim::kWidth:
      return c.width;
    case Dim::kQueries:
      return c.heads * c.head_dim;
    case Dim::kKeys:
      return c.kv_heads * c.head_dim;
    case Dim::kHeadDim:
      return c.head_dim;
    case Dim::kHeads:
      return c.heads;
    case Dim::kRotaryPairs:
      return c.head_dim / 2;
    case Dim::kFfn:
      return c.ffn_width;
    case Dim::kIndexerKeys:
      return c.indexer.key_length;
  }
  return 0;
}

Features LayerFeatures(const ModelConfig& c, int layer) {
  const auto at = static_cast<size_t>(layer);
  const bool own = c.OwnCache(layer) >= 0;
  Features f = own ? kOwnKv : kAlways;
  if (c.attention_bias) f |= kQkvBias;
  if (c.layer[at].qk_norm) f |= kNormedQ | (own ? kNormedK : kAlways);
  f |= c.post_norms ? kFourNorms : kTwoNorms;
  if (c.plan.empty()) return f | kOneBranch;
  const LayerPlan& plan = c.plan[at];
  f |= plan.branches.size() == 2 ? kTwoBranches : kOneBranch;
  if (plan.branches[0].gate == Gate::kChannel) f |= kChannelGate;
  if (plan.branches[0].gate == Gate::kHead) f |= kHeadGate;
  if (plan.branches[0].sink_logit) f |= kSinkLogits;
  if (c.bridge_norm_own && plan.role == Role::kCrossFull) f |= kBridgeNormed;
  return f;
}

Features ModelFeatures(const ModelConfig& c) {
  Features f = c.plan.empty() ? kDividedRope : kAlways;
  if (c.memory_layer >= 0) f |= kSharedMemory | (c.memory_qk_norm ? kNormedMemory : kAlways);
  if (c.indexer.key_length > 0) f |= kIndexed;
  if (c.smear) f |= kSmeared;
  return f;
}

std::string TensorRule::Name(FileKind kind, int layer) const {
  const std::string_view pattern = kind == FileKind::kGguf ? gguf : hf;
  const size_t hole = pattern.find("{}");
  if (hole == std::string_view::npos) return std::string(pattern);
  return fmt::format("{}{}{}", pattern.substr(0, hole), layer, pattern.substr(hole + 2));
}

std::vector<int64_t> TensorRule::Shape(const ModelConfig& config) const {
  std::vector<int64_t> sizes{SizeOf(shape[0], config)};
  if (shape[1] != Dim::kNone) sizes.push_back(SizeOf(shape[1], config));
  return sizes;
}

std::span<const TensorRule> TensorRules() { return kRules; }

std::vector<TensorSlot> TensorSlots(const ModelConfig& config) {
  const Features model = ModelFeatures(config);
  std::vector<Features> layers(static_cast<size_t>(config.layers));
  for (int l = 0; l < config.layers; ++l) layers[static_cast<size_t>(l)] = LayerFeatures(config, l);
  std::vector<TensorSlot> slots;
  for (const TensorRule& rule : kRules) {
    const auto has = [&](Features f) { return (f & rule.when) == rule.when; };
    if (!IsPerLayer(rule.role)) {
      if (has(model)) slots.push_back({&rule, 0});
      continue;
    }
    for (int l = 0; l < config.layers; ++l) {
      if (has(layers[static_cast<size_t>(l)])) slots.push_back({&rule, l});
    }
  }
  return slots;
}

}  // namespace baton
