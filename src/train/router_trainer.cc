#include "train/router_trainer.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <set>

#include "base/check.h"

namespace baton::train {
namespace {

constexpr size_t kFewestOfTask = 2;    // usable samples of a task and length
constexpr double kPaperAscent = 1e-3;  // of AdamW on gradients of one sign
constexpr double kPaperLambda = 0.25;  // the mean of the paper's random start
constexpr int64_t kChunkTokens = 2048;
constexpr size_t kTargetSamples = 12;  // of a task, for MeetTarget
constexpr int64_t kTargetTokens = 65536;

OptimizerOptions OptionsOf(const RouterRecipe& r) {
  return {.weight_decay = r.weight_decay, .clip = r.clip};
}

// Cross-entropy of `rows` [T, C], chunk by chunk, so that the logits of one chunk exist at a time.
class ChunkedCrossEntropy : public torch::autograd::Function<ChunkedCrossEntropy> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& rows,
                        const Tensor& target, const RoutedModel* model) {
    std::vector<Tensor> loss;
    for (int64_t first = 0; first < rows.size(0); first += kChunkTokens) {
      const int64_t count = std::min(kChunkTokens, rows.size(0) - first);
      const Tensor logits = model->transformer().Logits(rows.narrow(0, first, count));
      loss.push_back(torch::cross_entropy_loss(
          logits.to(SumType(logits)), target.narrow(0, first, count), {}, at::Reduction::None));
    }
    context->save_for_backward({rows, target});
    context->saved_data["model"] = reinterpret_cast<int64_t>(model);
    return torch::cat(loss);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    const auto saved = context->get_saved_variables();
    const auto* model = reinterpret_cast<const RoutedModel*>(context->saved_data["model"].toInt());
    std::vector<Tensor> all;
    for (int64_t first = 0; first < saved[0].size(0); first += kChunkTokens) {
      const int64_t count = std::min(kChunkTokens, saved[0].size(0) - first);
      const torch::AutoGradMode with_gradients(true);
      const Tensor rows = saved[0].narrow(0, first, count).detach().set_requires_grad(true);
      const Tensor logits = model->transformer().Logits(rows);
      const Tensor loss =
          (torch::cross_entropy_loss(logits.to(SumType(logits)), saved[1].narrow(0, first, count),
                                     {}, at::Reduction::None) *
           grads[0].narrow(0, first, count))
              .sum();
      all.push_back(torch::autograd::grad({loss}, {rows})[0]);
    }
    return {torch::cat(all), Tensor(), Tensor()};
  }
};

}  // namespace

RouterTrainer::RouterTrainer(const RoutedModel& model, const RouterSamples& samples,
                             const Teacher& teacher, Gates& gates, torch::Device device)
    : model_(model),
      samples_(samples),
      teacher_(teacher),
      gates_(gates),
      device_(device),
      optimizer_(gates.values(), OptionsOf(model.recipe())) {
  const RouterRecipe& recipe = model.recipe();
  for (const int64_t length : samples.Lengths()) {
    std::map<std::string, std::vector<size_t>> tasks;
    for (size_t i = 0; i < samples.all().size(); ++i) {
      const RouterSample& s = samples.all()[i];
      if (s.length == length && teacher.answered[i]) tasks[s.task].push_back(i);
    }
    std::erase_if(tasks, [](const auto& task) { return task.second.size() < kFewestOfTask; });
    if (!tasks.empty()) usable_.push_back(std::move(tasks));
  }
  for (const RouterSample& s : samples.all()) {
    const bool paper = recipe.loss == RouterRecipe::Loss::kPaper;
    prices_[s.task] =
        paper ? std::array{kPaperLambda, kPaperLambda} : std::array{recipe.price.of(s.answer), 0.0};
  }
  if (recipe.standardise && !gates.is_list()) {
    // Not std(0): that 0 is a bool.
    const std::vector<int64_t> over{0};
    gates.Standardise(teacher.pooled.mean(over),
                      teacher.pooled.std(over, /*unbiased=*/true) + 1e-3);
  }
}

