#include "profile/input_entropy.h"

#include <Eigen/Eigenvalues>
#include <algorithm>
#include <cmath>

#include "engine/engine_impl.h"
#include "engine/session.h"

namespace baton {
namespace {

constexpr int64_t kEigenvalues = 64;

using RowMatrix =
    Eigen::Map<const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>;

// The smaller of X^T X and X X^T: they share their eigenvalues.
Eigen::MatrixXd Gram(const RowMatrix& x) {
  const bool tall = x.rows() > x.cols();
  const Eigen::Index n = tall ? x.cols() : x.rows();
  Eigen::MatrixXf gram = Eigen::MatrixXf::Zero(n, n);
  if (tall) {
    gram.selfadjointView<Eigen::Lower>().rankUpdate(x.transpose());
  } else {
    gram.selfadjointView<Eigen::Lower>().rankUpdate(x);
  }
  return gram.cast<double>();  // the upper half is not read
}

// One layer for all rows of a prompt, in the engine's chunks; the stream x [T, C] is replaced.
Status RunLayer(Engine& engine, Session& session, std::span<const int32_t> tokens, int layer,
                View<float> x) {
  Engine::Impl& impl = engine.impl();
  const auto total = static_cast<int64_t>(tokens.size());
  for (int64_t first = 0; first < total; first += impl.options.prompt_chunk) {
    if (impl.cancelled.load(std::memory_order_relaxed)) return Error::Cancelled();
    const int64_t count = std::min(impl.options.prompt_chunk, total - first);
    const AttentionSegment segment{.rows = {0, count, first},
                                   .kv = &session.sequence(),
                                   .plan = &impl.model_plan,
                                   .prompt = true};
    ForwardBatch batch;
    batch.tokens = tokens.subspan(static_cast<size_t>(first), static_cast<size_t>(count));
    batch.segments = std::span(&segment, 1);
    batch.first_layer = layer;
    batch.end_layer = layer + 1;
    batch.hidden = x.row(first);
    batch.leave = x.row(first);
    impl.model->Forward(batch);
  }
  return Status::Ok();
}

}  // namespace

double SpectralEntropy(View<const float> x) {
  BATON_CHECK(x.rank() == 2 && x.contiguous());
  const Eigen::MatrixXd gram = Gram(RowMatrix(x.data(), x.dim(0), x.dim(1)));
  const double trace = gram.trace();
  if (!(trace > 0)) return 0;
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(gram, Eigen::EigenvaluesOnly);
  const Eigen::VectorXd& ascending = solver.eigenvalues();
  double entropy = 0;
  for (Eigen::Index i = 0; i < std::min<Eigen::Index>(kEigenvalues, ascending.size()); ++i) {
    const double share = ascending[ascending.size() - 1 - i] / trace;
    if (share > 0) entropy -= share * std::log(share);
  }
  return entropy;
}

Result<std::vector<double>> InputEntropy(Engine& engine, std::span<const int32_t> tokens,
                                         const std::function<void(int layer)>& on_layer) {
  Engine::Impl& impl = engine.impl();
  const ModelConfig& config = impl.model->config();
  const auto total = static_cast<int64_t>(tokens.size());
  BATON_ASSIGN(Session session, Session::Create(engine, impl.model_plan.caches, total));
  BATON_TRY(session.sequence().Reserve(total));
  Device& device = impl.ops->device();
  Array<float> stream(device), input(device);
  const View<float> x(stream.Reserve(total * config.width), {total, config.width});
  const View<float> normed(input.Reserve(total * config.width), {total, config.width});
  std::vector<float> on_host(static_cast<size_t>(normed.size()));
  impl.ops->Embed({.table = &impl.model->weights().embedding,
                   .tokens = tokens,
                   .scale = config.embedding_scale,
                   .x = x});
  std::vector<double> entropy;
  for (int l = 0; l < config.layers; ++l) {
    on_layer(l);
    const float* weight =
        impl.model->weights().layers[static_cast<size_t>(l)].vector(TensorRole::kAttnNorm);
    impl.ops->Norm({.x = x, .weight = weight, .eps = config.norm_eps, .y = normed});
    input.Download(on_host);
    entropy.push_back(SpectralEntropy(View<const float>(on_host.data(), {total, config.width})));
    if (l + 1 < config.layers) BATON_TRY(RunLayer(engine, session, tokens, l, x));
  }
  return entropy;
}

}  // namespace baton
