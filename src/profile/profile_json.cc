// Profiles on disk: the fields of struct Profile under their own names, every one of them needed.
#include <algorithm>

#include "base/atomic_file.h"
#include "baton/profile.h"
#include "profile/texts.h"
#include "results/profile_fields.h"

namespace baton {
namespace {

constexpr int kVersion = 2;  // 1 had no kinds of text

// What is wrong with the numbers of a profile, each of which is there and of its kind; empty:
// nothing.
std::string Problem(const Profile& p) {
  for (const auto& [key, count] : {std::pair<const char*, int64_t>{"layers", p.layers},
                                   {"heads", p.heads},
                                   {"kv_heads", p.kv_heads},
                                   {"head_dim", p.head_dim}})
    if (count < 1) return fmt::format("\"{}\" must be at least 1", key);
  if (p.layers > 1024 || p.model_window.size() != static_cast<size_t>(p.layers))
    return "\"layers\" must be at most 1024 and match model_window";
  if (const Status good = p.options.Check(); !good.ok())
    return fmt::format("\"options\" cannot be: {}", good.error().message());
  const results::SizeCheck wrong(p, /*may_be_empty=*/false);
  if (!wrong.key.empty())
    return fmt::format("\"{}\" must hold {}{} numbers", wrong.key,
                       wrong.lists ? fmt::format("{} lists of ", *wrong.lists) : "", wrong.numbers);
  const size_t budgets = p.options.budgets.size(), windows = p.options.windows.size();
  const auto n = static_cast<size_t>(p.layers);
  const auto holds = [](const std::vector<std::vector<float>>& table, size_t lists,
                        size_t numbers) {
    return table.size() == lists && std::all_of(table.begin(), table.end(), [&](const auto& list) {
             return list.size() == numbers;
           });
  };
  if (p.kinds.empty()) return "\"kinds\" is empty";
  for (const KindLoss& k : p.kinds) {
    if (!holds(k.text, budgets, n * n) || !holds(k.scan_text, budgets, n) ||
        !holds(k.window_text, windows, n) || k.price_text.size() != n ||
        k.own_price_text.size() != n)
      return "\"kinds\" must have one number per budget or window and layer";
  }
  if (p.costs.scan.size() != budgets || p.costs.reuse.size() != budgets ||
      p.costs.window.size() != windows)
    return "\"costs\" must have one number per budget and window";
  return "";
}

}  // namespace

std::string Profile::ToJson() const {
  auto out = results::ToJson<results::Json>(*this);
  out["format"] = "baton-profile";
  out["version"] = kVersion;
  return out.dump(-1, ' ', false, results::Json::error_handler_t::replace) + "\n";
}

Status Profile::Save(const std::string& path) const { return WriteFileAtomically(path, ToJson()); }

Result<Profile> Profile::Load(const std::string& path) {
  BATON_ASSIGN(std::string text_of_file, ReadText(path));
  return Parse(text_of_file, path);
}

Result<Profile> Profile::Parse(const std::string& text_of_file, const std::string& path) {
  using results::Json;
  const Json in = Json::parse(text_of_file, nullptr, false);
  if (!in.is_object() || in.value("format", Json()) != Json("baton-profile")) {
    return Error::Corrupt("{}: not a baton profile", path)
        .Hint("make one with: baton profile MODEL --text FILE -o profile.json");
  }
  if (in.value("version", Json()) != Json(kVersion)) {
    return Error::Unsupported("{}: profile version {}, this program reads version {}", path,
                              in.value("version", Json()).dump(), kVersion)
        .Hint("make it again with baton profile");
  }
  Profile p;
  std::string problem = results::Read(in, p);
  if (problem.empty()) problem = Problem(p);
  if (problem.empty()) return p;
  return Error::Corrupt("{}: not a usable profile: {}", path, problem)
      .Hint("make it again with baton profile");
}

}  // namespace baton
