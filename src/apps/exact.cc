#include "apps/exact.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "apps/command.h"
#include "apps/output.h"

namespace baton::apps {
namespace {

enum class Source { kPlan, kLookup, kBoth };

}  // namespace

void ExactFlags::Add(CLI::App* command) {
  constexpr const char* group = "Exact answers";
  command
      ->add_flag("--exact", exact,
                 "The plan only drafts, dense attention decides: text and logits are dense "
                 "decoding's own, bit for bit")
      ->group(group);
  command
      ->add_option_function<Source>(
          "--draft",
          [this](Source s) {
            options.plan = s != Source::kLookup;
            options.lookup = s != Source::kPlan;
          },
          "What drafts: the plan (the default), lookup (what followed the newest tokens where they "
          "stood before), or both, lookup first")
      ->transform(CLI::CheckedTransformer(
          std::map<std::string, Source>{
              {"plan", Source::kPlan}, {"lookup", Source::kLookup}, {"both", Source::kBoth}},
          CLI::ignore_case))
      ->group(group);
  drafts = command
               ->add_option("--drafts", options.most_drafts,
                            "Tokens drafted for each dense pass; left out: as many as pay, up to 7")
               ->check(Between(1, 15))
               ->group(group);
}

std::optional<ExactOptions> ExactFlags::Given() const {
  if (!exact) return std::nullopt;
  ExactOptions given = options;
  given.adaptive = drafts == nullptr || drafts->count() == 0;
  return given;
}

std::vector<std::string> ExactLines(const ExactReport& r, int64_t generated) {
  const int64_t proposed = r.drafted + r.looked_up;
  const auto share = [](int64_t part, int64_t of) {
    return Percent(static_cast<double>(part) / static_cast<double>(of));
  };
  std::vector<std::string> lines = {
      fmt::format("exact    {} drafted, {} looked up, {} accepted{}; {} dense passes for {} tokens",
                  Count(r.drafted), Count(r.looked_up), Count(r.accepted),
                  proposed > 0 ? fmt::format(" ({})", share(r.accepted, proposed)) : "",
                  Count(r.verifications), Count(generated))};
  std::string by_position;
  for (size_t i = 0; i < r.drafted_at.size() && r.drafted_at[i] > 0; ++i)
    by_position += " " + share(r.accepted_at[i], r.drafted_at[i]);
  if (!by_position.empty()) lines.push_back("         accepted by position:" + by_position);
  const double all = r.draft_seconds + r.verify_seconds;
  lines.push_back(
      fmt::format("         drafts took {:.1f} s, dense passes {:.1f} s: {} ms/token{}",
                  r.draft_seconds, r.verify_seconds,
                  Number(1e3 * all / static_cast<double>(std::max<int64_t>(1, generated - 1))),
                  r.dense_pass_seconds > 0 ? fmt::format(", where a dense pass for each takes {}",
                                                         Number(1e3 * r.dense_pass_seconds))
                                           : ""));
  return lines;
}

}  // namespace baton::apps
