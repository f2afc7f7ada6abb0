// The one table of roles: what a layer of each role reads, publishes and is called. Parsing,
// printing, byte counts and reports read it; a new role is a row here, its pricing in the search
// and, where it needs more than branches, its step in src/attention.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

#include "plan/layer_plan.h"

namespace baton {

// Fields of a role in a plan file.
enum RoleField : uint8_t {
  kNoField = 0,
  kSourceField = 1,
  kSizeField = 2,
  kBitsField = 4,
  kWindowField = 8
};

struct BranchRule {
  enum class Cache : uint8_t { kOwn, kSource } cache = Cache::kOwn;
  TokenSet::Kind tokens = TokenSet::Kind::kAll;
};

struct RoleRow {
  Role role = Role::kFull;
  std::string_view name;  // in plan files and output
  std::string_view kind;  // plan.kind of models that are trained for it; empty: plans only
  char letter = '?';      // one per layer in bitmaps and tables
  std::string_view says;  // one line for people
  bool in_plans = false;  // a user's plan may give it
  uint8_t fields = kNoField;
  bool publishes = false;  // other layers may reuse its ranking
  int branch_count = 1;
  std::array<BranchRule, 2> branches{};

  std::span<const BranchRule> Branches() const {
    return std::span(branches).first(static_cast<size_t>(branch_count));
  }
};

std::span<const RoleRow> Roles();
const RoleRow& RowOf(Role role);
// By its name in plan files; null: no such role.
const RoleRow* RoleByName(std::string_view name);
// Of those in plans, by letter; null: none.
const RoleRow* RoleByLetter(char letter);
// By plan.kind of a model; null: no such kind.
const RoleRow* RoleByKind(std::string_view kind);

}  // namespace baton