// A step's samples, a function of its number: one length, as many of each task as possible.
std::vector<size_t> RouterTrainer::Choose() const {
  const auto& tasks = usable_[static_cast<size_t>(step_) % usable_.size()];
  std::seed_seq seed{model_.recipe().seed, static_cast<uint64_t>(step_)};
  std::mt19937_64 random(seed);
  std::vector<const std::vector<size_t>*> order;
  for (const auto& [task, which] : tasks) order.push_back(&which);
  std::shuffle(order.begin(), order.end(), random);
  const int64_t length = samples_.all()[order[0]->front()].length;
  const int64_t count = std::max<int64_t>(2, model_.recipe().tokens / length);
  std::set<size_t> chosen;
  for (int64_t i = 0; i < count; ++i) {
    const std::vector<size_t>& of = *order[static_cast<size_t>(i) % order.size()];
    chosen.insert(of[random() % of.size()]);
  }
  return {chosen.begin(), chosen.end()};
}

Tensor RouterTrainer::CrossEntropy(const std::vector<size_t>& which, const RouterBatch& batch,
                                   const GateFunction& gate, const Kept& kept) const {
  if (model_.recipe().mode == RouterRecipe::Mode::kDense) {
    const Tensor logits = model_.Logits(batch, model_.Rows(batch, gate, kept));
    return PerSample(batch,
                     torch::cross_entropy_loss(logits, batch.target, {}, at::Reduction::None));
  }
  const Tensor stream = model_.Whole(batch, gate);
  const Tensor target = batch.tokens.roll(-1, 1).reshape({-1});
  const Tensor loss =
      ChunkedCrossEntropy::apply(stream.reshape({-1, stream.size(2)}), target, &model_)
          .reshape({stream.size(0), -1});
  Tensor share = torch::zeros(loss.sizes(), torch::kFloat32);
  for (int64_t b = 0; b < loss.size(0); ++b) {
    const RouterSample& s = samples_.all()[which[static_cast<size_t>(b)]];
    const int64_t count = s.prompt + s.response - 1;
    share[b].narrow(0, 0, count).fill_(1.0 / static_cast<double>(count));
  }
  return (loss * share.to(loss.device())).sum(1);
}

Tensor RouterTrainer::Loss(const std::vector<size_t>& which, const Tensor& noise) {
  const RouterRecipe& recipe = model_.recipe();
  const RouterBatch batch = samples_.Batch(which, device_);
  Kept kept;
  if (recipe.mode == RouterRecipe::Mode::kDense) model_.Dense(batch, &kept);
  std::vector<Tensor> full;
  const double temperature = recipe.Temperature(step_);
  const GateFunction gate = [&](int l, const Tensor& pooled) {
    const Tensor z = gates_.Logits(l, pooled);
    const Tensor y = ((z + noise[l].to(z.options().requires_grad(false))) / temperature)
                         .softmax(-1)
                         .select(1, 1);
    // Straight through: all or nothing, with the gradient of the probability.
    full.push_back(recipe.soft ? y : (y > 0.5).to(y.scalar_type()) + y - y.detach());
    return full.back();
  };
  Tensor loss;
  if (recipe.loss == RouterRecipe::Loss::kPaper) {
    loss = CrossEntropy(which, batch, gate, kept);
  } else {
    const auto index = torch::tensor(std::vector<int64_t>(which.begin(), which.end()));
    const Tensor dense = teacher_.stream.index_select(0, index.to(device_));
    loss = model_.Divergence(batch, dense, model_.Rows(batch, gate, kept));
  }
  const Tensor windows = 1 - torch::stack(full).mean(torch::IntArrayRef{0});  // [B]

  // A sample counts 1 / (samples of its task x tasks).
  std::map<std::string, int64_t> count;
  for (const size_t i : which) ++count[samples_.all()[i].task];
  std::vector<double> weight, kind, price, target, square;
  for (const size_t i : which) {
    const RouterSample& s = samples_.all()[i];
    weight.push_back(1.0 / static_cast<double>(count[s.task] * std::ssize(count)));
    kind.push_back(s.answer || recipe.loss == RouterRecipe::Loss::kPaper ? 1 : recipe.text_weight);
    price.push_back(prices_[s.task][0]);
    square.push_back(prices_[s.task][1]);
    target.push_back(recipe.target.of(s.answer));
  }
  const auto on = [&](const std::vector<double>& v) {
    return torch::tensor(v, torch::kFloat64).to(windows.options().requires_grad(false));
  };
  const Tensor off = windows - on(target);
  const Tensor penalty = recipe.loss == RouterRecipe::Loss::kPaper
                             ? on(price) * off.abs() + on(square) * off.square()
                             : on(price) * (1 - windows);
  const Tensor both =
      torch::stack({loss.detach().to(torch::kFloat64), windows.detach().to(torch::kFloat64)})
          .to(torch::kCPU);
  std::map<std::string, double> share;
  for (size_t b = 0; b < which.size(); ++b) {
    const RouterSample& s = samples_.all()[which[b]];
    const double l = both[0][static_cast<int64_t>(b)].item<double>(),
                 w = both[1][static_cast<int64_t>(b)].item<double>();
    (s.answer ? losses_.loss.answer : losses_.loss.text) += l;
    (s.answer ? losses_.windows.answer : losses_.windows.text) += w;
    (s.answer ? losses_.answers : losses_.texts) += 1;
    share[s.task] += (recipe.target.of(s.answer) - w) / static_cast<double>(count[s.task]);
  }
  for (const auto& [task, below] : share) {
    std::array<double, 2>& p = prices_[task];
    if (recipe.loss == RouterRecipe::Loss::kPaper) {
      for (double& lambda : p) lambda += kPaperAscent;
    } else if (recipe.has_target) {
      p[0] = std::max(0.0, p[0] + recipe.ascent * below);
    }
  }
  return ((loss * on(kind) + penalty) * on(weight)).sum();
}

