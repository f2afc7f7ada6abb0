#include "baton/plan.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "base/atomic_file.h"
#include "plan/roles.h"

namespace baton {
namespace {

constexpr int64_t kMaxFileBytes =
    16 << 20;  // a plan is kilobytes; anything larger is another kind of file

}  // namespace

Plan Plan::Dense(int layers) {
  Plan plan;
  plan.layers.resize(layers);
  return plan;
}

Result<Plan> Plan::Load(const std::string& path) {
  std::error_code ec;
  const auto bytes = std::filesystem::file_size(path, ec);
  if (ec) {
    return Error(ec == std::errc::no_such_file_or_directory ? Error::Code::kNotFound
                                                            : Error::Code::kIo,
                 fmt::format("{}: cannot read: {}", path, ec.message()))
        .Hint("a plan is a JSON file written by `baton plan`");
  }
  if (bytes > static_cast<uintmax_t>(kMaxFileBytes))
    return Error::InvalidArgument("{}: {} bytes, a plan has at most {}", path, bytes, kMaxFileBytes)
        .Hint("is this the model file?");
  std::ifstream file(path, std::ios::binary);
  std::string text(bytes, '\0');
  if (!file.read(text.data(), static_cast<std::streamsize>(bytes)))
    return Error::Io("{}: cannot read {} bytes", path, bytes);
  auto plan = Parse(text);
  if (!plan.ok()) return std::move(plan).error().At(path);
  return plan;
}

Status Plan::Save(const std::string& path) const {
  const std::string text = ToJson();
  // What cannot be read back (a NaN among the evidence, details that are no JSON) must not replace
  // a good file.
  if (auto back = Parse(text); !back.ok())
    return std::move(back).error().At(path + ": the plan cannot be saved");
  return WriteFileAtomically(path, text);
}

std::string Plan::Summary() const {
  std::string out = fmt::format("{} layers: ", layers.size());
  for (const RoleRow& row : Roles()) {
    if (!row.in_plans) continue;
    const auto count = std::count_if(layers.begin(), layers.end(),
                                     [&](const LayerRole& l) { return l.role == row.role; });
    if (row.role == Role::kRoute && count == 0) continue;  // only plans with a router have them
    out += fmt::format("{}{} {}", row.role == Role::kFull ? "" : ", ", count, row.name);
  }
  out += budget.fraction > 0 ? fmt::format(" | {:.4g} % of the context", 100 * budget.fraction)
                             : fmt::format(" | {} tokens", budget.tokens);
  const char* scopes[] = {"all", "group", "head_map"};
  out += fmt::format(", sink {}, recent {}, scope {}, {}", sink, recent,
                     scopes[static_cast<int>(scope)], pool == Pool::kSum ? "sum" : "max");
  if (evict) out += ", windows evict";
  if (block > 1) out += fmt::format(", blocks of {}", block);
  if (prefill.sparse)
    out += fmt::format(", prompt in tiles of {} with {:.4g} % of the context, at least {}",
                       prefill.tile, 100 * prefill.fraction, prefill.min);
  return out;
}

}  // namespace baton
