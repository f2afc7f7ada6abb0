#include "results/records.h"

namespace baton::results {

constexpr std::string_view kLetters = "FSCRW";

std::string Letters(const Plan& plan) {
  std::string letters;
  for (const LayerRole& layer : plan.layers) letters += kLetters[static_cast<size_t>(layer.role)];
  return letters;
}

Plan PlanOfLetters(const std::string& letters) {
  Plan plan;
  for (const char letter : letters) {
    const size_t role = kLetters.find(letter);
    if (role == kLetters.npos) return Plan();
    plan.layers.push_back({.role = static_cast<Role>(role)});
  }
  return plan;
}

}  // namespace baton::results
