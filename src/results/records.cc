#include "results/records.h"

#include "plan/roles.h"

namespace baton::results {

std::string Letters(const Plan& plan) {
  std::string letters;
  for (const LayerRole& layer : plan.layers) letters += RowOf(layer.role).letter;
  return letters;
}

Plan PlanOfLetters(const std::string& letters) {
  Plan plan;
  for (const char letter : letters) {
    const RoleRow* found = nullptr;
    for (const RoleRow& row : Roles())
      if (row.in_plans && row.letter == letter) found = &row;
    if (found == nullptr) return Plan();
    plan.layers.push_back({.role = found->role});
  }
  return plan;
}

}  // namespace baton::results
