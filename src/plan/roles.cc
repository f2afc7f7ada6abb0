#include "plan/roles.h"

#include "base/check.h"

namespace baton {
namespace {

constexpr BranchRule kOwnAll{BranchRule::Cache::kOwn, TokenSet::Kind::kAll};
constexpr BranchRule kOwnWindow{BranchRule::Cache::kOwn, TokenSet::Kind::kWindow};
constexpr BranchRule kOwnIndex{BranchRule::Cache::kOwn, TokenSet::Kind::kIndex};
constexpr BranchRule kSourceAll{BranchRule::Cache::kSource, TokenSet::Kind::kAll};
constexpr BranchRule kSourceIndex{BranchRule::Cache::kSource, TokenSet::Kind::kIndex};

// In the order of the enumeration.
constexpr RoleRow kRoles[] = {
    {.role = Role::kFull,
     .name = "full",
     .kind = "full",
     .letter = 'F',
     .says = "attends to the whole context",
     .in_plans = true,
     .branches = {kOwnAll}},
    {.role = Role::kSelect,
     .name = "select",
     .letter = 'S',
     .says = "attends to the whole context, passes its top k on",
     .in_plans = true,
     .publishes = true,
     .branches = {kOwnAll}},
    {.role = Role::kScan,
     .name = "scan",
     .letter = 'C',
     .says = "ranks a 4-bit copy of K, attends to its top k, passes it on",
     .in_plans = true,
     .fields = kSizeField | kBitsField,
     .publishes = true,
     .branches = {kOwnIndex}},
    {.role = Role::kReuse,
     .name = "reuse",
     .letter = 'R',
     .says = "attends to the top k of an earlier layer",
     .in_plans = true,
     .fields = kSourceField | kSizeField,
     .branches = {kOwnIndex}},
    {.role = Role::kWindow,
     .name = "window",
     .kind = "swa",
     .letter = 'W',
     .says = "attends to the first and the latest tokens",
     .in_plans = true,
     .fields = kWindowField,
     .branches = {kOwnWindow}},
    {.role = Role::kRoute,
     .name = "route",
     .letter = 'X',
     .says = "full or a window that frees the rest of its cache, decided once per request",
     .in_plans = true,
     .fields = kWindowField,
     .publishes = true,
     .branches = {kOwnAll}},
    {.role = Role::kCrossFull,
     .name = "cross full",
     .kind = "cross_full",
     .letter = 'B',
     .says = "attends to every earlier token of a cache projected from a lower layer's stream",
     .branches = {kOwnAll}},
    {.role = Role::kCrossDense,
     .name = "cross dense",
     .kind = "cross_dense",
     .letter = 'D',
     .says = "attends to every earlier token of a shared cache",
     .branches = {kSourceAll}},
    {.role = Role::kCrossIndex,
     .name = "cross index",
     .kind = "cross_index",
     .letter = 'I',
     .says = "attends to the indexer's list in a shared cache",
     .branches = {kSourceIndex}},
    {.role = Role::kCrossIndexLocal,
     .name = "cross index local",
     .kind = "cross_index_local",
     .letter = 'L',
     .says = "the indexer's list in a shared cache, and a window of its own, gated",
     .branch_count = 2,
     .branches = {kSourceIndex, kOwnWindow}},
    {.role = Role::kSparse,
     .name = "sparse",
     .kind = "sparse",
     .letter = 'H',
     .says = "the list of a full layer in that layer's cache, and a window of its own, gated",
     .branch_count = 2,
     .branches = {kSourceIndex, kOwnWindow}},
    {.role = Role::kSparseShared,
     .name = "sparse shared",
     .kind = "sparse_shared",
     .letter = 'G',
     .says = "the list of a full layer and the latest tokens in that layer's cache, gated",
     .branches = {kSourceIndex}},
};

constexpr bool InOrder() {
  for (size_t i = 0; i < std::size(kRoles); ++i) {
    if (static_cast<size_t>(kRoles[i].role) != i) return false;
  }
  return true;
}
static_assert(InOrder());

}  // namespace

std::span<const RoleRow> Roles() { return kRoles; }

const RoleRow& RowOf(Role role) {
  const auto i = static_cast<size_t>(role);
  BATON_CHECK_LT(i, std::size(kRoles));
  return kRoles[i];
}

const RoleRow* RoleByName(std::string_view name) {
  for (const RoleRow& row : kRoles) {
    if (row.name == name) return &row;
  }
  return nullptr;
}

const RoleRow* RoleByLetter(char letter) {
  for (const RoleRow& row : kRoles) {
    if (row.in_plans && row.letter == letter) return &row;
  }
  return nullptr;
}

const RoleRow* RoleByKind(std::string_view kind) {
  for (const RoleRow& row : kRoles) {
    if (!row.kind.empty() && row.kind == kind) return &row;
  }
  return nullptr;
}

std::string ToString(Role role) { return std::string(RowOf(role).name); }

}  // namespace baton