void RouterTrainer::Step() {
  BATON_CHECK(!done() && usable());
  const std::vector<size_t> which = Choose();
  auto generator =
      at::detail::createCPUGenerator(model_.recipe().seed * 1000003 + static_cast<uint64_t>(step_));
  const Tensor u = torch::rand({model_.layers(), std::ssize(which), 2}, generator, torch::kFloat32);
  const Tensor noise = -torch::log(-torch::log(u + 1e-8) + 1e-8);
  Loss(which, noise.to(device_)).backward();
  optimizer_.Step(model_.recipe().Rate(step_, gates_.is_list()));
  for (Tensor& value : gates_.values()) value.mutable_grad() = Tensor();
  tokens_ += std::ssize(which) * samples_.all()[which[0]].length;
  ++step_;
}

RouterLosses RouterTrainer::TakeLosses() {
  RouterLosses l = std::exchange(losses_, {});
  l.loss.answer /= std::max(1.0, l.answers), l.loss.text /= std::max(1.0, l.texts);
  l.windows.answer /= std::max(1.0, l.answers), l.windows.text /= std::max(1.0, l.texts);
  return l;
}

void RouterTrainer::MeetTarget() {
  const torch::NoGradGuard no_gradients;
  const RouterRecipe& recipe = model_.recipe();
  std::map<std::string, size_t> taken;
  std::vector<bool> wanted(samples_.all().size());
  double target = 0;
  for (const auto& tasks : usable_) {
    for (const auto& [task, which] : tasks) {
      const size_t count =
          std::min(which.size(), (kTargetSamples + usable_.size() - 1) / usable_.size());
      for (size_t i = 0; i < count; ++i) wanted[which[i]] = true;
      if (taken[task] == 0) target += recipe.target.of(samples_.all()[which[0]].answer);
      taken[task] += count;
    }
  }
  target /= static_cast<double>(taken.size());
  // Differences of logits, each with the weight of its sample.
  std::vector<std::pair<double, double>> differences;
  for (const auto& which :
       BatchesOf(samples_, kTargetTokens, [&](size_t i) { return wanted[i]; })) {
    const RouterBatch batch = samples_.Batch(which, device_);
    std::vector<Tensor> z;
    const GateFunction gate = [&](int l, const Tensor& pooled) {
      z.push_back(gates_.Logits(l, pooled));
      return z.back().select(1, 1) > z.back().select(1, 0);
    };
    Kept kept;
    if (recipe.mode == RouterRecipe::Mode::kDense) model_.Dense(batch, &kept);
    model_.Rows(batch, gate, kept);
    const Tensor all = torch::stack(z).to(torch::kCPU, torch::kFloat64);  // [L, B, 2]
    const Tensor difference = (all.select(2, 0) - all.select(2, 1)).contiguous();
    for (int64_t i = 0; i < difference.numel(); ++i) {
      const size_t sample = which[static_cast<size_t>(i % difference.size(1))];
      differences.emplace_back(difference.data_ptr<double>()[i],
                               1.0 / static_cast<double>(taken[samples_.all()[sample].task]));
    }
  }
  std::sort(differences.begin(), differences.end(), std::greater<>());
  double all = 0, sum = 0;
  for (const auto& [difference, weight] : differences) all += weight;
  for (size_t i = 0; i + 1 < differences.size(); ++i) {
    sum += differences[i].second;
    const double here = differences[i].first, next = differences[i + 1].first;
    if (sum < target * all - 1e-9 || here == next) continue;
    return gates_.Shift(-(here + next) / 2);
  }
}

}  // namespace baton::train
