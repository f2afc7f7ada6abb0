#include "train/router_recipe.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "train/json_reader.h"

namespace baton::train {
namespace {

using nlohmann::json;

constexpr double kMost = 1e9;

double Cosine(double at) {
  return 0.5 + 0.5 * std::cos(std::numbers::pi * std::clamp(at, 0.0, 1.0));
}

// {"answer": a, "text": b}; false: the key is missing.
bool ReadKinds(JsonReader& r, const char* key, ByKind& value, double most) {
  const json* v = r.Find(key);
  if (v == nullptr) return false;
  if (!v->is_object()) {
    r.Fail(fmt::format("{} is {}, expected {{\"answer\": A, \"text\": T}}", key, v->dump()));
    return false;
  }
  JsonReader kinds(*v, key);
  kinds.Read("answer", value.answer, 0, most);
  kinds.Read("text", value.text, 0, most);
  if (const Status s = kinds.Finish(); !s.ok()) r.Fail(s.error().message());
  return true;
}

// The first name is the value that is kept where the key is missing.
bool ReadChoice(JsonReader& r, const char* key, std::string_view first, std::string_view second) {
  const json* v = r.Find(key);
  if (v == nullptr || *v == first) return false;
  if (*v == second) return true;
  r.Fail(fmt::format("{} is {}, expected {} or {}", key, v->dump(), first, second));
  return false;
}

}  // namespace

Result<RouterRecipe> RouterRecipe::Parse(const std::string& text) {
  const json object = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return Error::Corrupt("recipe: no JSON object");
  RouterRecipe recipe;
  JsonReader r(object, "recipe");
  if (ReadChoice(r, "mode", "exact", "dense")) recipe.mode = Mode::kDense;
  if (ReadChoice(r, "loss", "distill", "paper")) recipe.loss = Loss::kPaper;
  r.Read("pool", recipe.settings.pool, 1, kMost);
  r.Read("sink", recipe.settings.sink, 0, kMost);
  r.Read("window", recipe.settings.window, 1, kMost);
  r.Read("text_weight", recipe.text_weight, 0, 1000);
  ReadKinds(r, "price", recipe.price, 1000);
  recipe.has_target = ReadKinds(r, "target", recipe.target, 1);
  r.Read("ascent", recipe.ascent, 0, 10);
  r.Read("seed", recipe.seed, 0, kMost);
  r.Read("steps", recipe.steps, 1, kMost);
  r.Read("tokens", recipe.tokens, 1, kMost);
  r.Read("rate", recipe.rate, 0, 1);
  r.Read("list_rate", recipe.list_rate, 0, 10);
  r.Read("bias", recipe.bias, -20, 20);
  r.Read("standardise", recipe.standardise);
  r.Read("soft", recipe.soft);
  r.Read("weight_decay", recipe.weight_decay, 0, 1);
  r.Read("clip", recipe.clip, 0, kMost);
  BATON_TRY(r.Finish());
  return recipe;
}

double RouterRecipe::Rate(int64_t step, bool list) const {
  const double at = static_cast<double>(step) / static_cast<double>(steps);
  const double rise = std::min(1.0, at / 0.2 + 1.0 / static_cast<double>(steps));
  return (list ? list_rate : rate) * (at < 0.2 ? rise : Cosine((at - 0.2) / 0.8));
}

double RouterRecipe::Temperature(int64_t step) const {
  return 1 + 0.5 * Cosine(static_cast<double>(step) / static_cast<double>(steps) / 0.6);
}

}  // namespace baton::train
