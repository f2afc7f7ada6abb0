#include "train/router_samples.h"

#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "base/check.h"
#include "train/json_reader.h"

namespace baton::train {
namespace {

constexpr double kMost = 1e9;

Result<RouterSample> Parse(const std::string& line) {
  const nlohmann::json object = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return Error::Corrupt("no JSON object");
  RouterSample s;
  JsonReader r(object, "sample");
  const nlohmann::json *task = r.Find("task"), *kind = r.Find("kind"), *scored = r.Find("scored");
  r.Read("length", s.length, 1, kMost);
  r.Read("offset", s.offset, 0, kMost);
  r.Read("prompt", s.prompt, 1, kMost);
  r.Read("response", s.response, 1, RouterSamples::kResponse);
  if (task == nullptr || !task->is_string()) r.Fail("task is missing");
  if (kind == nullptr || (*kind != "answer" && *kind != "text"))
    r.Fail("kind is not answer or text");
  if (scored == nullptr || !scored->is_array() || scored->empty()) r.Fail("scored is missing");
  BATON_TRY(r.Finish());
  s.task = task->get<std::string>();
  s.answer = *kind == "answer";
  for (const nlohmann::json& range : *scored) {
    if (!range.is_array() || range.size() != 2 || !range[0].is_number_integer() ||
        !range[1].is_number_integer())
      return Error::Corrupt("scored holds no pairs of integers");
    s.scored.emplace_back(range[0].get<int64_t>(), range[1].get<int64_t>());
    const auto [first, end] = s.scored.back();
    if (first < 0 || end <= first || end > s.response)
      return Error::Corrupt("scored tokens [{}, {}) of a response of {}", first, end, s.response);
  }
  if (s.prompt + s.response > s.length)
    return Error::Corrupt("{} + {} tokens in a row of {}", s.prompt, s.response, s.length);
  return s;
}

}  // namespace

int64_t RouterSample::scored_tokens() const {
  int64_t n = 0;
  for (const auto& [first, end] : scored) n += end - first;
  return n;
}

Result<RouterSamples> RouterSamples::Read(const std::string& folder, const std::string& split,
                                          int64_t vocab) {
  const std::string index = folder + "/" + split + ".jsonl", data = folder + "/" + split + ".u16";
  BATON_ASSIGN(const MappedFile lines, MappedFile::Open(index));
  BATON_ASSIGN(const MappedFile ids, MappedFile::Open(data));
  RouterSamples out;
  out.tokens_.resize(ids.bytes().size() / 2);
  std::memcpy(out.tokens_.data(), ids.bytes().data(), out.tokens_.size() * 2);
  for (const uint16_t id : out.tokens_)
    if (id >= vocab)
      return Error::Corrupt("{}: token {}, the model's vocabulary has {}", data, id, vocab)
          .Hint("make the samples with this model: scripts/router-samples");
  std::istringstream in(
      std::string(reinterpret_cast<const char*>(lines.bytes().data()), lines.bytes().size()));
  std::string line;
  for (int number = 1; std::getline(in, line); ++number) {
    Result<RouterSample> sample = Parse(line);
    if (!sample.ok()) return std::move(sample).error().At(fmt::format("{}:{}", index, number));
    if (sample->offset + sample->prompt + sample->response > std::ssize(out.tokens_))
      return Error::Corrupt("{}:{}: a sample beyond the {} tokens of {}", index, number,
                            out.tokens_.size(), data);
    out.samples_.push_back(std::move(sample).value());
  }
  if (out.samples_.empty()) return Error::Corrupt("{}: no samples", index);
  return out;
}

std::vector<int64_t> RouterSamples::Lengths() const {
  std::set<int64_t> lengths;
  for (const RouterSample& s : samples_) lengths.insert(s.length);
  return {lengths.begin(), lengths.end()};
}

RouterBatch RouterSamples::Batch(const std::vector<size_t>& which, torch::Device device) const {
  BATON_CHECK(!which.empty());
  const int64_t batch = std::ssize(which), n = samples_[which[0]].length;
  const Tensor tokens = torch::zeros({batch, n}, torch::kInt64);
  const Tensor rows = torch::zeros({batch, kResponse}, torch::kInt64);
  std::vector<int64_t> prompts, at, target, sample;
  std::vector<float> share;
  for (int64_t b = 0; b < batch; ++b) {
    const RouterSample& s = samples_[which[static_cast<size_t>(b)]];
    BATON_CHECK_EQ(s.length, n);
    int64_t* token = tokens.data_ptr<int64_t>() + b * n;
    const uint16_t* from = tokens_.data() + s.offset;
    for (int64_t i = 0; i < s.prompt + s.response; ++i) token[i] = from[i];
    prompts.push_back(s.prompt);
    // Rows beyond the response repeat the last position, whose logits nobody asks for.
    for (int64_t i = 0; i < kResponse; ++i)
      rows.data_ptr<int64_t>()[b * kResponse + i] = std::min(s.prompt - 1 + i, n - 1);
    for (const auto& [first, end] : s.scored) {
      for (int64_t i = first; i < end; ++i) {
        at.push_back(b * kResponse + i);
        target.push_back(token[s.prompt + i]);
        sample.push_back(b);
        share.push_back(1.0f / static_cast<float>(s.scored_tokens()));
      }
    }
  }
  const auto on = [&](const std::vector<int64_t>& v) {
    return torch::tensor(v, torch::kInt64).to(device);
  };
  return {.tokens = tokens.to(device),
          .prompts = on(prompts),
          .rows = rows.to(device),
          .at = on(at),
          .target = on(target),
          .sample = on(sample),
          .share = torch::tensor(share).to(device)};
}

}  // namespace baton::train
