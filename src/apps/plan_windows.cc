#include "apps/plan_windows.h"

#include <algorithm>
#include <cmath>

namespace baton::apps {
namespace {

std::string ToText(const WindowPlan& list, const WindowOptions& o, const std::string& output) {
  const bool harm = o.rank == WindowRank::kHarm;
  std::string out;
  Table layers(harm
                   ? std::vector<std::string>{"layer", "text KL", "answer KL", "harm, nats", "role"}
                   : std::vector<std::string>{"layer", "entropy, nats", "role"});
  std::vector<size_t> order;
  for (size_t l = 0; l < list.score.size(); ++l) {
    if (std::isfinite(list.score[l])) order.push_back(l);
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return list.score[a] < list.score[b]; });
  for (const size_t l : order) {
    std::vector<std::string> row = {std::to_string(l)};
    if (harm) {
      row.push_back(fmt::format("{:.4f}", list.harm_text[l]));
      row.push_back(fmt::format("{:.4f}", list.harm_answer[l]));
    }
    row.push_back(fmt::format("{:.4f}", list.score[l]));
    row.push_back(ToString(list.plan.layers[l].role));
    layers.Row(std::move(row));
  }
  out += fmt::format("Layers by {}, lowest first:\n\n{}\n",
                     harm ? "harm of a window in that layer alone" : "entropy of their input",
                     layers.ToString());
  Table figures({"windows hold", "KV read", "KV held", "KL", "+-", "answer KL", "top-1", "found"});
  for (const WindowMeasure& m : list.measures) {
    figures.Row({m.in_prompt ? "in prompt and decode" : "in decode", Percent(m.kv_bytes_share),
                 Percent(m.kv_held_share), fmt::format("{:.4f}", m.kl),
                 fmt::format("{:.4f}", m.kl_standard_error), fmt::format("{:.4f}", m.answer_kl),
                 Percent(m.top1), fmt::format("{}/{}", m.found, m.dense_found)});
  }
  out += fmt::format("Against dense, on the test split:\n\n{}\n{}: {}   ({})\n", figures.ToString(),
                     output, results::Letters(list.plan), Duration(list.seconds));
  return out;
}

}  // namespace

void WindowFlags::Add(CLI::App* command, const std::vector<std::string>& others) {
  const auto in_other = [&](const CLI::Option* option) {
    return std::find(others.begin(), others.end(), option->get_group()) != others.end();
  };
  excluded = command->get_options(in_other);
  const std::string group = "Windows only, in place of a search";
  given = command
              ->add_option("--windows-only", options.share,
                           "This share of the layers keeps a sink and a window, the rest is full")
              ->check(AboveTo(0.0, 1.0))
              ->group(group);
  command
      ->add_option("--rank", options.rank,
                   "Which layers: harm, measured with one layer windowed (the default), or entropy "
                   "of the layer's input")
      ->transform(
          OneOf<WindowRank>({{"harm", WindowRank::kHarm}, {"entropy", WindowRank::kEntropy}}))
      ->needs(given)
      ->group(group);
  command->add_option("--window", options.window, "Latest tokens that stay")
      ->check(AtLeast(1))
      ->capture_default_str()
      ->needs(given)
      ->group(group);
  command->add_option("--sink", options.sink, "First tokens that stay")
      ->check(AtLeast(0))
      ->capture_default_str()
      ->needs(given)
      ->group(group);
  command
      ->add_flag(
          "--route", options.route,
          "Role route: `baton run` decides, by --route-mask or --router, and frees the cache "
          "of windows")
      ->needs(given)
      ->group(group);
  command
      ->add_flag(
          "--evict", options.evict,
          "Windows free the rest of their cache once the prompt is done; probes are asked in "
          "a second turn then")
      ->needs(given)
      ->excludes("--route")
      ->group(group);
}

void WindowFlags::CheckUse() const {
  for (const CLI::Option* option : excluded) {
    if (Given() && option->count() > 0)
      UsageError(option->get_name(), "is for a search, and --windows-only searches nothing");
  }
}

Result<int> RunPlanWindows(Engine& engine, const Profile& profile, const WindowOptions& options,
                           const std::string& output, bool json, const Invocation& invocation) {
  std::optional<WindowPlan> list;
  {
    Progress progress;
    BATON_ASSIGN(list, PlanWindows(engine, profile, options, progress.Callback()));
  }
  BATON_TRY(list->plan.Save(output));
  const results::WindowRecord record{
      .origin = OriginOf("windows", engine, invocation), .options = options, .list = *list};
  BATON_TRY(json ? PrintJson(results::ToJson(record)) : Print(ToText(*list, options, output)));
  return 0;
}

}  // namespace baton::apps
