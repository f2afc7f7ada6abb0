#include "train/router_evaluate.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

namespace baton::train {
namespace {

constexpr int64_t kTokens = 65536;

GateFunction GateOf(const RouterSubject& subject, std::vector<Tensor>& full) {
  return [&](int l, const Tensor& pooled) {
    if (subject.gates == nullptr) {
      const bool is_full = subject.mask[static_cast<size_t>(l)] == 'F';
      full.push_back(torch::full({pooled.size(0)}, is_full, pooled.options().dtype(torch::kBool)));
    } else {
      const Tensor z = subject.gates->Logits(l, pooled);
      full.push_back((z.select(1, 0) - z.select(1, 1) >= subject.margin).logical_not());
    }
    return full.back();
  };
}

std::vector<RouterItem> Items(const RoutedModel& model, const RouterBatch& batch,
                              const std::vector<size_t>& which, const Tensor& dense,
                              const Tensor& rows, const std::vector<Tensor>& full) {
  const Tensor from = model.Logits(batch, dense), to = model.Logits(batch, rows);
  const Tensor best = to.argmax(-1);
  const auto share = [&](const Tensor& is) {
    return PerSample(batch, is.to(batch.share.scalar_type()));
  };
  const Tensor p = from.log_softmax(-1);
  const Tensor values =
      torch::stack({PerSample(batch, (p.exp() * (p - to.log_softmax(-1))).sum(-1)),
                    share(best == batch.target), share(best == from.argmax(-1))})
          .to(torch::kCPU, torch::kFloat64);
  const Tensor layers = torch::stack(full, 1).to(torch::kCPU);  // [B, L]
  std::vector<RouterItem> items;
  for (int64_t b = 0; b < std::ssize(which); ++b) {
    RouterItem& item = items.emplace_back();
    item.sample = which[static_cast<size_t>(b)];
    item.divergence = values[0][b].item<double>();
    item.kept = values[1][b].item<double>() > 0.999;
    item.top1 = values[2][b].item<double>();
    for (int64_t l = 0; l < layers.size(1); ++l)
      item.layers += layers[b][l].item<bool>() ? 'F' : 'S';
  }
  return items;
}

struct Mean {
  double sum = 0, squares = 0;
  int64_t count = 0;
  void Add(double v) { sum += v, squares += v * v, ++count; }
  double value() const { return count > 0 ? sum / static_cast<double>(count) : 0; }
  double error() const {
    if (count < 2) return 0;
    const auto n = static_cast<double>(count);
    return std::sqrt(std::max(0.0, squares / n - value() * value()) / (n - 1));
  }
};

double Rounded(double v) { return std::round(v * 1e5) / 1e5; }

}  // namespace

double RouterItem::windows() const {
  return static_cast<double>(std::count(layers.begin(), layers.end(), 'S')) /
         static_cast<double>(layers.size());
}

std::vector<RouterResult> EvaluateRouters(const RoutedModel& model, const RouterSamples& samples,
                                          const Teacher& teacher,
                                          const std::vector<RouterSubject>& subjects,
                                          const std::function<bool(size_t)>& wanted,
                                          torch::Device device) {
  const torch::NoGradGuard no_gradients;
  std::vector<RouterResult> results;
  for (const RouterSubject& s : subjects) results.push_back({.name = s.name});
  for (const auto& which : BatchesOf(samples, kTokens, wanted)) {
    const RouterBatch batch = samples.Batch(which, device);
    const auto index = torch::tensor(std::vector<int64_t>(which.begin(), which.end()));
    const Tensor dense = teacher.stream.index_select(0, index.to(device));
    Kept kept;
    if (model.recipe().mode == RouterRecipe::Mode::kDense) model.Dense(batch, &kept);
    for (size_t s = 0; s < subjects.size(); ++s) {
      std::vector<Tensor> full;
      const Tensor rows = model.Rows(batch, GateOf(subjects[s], full), kept);
      std::vector<RouterItem>& all = results[s].items;
      for (RouterItem& item : Items(model, batch, which, dense, rows, full))
        all.push_back(std::move(item));
    }
  }
  for (RouterResult& r : results) {
    std::sort(r.items.begin(), r.items.end(),
              [](const RouterItem& a, const RouterItem& b) { return a.sample < b.sample; });
  }
  return results;
}

std::vector<double> LayerHarm(const RoutedModel& model, const RouterSamples& samples,
                              const Teacher& teacher, size_t count, int64_t most,
                              torch::Device device) {
  std::map<std::string, size_t> taken;
  std::vector<bool> wanted(samples.all().size());
  int64_t length = samples.Lengths().front();
  for (const int64_t l : samples.Lengths())
    if (l <= most) length = l;
  for (size_t i = 0; i < samples.all().size(); ++i) {
    const RouterSample& s = samples.all()[i];
    wanted[i] = s.length == length && teacher.answered[i] && taken[s.task]++ < count;
  }
  std::vector<RouterSubject> subjects;
  for (int l = 0; l < model.layers(); ++l) {
    std::string mask(static_cast<size_t>(model.layers()), 'F');
    mask[static_cast<size_t>(l)] = 'S';
    subjects.push_back({.name = std::to_string(l), .mask = mask});
  }
  std::vector<double> harm;
  for (const RouterResult& r : EvaluateRouters(
           model, samples, teacher, subjects, [&](size_t i) { return wanted[i]; }, device)) {
    std::map<std::string, Mean> tasks;
    std::array<Mean, 2> kinds;
    for (const RouterItem& item : r.items)
      tasks[samples.all()[item.sample].task].Add(item.divergence);
    for (const auto& [task, mean] : tasks) {
      const auto sample = std::find_if(samples.all().begin(), samples.all().end(),
                                       [&](const RouterSample& s) { return s.task == task; });
      kinds[sample->answer ? 0 : 1].Add(mean.value());
    }
    harm.push_back(kinds[0].value() + kinds[1].value());
  }
  return harm;
}

std::string ToJson(const RouterResult& result, const RouterSamples& samples,
                   const RouterSettings& settings) {
  std::array<Mean, 2> windows, divergence;
  std::map<std::string, std::array<Mean, 4>> tasks;
  Mean all_windows, held, kept, top1;
  nlohmann::json items = nlohmann::json::array();
  for (const RouterItem& item : result.items) {
    const RouterSample& s = samples.all()[item.sample];
    const size_t kind = s.answer ? 0 : 1;
    const double w = item.windows(), tokens = static_cast<double>(s.prompt + s.response);
    const double seen = static_cast<double>(settings.sink + settings.window);
    windows[kind].Add(w);
    all_windows.Add(w);
    held.Add(1 - w + w * std::min(1.0, seen / tokens));
    divergence[kind].Add(item.divergence);
    s.answer ? kept.Add(item.kept) : top1.Add(item.top1);
    std::array<Mean, 4>& task = tasks[s.task];
    task[0].Add(w), task[1].Add(item.divergence), task[2].Add(item.kept), task[3].Add(item.top1);
    items.push_back({item.sample, item.kept ? 1 : 0, Rounded(item.divergence), item.layers});
  }
  nlohmann::json by_task;
  for (const auto& [name, m] : tasks) {
    by_task[name] = {{"items", m[0].count},           {"windows", Rounded(m[0].value())},
                     {"kl", Rounded(m[1].value())},   {"kl_standard_error", Rounded(m[1].error())},
                     {"kept", Rounded(m[2].value())}, {"top1", Rounded(m[3].value())}};
  }
  const nlohmann::json line = {{"event", "routed"},
                               {"name", result.name},
                               {"windows", Rounded(all_windows.value())},
                               {"windows_answer", Rounded(windows[0].value())},
                               {"windows_text", Rounded(windows[1].value())},
                               {"held", Rounded(held.value())},
                               {"answers", kept.count},
                               {"kept", Rounded(kept.value())},
                               {"kept_standard_error", Rounded(kept.error())},
                               {"answer_kl", Rounded(divergence[0].value())},
                               {"answer_kl_standard_error", Rounded(divergence[0].error())},
                               {"texts", top1.count},
                               {"text_kl", Rounded(divergence[1].value())},
                               {"text_kl_standard_error", Rounded(divergence[1].error())},
                               {"top1", Rounded(top1.value())},
                               {"tasks", by_task},
                               {"items", items}};
  return line.dump();
}

}  // namespace baton::train
