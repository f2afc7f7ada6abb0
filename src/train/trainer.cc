#include "train/trainer.h"

#include <cmath>
#include <map>
#include <span>
#include <sstream>

#include "base/check.h"
#include "base/mapped_file.h"
#include "formats/dequantize.h"
#include "formats/safetensors.h"

namespace baton::train {
namespace {

int64_t BlockOf(const ModelConfig& c) {
  for (const LayerPlan& l : c.plan)
    if (l.publish) return l.publish->block;
  return 1;
}

SafetensorsEntry Entry(const std::string& name, const Tensor& value) {
  const Tensor t = value.detach().to(torch::kCPU, torch::kFloat32).contiguous();
  SafetensorsEntry entry{.name = name, .dtype = DType::kF32, .shape = t.sizes().vec()};
  const auto* data = static_cast<const std::byte*>(t.data_ptr());
  entry.data.assign(data, data + t.nbytes());
  return entry;
}

// Sums of losses, exactly.
std::string HexOf(const Tensor& sums) {
  const Tensor t = sums.to(torch::kCPU).contiguous();
  return fmt::format("{:a}", fmt::join(std::span(t.data_ptr<double>(), t.numel()), " "));
}

Tensor FromHex(const std::string& text, torch::Device device) {
  std::vector<double> values;
  std::istringstream words(text);
  for (std::string word; words >> word;) values.push_back(std::strtod(word.c_str(), nullptr));
  return values.empty() ? Tensor() : torch::tensor(values, torch::kFloat64).to(device);
}

}  // namespace

torch::ScalarType ComputeType(const Recipe& recipe, torch::Device device) {
  return recipe.bf16 && device.is_cuda() ? torch::kBFloat16 : torch::kFloat32;
}

KindLosses LossesByKind(const Tensor& logits, const Samples& samples) {
  // A row's last logits have no target. All rows are kept, since a part of them would be a copy.
  const Tensor target = samples.tokens.roll(-1, 1).reshape({-1});
  Tensor kind = samples.kinds.roll(-1, 1);
  kind.select(1, kind.size(1) - 1).fill_(kRandomToken);
  const Tensor rows = logits.reshape({-1, logits.size(2)});
  const Tensor loss =
      torch::cross_entropy_loss(rows.to(SumType(rows)), target, {}, at::Reduction::None);
  const Tensor is = torch::one_hot(kind.reshape({-1}), kTokenKinds).to(loss.scalar_type());
  const Tensor count = is.sum(0);
  return {torch::mv(is.t(), loss) / count.clamp_min(1), count};
}

Trainer::Trainer(const ModelFile& model, Parameters& parameters, const Recipe& recipe,
                 const Tensor& text)
    : model_(model),
      parameters_(parameters),
      recipe_(recipe),
      transformer_(model.config, parameters, ComputeType(recipe, text.device())),
      batches_(recipe, text, model.config.vocab, BlockOf(model.config)),
      optimizer_(parameters, recipe.optimizer) {}

// Text, the mean of the three recall tasks, and what an indexer learns from attention.
Tensor Trainer::Loss(const Batch& batch) {
  ForwardInput in{.tokens = batch.samples.tokens,
                  .starts = batch.starts,
                  .dense_memory = !sparse(),
                  .window = recipe_.StageOf(step_).window};
  if (transformer_.has_indexer()) in.distilled_rows = batch.distilled_rows;
  const ForwardOutput out = transformer_.Forward(in);
  const KindLosses kinds = LossesByKind(transformer_.Logits(out.stream), batch.samples);
  const Tensor recall = kinds.mean.narrow(0, kFactAnswer, 3).mean();
  Tensor loss = kinds.mean[kTextToken] + recipe_.recall_weight * recall;
  const Tensor distillation =
      out.distillation.defined() ? out.distillation : torch::zeros({}, loss.options());
  loss = loss + distillation;
  const Tensor one = torch::ones({1}, kinds.count.options());
  const Tensor sums = torch::cat({kinds.mean.detach() * kinds.count,
                                  distillation.detach().reshape({1}), kinds.count, one})
                          .to(torch::kFloat64);
  sums_ = sums_.defined() ? sums_ + sums : sums;
  return loss;
}

void Trainer::Step() {
  BATON_CHECK(!done());
  for (int64_t part = 0; part < recipe_.accumulate; ++part) {
    const Tensor loss = Loss(batches_.Make(step_, part));
    (loss / static_cast<double>(recipe_.accumulate)).backward();
  }
  optimizer_.Step(recipe_.Rate(step_));
  parameters_.ZeroGradients();
  const Stage& stage = recipe_.StageOf(step_);
  tokens_ += stage.n * stage.rows;
  ++step_;
}

Losses Trainer::TakeLosses() {
  Losses losses;
  if (!sums_.defined()) return losses;
  const Tensor sums = sums_.to(torch::kCPU);
  const double* s = sums.data_ptr<double>();
  const double* counts = s + kTokenKinds + 1;
  for (size_t i = 0; i < kTokenKinds; ++i)
    losses.by_kind[i] = counts[i] > 0 ? s[i] / counts[i] : std::nan("");
  losses.distillation = s[kTokenKinds] / counts[kTokenKinds];
  sums_ = Tensor();
  return losses;
}

Status Trainer::Save(const std::string& path) const {
  std::vector<SafetensorsEntry> entries;
  for (const Parameter& p : parameters_.all()) entries.push_back(Entry("value." + p.name, p.value));
  for (const auto& [name, value] : optimizer_.State()) entries.push_back(Entry(name, value));
  return WriteSafetensors(path, entries,
                          {{"baton.config", model_.json},
                           {"seed", std::to_string(recipe_.seed)},
                           {"step", std::to_string(step_)},
                           {"tokens", std::to_string(tokens_)},
                           {"losses", sums_.defined() ? HexOf(sums_) : ""}});
}

Status Trainer::Load(const std::string& path) {
  BATON_ASSIGN(const MappedFile file, MappedFile::Open(path));
  SafetensorsMetadata metadata;
  BATON_ASSIGN(const std::vector<TensorInfo> tensors, ParseSafetensors(file.bytes(), &metadata));
  if (metadata["baton.config"] != model_.json)
    return Error::InvalidArgument("{}: the state of another config", path);
  std::map<std::string, Tensor> state;
  for (const TensorInfo& t : tensors) {
    Tensor value = torch::empty(t.shape, torch::kFloat32);
    Dequantize(t.dtype, t.data, 0, t.elements(), value.data_ptr<float>());
    state[t.name] = value;
  }
  const torch::NoGradGuard no_gradients;
  for (const Parameter& p : parameters_.all()) {
    const auto it = state.find("value." + p.name);
    if (it == state.end() || it->second.sizes() != p.value.sizes())
      return Error::Corrupt("{}: no {} of this model", path, p.name);
    Tensor leaf = p.value;
    leaf.copy_(it->second);
  }
  if (Status s = optimizer_.Restore(state); !s.ok()) return std::move(s).error().At(path);
  const std::string seed = std::to_string(recipe_.seed);
  if (metadata["seed"] != seed)
    return Error::InvalidArgument("{}: the state of seed {}, expected {}", path, metadata["seed"],
                                  seed);
  step_ = std::strtoll(metadata["step"].c_str(), nullptr, 10);
  tokens_ = std::strtoll(metadata["tokens"].c_str(), nullptr, 10);
  sums_ = FromHex(metadata["losses"], batches_.tasks().device());
  return Status::Ok();
}

}  // namespace baton::train
