#include "train/evaluate.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "train/trainer.h"

namespace baton::train {
namespace {

constexpr std::array<int64_t, 5> kEdges{0, 64, 256, 1024, 4096};  // of a fact's distance
constexpr std::array<int64_t, 3> kKeys{64, 256, 1024};
constexpr int64_t kLinks = 4;
constexpr int64_t kPairBatches = 2;
constexpr int64_t kCoverageRows = 256;

class Evaluator {
 public:
  Evaluator(const Transformer& model, const Tasks& tasks, const EvaluateOptions& o)
      : model_(model),
        tasks_(tasks),
        o_(o),
        rows_(std::max<int64_t>(1, o.tokens / o.n)),
        generator_(tasks.device().is_cuda()
                       ? at::globalContext().defaultGenerator(tasks.device()).clone()
                       : at::detail::createCPUGenerator()) {
    generator_.set_current_seed(777);
    out_.n = o.n;
  }

  Evaluation Run() {
    Text();
    Facts();
    Pairs();
    Chains();
    if (model_.has_indexer()) Cover();
    return std::move(out_);
  }

 private:
  Tensor Logits(const Tensor& tokens) const {
    const ForwardInput in{
        .tokens = tokens, .dense_memory = o_.dense_memory, .rank_bits = o_.rank_bits};
    return model_.Logits(model_.Forward(in).stream);
  }

  // [B, n]: the token is the likeliest one after those before it.
  Tensor Right(const Samples& s) const {
    const Tensor best = Logits(s.tokens).argmax(2);
    const Tensor hit = best.narrow(1, 0, o_.n - 1) == s.tokens.narrow(1, 1, o_.n - 1);
    return torch::constant_pad_nd(hit, {1, 0}, 0).to(torch::kBool);
  }

  static void Count(const Tensor& right, const Tensor& which, Share* share) {
    share->right += (right & which).sum().item<int64_t>();
    share->of += which.sum().item<int64_t>();
  }

  void Text() {
    double all = 0, late = 0;
    for (int64_t b = 0; b < o_.batches; ++b) {
      const Tensor tokens = tasks_.Piece(b * rows_, rows_, o_.n);
      const Tensor logits = Logits(tokens).narrow(1, 0, o_.n - 1);
      const Tensor loss = torch::cross_entropy_loss(
                              logits.reshape({-1, logits.size(2)}).to(SumType(logits)),
                              tokens.narrow(1, 1, o_.n - 1).reshape({-1}), {}, at::Reduction::None)
                              .reshape({rows_, o_.n - 1});
      all += loss.mean().item<double>();
      late += loss.narrow(1, o_.n / 2, o_.n / 2 - 1).mean().item<double>();
    }
    out_.text_loss = all / static_cast<double>(o_.batches);
    out_.late_text_loss = late / static_cast<double>(o_.batches);
  }

  // A fact counts when both of its answer tokens are right.
  void Facts() {
    for (size_t e = 1; e < kEdges.size(); ++e)
      out_.facts.push_back({.name = fmt::format("<={}", kEdges[e])});
    out_.facts.push_back({.name = "all"});
    for (int64_t b = 0; b < o_.batches; ++b) {
      const Samples s = tasks_.Facts(rows_, o_.n, tasks_.most_width(), generator_);
      const Tensor hit = Right(s), answer = s.kinds == kFactAnswer;
      const Tensor second = answer & answer.roll(1, 1);
      const Tensor both = hit & hit.roll(1, 1);
      for (size_t e = 1; e < kEdges.size(); ++e)
        Count(both, second & (s.distance > kEdges[e - 1]) & (s.distance <= kEdges[e]),
              &out_.facts[e - 1]);
      Count(both, second, &out_.facts.back());
    }
    std::erase_if(out_.facts, [](const Share& s) { return s.of == 0; });
  }

  void Pairs() {
    for (const int64_t keys : kKeys) {
      if (keys > o_.n / 4 || keys > tasks_.most_width()) continue;
      Share share{.name = std::to_string(keys)};
      for (int64_t b = 0; b < kPairBatches; ++b) {
        const Samples s = tasks_.Pairs(rows_, o_.n, tasks_.most_width(), keys, keys, generator_);
        Count(Right(s), s.kinds == kPairAnswer, &share);
      }
      out_.pairs.push_back(share);
    }
  }

  void Chains() {
    for (int64_t links = 1; links <= kLinks; ++links)
      out_.chains.push_back({.name = std::to_string(links)});
    for (int64_t b = 0; b < o_.batches; ++b) {
      const Samples s = tasks_.Chains(rows_, o_.n, tasks_.most_width(), generator_);
      const Tensor hit = Right(s), answer = s.kinds == kChainAnswer;
      for (int64_t links = 1; links <= kLinks; ++links)
        Count(hit, answer & (s.distance == links), &out_.chains[static_cast<size_t>(links - 1)]);
    }
  }

  void Cover() {
    const Tensor rows =
        torch::linspace(static_cast<double>(o_.n) / 4, static_cast<double>(o_.n) - 1,
                        std::min(kCoverageRows, o_.n / 2), torch::TensorOptions(tasks_.device()))
            .to(torch::kInt64);
    out_.has_coverage = true;
    constexpr int kSamples = 4;
    for (int i = 0; i < kSamples; ++i) {
      const Samples s = i % 2 == 0 ? tasks_.Text(rows_, o_.n, generator_)
                                   : tasks_.Facts(rows_, o_.n, tasks_.most_width(), generator_);
      Coverage coverage;
      model_.Forward({.tokens = s.tokens,
                      .dense_memory = o_.dense_memory,
                      .distilled_rows = rows,
                      .coverage = &coverage});
      out_.coverage.held += coverage.held / kSamples;
      out_.coverage.best += coverage.best / kSamples;
    }
  }

  const Transformer& model_;
  const Tasks& tasks_;
  const EvaluateOptions& o_;
  int64_t rows_;
  torch::Generator generator_;
  Evaluation out_;
};

nlohmann::json ToObject(const std::vector<Share>& shares) {
  nlohmann::json object = nlohmann::json::object();
  for (const Share& s : shares) object[s.name] = s.value();
  return object;
}

}  // namespace

Evaluation Evaluate(const Transformer& model, const Tasks& tasks, const EvaluateOptions& options) {
  const torch::NoGradGuard no_gradients;
  return Evaluator(model, tasks, options).Run();
}

std::string Evaluation::ToJson() const {
  nlohmann::json j = {{"n", n},
                      {"text_loss", text_loss},
                      {"late_text_loss", late_text_loss},
                      {"facts", ToObject(facts)},
                      {"pairs", ToObject(pairs)},
                      {"chains", ToObject(chains)}};
  if (has_coverage) j["coverage"] = {{"held", coverage.held}, {"best", coverage.best}};
  return j.dump();
}

}  // namespace baton::train
