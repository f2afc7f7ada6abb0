#include "train/recipe.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>

#include "base/check.h"
#include "train/json_reader.h"
#include "train/tasks.h"

namespace baton::train {
namespace {

using nlohmann::json;

constexpr double kMost = 1e9;

Result<Stage> ReadStage(const json& object) {
  Stage s;
  if (!object.is_object()) return Error::InvalidArgument("recipe: stages holds no objects");
  JsonReader r(object, "recipe");
  r.Read("steps", s.steps, 1, kMost);
  r.Read("n", s.n, kShortestRow, kMost);
  r.Read("rows", s.rows, 1, kMost);
  r.Read("window", s.window, 0, kMost);
  BATON_TRY(r.Finish());
  return s;
}

void ReadSchedule(JsonReader& r, Recipe& recipe) {
  const json* v = r.Find("schedule");
  if (v == nullptr) return;
  if (*v == "wsd") {
    recipe.schedule = Recipe::Schedule::kWsd;
  } else if (*v == "cosine") {
    recipe.schedule = Recipe::Schedule::kCosine;
  } else if (*v == "linear") {
    recipe.schedule = Recipe::Schedule::kLinear;
  } else {
    r.Fail(fmt::format("schedule is {}, expected wsd, cosine or linear", v->dump()));
  }
}

}  // namespace

Result<Recipe> Recipe::Parse(const std::string& text) {
  const json object = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return Error::Corrupt("recipe: no JSON object");
  Recipe recipe;
  JsonReader r(object, "recipe");
  OptimizerOptions& o = recipe.optimizer;
  r.Read("seed", recipe.seed, 0, kMost);
  r.Read("rate", recipe.rate, 0, 1);
  ReadSchedule(r, recipe);
  r.Read("warmup", recipe.warmup, 0, kMost);
  r.Read("decay", recipe.decay, 0, kMost);
  r.Read("end", recipe.end, 0, 1);
  r.Read("accumulate", recipe.accumulate, 1, 1024);
  r.Read("bf16", recipe.bf16);
  r.Read("muon", o.muon);
  r.Read("weight_decay", o.weight_decay, 0, 1);
  r.Read("beta1", o.beta1, 0, 0.9999);
  r.Read("beta2", o.beta2, 0, 0.9999);
  r.Read("momentum", o.momentum, 0, 0.9999);
  r.Read("clip", o.clip, 0, kMost);
  r.Read("text", recipe.text, 0, 1);
  r.Read("facts", recipe.facts, 0, 1);
  r.Read("pairs", recipe.pairs, 0, 1);
  r.Read("recall_weight", recipe.recall_weight, 0, 1000);
  r.Read("ramp", recipe.ramp, 0, kMost);
  r.Read("pack", recipe.pack);
  r.Read("distilled_rows", recipe.distilled_rows, 1, kMost);
  r.Read("sparse_from", recipe.sparse_from, -1, kMost);
  const json* stages = r.Find("stages");
  if (stages == nullptr || !stages->is_array() || stages->empty())
    return Error::InvalidArgument("recipe: stages is missing or empty");
  for (const json& s : *stages) {
    BATON_ASSIGN(Stage stage, ReadStage(s));
    if (stage.rows % recipe.accumulate != 0)
      return Error::InvalidArgument("recipe: {} rows are no multiple of accumulate {}", stage.rows,
                                    recipe.accumulate);
    recipe.stages.push_back(stage);
  }
  BATON_TRY(r.Finish());
  if (recipe.facts + recipe.pairs > 1)
    return Error::InvalidArgument("recipe: facts {} and pairs {} are more than all tasks",
                                  recipe.facts, recipe.pairs);
  return recipe;
}

int64_t Recipe::steps() const {
  int64_t sum = 0;
  for (const Stage& s : stages) sum += s.steps;
  return sum;
}

int64_t Recipe::tokens() const {
  int64_t sum = 0;
  for (const Stage& s : stages) sum += s.steps * s.n * s.rows;
  return sum;
}

const Stage& Recipe::StageOf(int64_t step) const {
  for (const Stage& s : stages) {
    if (step < s.steps) return s;
    step -= s.steps;
  }
  return stages.back();
}

double Recipe::Rate(int64_t step) const {
  const auto at = static_cast<double>(step), all = static_cast<double>(steps());
  const double rise = warmup > 0 ? std::min(1.0, (at + 1) / static_cast<double>(warmup)) : 1.0;
  double fall = 0;  // 0 at the top, 1 at the end
  switch (schedule) {
    case Schedule::kWsd:
      if (decay > 0)
        fall = std::max(0.0, (at - all + static_cast<double>(decay)) / static_cast<double>(decay));
      break;
    case Schedule::kCosine:
      fall = 0.5 - 0.5 * std::cos(std::numbers::pi * at / all);
      break;
    case Schedule::kLinear:
      fall = at / all;
      break;
  }
  return rate * rise * (1 - (1 - end) * fall);
}

}  // namespace baton::train
