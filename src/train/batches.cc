#include "train/batches.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "base/check.h"

namespace baton::train {
namespace {

constexpr double kFewestWidth = 32;  // ids of keys at the start of the ramp
constexpr int64_t kEndToken = 0;     // fills the gaps between packed documents

uint64_t Mixed(uint64_t seed, int64_t step, int64_t part) {
  std::seed_seq mix{seed, static_cast<uint64_t>(step), static_cast<uint64_t>(part)};
  std::array<uint32_t, 2> out{};
  mix.generate(out.begin(), out.end());
  return static_cast<uint64_t>(out[0]) << 32 | out[1];
}

Samples Joined(const std::vector<Samples>& parts) {
  std::vector<Tensor> tokens, kinds, distance;
  for (const Samples& s : parts) {
    tokens.push_back(s.tokens);
    kinds.push_back(s.kinds);
    distance.push_back(s.distance);
  }
  return {torch::cat(tokens), torch::cat(kinds), torch::cat(distance)};
}

torch::Generator GeneratorOn(torch::Device device, uint64_t seed) {
  torch::Generator g = device.is_cuda() ? at::globalContext().defaultGenerator(device).clone()
                                        : at::detail::createCPUGenerator(seed);
  g.set_current_seed(seed);
  return g;
}

}  // namespace

Batches::Batches(const Recipe& recipe, const Tensor& text, int64_t vocab, int64_t align)
    : recipe_(recipe), tasks_(text, vocab), align_(align) {
  if (!recipe.pack) return;
  on_host_ = text.to(torch::kCPU, torch::kInt64).contiguous();
  const int64_t* data = on_host_.data_ptr<int64_t>();
  for (int64_t i = 0; i < on_host_.size(0); ++i)
    if (data[i] == kDocumentToken || i == 0) documents_.push_back(i);
  documents_.push_back(on_host_.size(0));
}

void Batches::Pack(int64_t rows, int64_t n, uint64_t seed, Samples* samples, Tensor* starts) const {
  std::mt19937_64 random(seed);
  const Tensor tokens = torch::full({rows, n}, kEndToken, torch::kInt64);
  const Tensor kinds = torch::full({rows, n}, kRandomToken, torch::kInt64);
  const Tensor begin = torch::zeros({rows, n}, torch::kInt64);
  const int64_t* text = on_host_.data_ptr<int64_t>();
  for (int64_t r = 0; r < rows; ++r) {
    int64_t* token = tokens.data_ptr<int64_t>() + r * n;
    int64_t* kind = kinds.data_ptr<int64_t>() + r * n;
    int64_t* start = begin.data_ptr<int64_t>() + r * n;
    for (int64_t at = 0; at < n;) {
      const size_t d = random() % (documents_.size() - 1);
      const int64_t count = std::min(documents_[d + 1] - documents_[d], n - at);
      std::copy_n(text + documents_[d], count, token + at);
      std::fill_n(kind + at + 1, count - 1, kTextToken);  // a first token follows from nothing
      const int64_t next = std::min(n, (at + count + align_ - 1) / align_ * align_);
      std::fill(start + at, start + next, at);
      at = next;
    }
  }
  const torch::Device device = tasks_.device();
  *samples = {tokens.to(device), kinds.to(device), torch::zeros_like(tokens).to(device)};
  *starts = begin.to(device);
}

Batch Batches::Make(int64_t step, int64_t part) const {
  const Stage& stage = recipe_.StageOf(step);
  const int64_t n = stage.n, rows = stage.rows / recipe_.accumulate;
  const uint64_t seed = Mixed(recipe_.seed, step, part);
  torch::Generator g = GeneratorOn(tasks_.device(), seed);
  // The tasks begin with few keys, and grow.
  const double grown =
      recipe_.ramp > 0
          ? std::min(1.0, static_cast<double>(step) / static_cast<double>(recipe_.ramp))
          : 1.0;
  const auto most = static_cast<double>(tasks_.most_width());
  const double least = std::min(most, kFewestWidth);
  const int64_t links = std::max<int64_t>(8, n / 64);  // of a row's chains
  const auto width = std::clamp(static_cast<int64_t>(least * std::pow(most / least, grown)),
                                std::min(links, tasks_.most_width()), tasks_.most_width());
  const double quarter = std::max(8.0, static_cast<double>(n) / 4);
  const auto most_keys = std::min(width, static_cast<int64_t>(8 * std::pow(quarter / 8, grown)));
  const auto share = [&](double s) {
    return static_cast<int64_t>(std::lround(static_cast<double>(rows) * (1 - recipe_.text) * s));
  };
  const int64_t facts = share(recipe_.facts), pairs = std::min(share(recipe_.pairs), rows - facts),
                chains = std::min(share(1 - recipe_.facts - recipe_.pairs), rows - facts - pairs),
                text = rows - facts - pairs - chains;
  Batch batch;
  std::vector<Samples> parts;
  Tensor text_starts;
  if (text > 0 && recipe_.pack) {
    Pack(text, n, seed, &parts.emplace_back(), &text_starts);
  } else if (text > 0) {
    parts.push_back(tasks_.Text(text, n, g));
  }
  if (facts > 0) parts.push_back(tasks_.Facts(facts, n, width, g));
  if (pairs > 0) parts.push_back(tasks_.Pairs(pairs, n, width, 0, most_keys, g));
  if (chains > 0) parts.push_back(tasks_.Chains(chains, n, width, g));
  batch.samples = Joined(parts);
  if (text_starts.defined())
    batch.starts = torch::constant_pad_nd(text_starts, {0, 0, 0, rows - text});
  const Tensor some = torch::randint(0, n, {std::min(recipe_.distilled_rows, n)}, g,
                                     batch.samples.tokens.options());
  batch.distilled_rows = std::get<0>(some.sort());
  return batch;
}

}  // namespace baton::train
