// baton report: one HTML page from the results of the other commands.
#include "baton/report.h"

#include "apps/command.h"

namespace baton::apps {
namespace {

struct ReportFlags {
  std::string profile, plan, search, info, title, output;
  std::vector<std::string> evals, benches, runs, trainings;
};

void AddOptions(CLI::App* command, ReportFlags& o) {
  command->add_option("--profile", o.profile, "From `baton profile`");
  command->add_option("--plan", o.plan, "From `baton plan`");
  command->add_option("--search", o.search, "From `baton plan --search-json`");
  command->add_option("--eval", o.evals, "From `baton eval --json`; one or several");
  command->add_option("--bench", o.benches, "From `baton bench --json`; one or several");
  command->add_option("--run-json", o.runs,
                      "From `baton run --json` of routed requests; one or several");
  command->add_option("--info-json", o.info, "From `baton info --json`: the model's layers");
  command->add_option("--train-log", o.trainings,
                      "log.jsonl of `baton-train lm`, or what `router --json` printed; 1 to 8");
  command->add_option("--title", o.title, "Title of the page; without it: the model's name");
  command->add_option("-o,--output", o.output, "HTML file to write")->required();
}

Result<std::string> ReadIfGiven(const std::string& path) {
  return path.empty() ? Result<std::string>(std::string()) : ReadFile(path);
}

Result<std::vector<std::string>> ReadEach(const std::vector<std::string>& paths) {
  std::vector<std::string> texts;
  for (const std::string& path : paths) {
    BATON_ASSIGN(std::string text, ReadFile(path));
    texts.push_back(std::move(text));
  }
  return texts;
}

Result<int> Run(const ReportFlags& o, const Invocation&) {
  ReportInputs inputs;
  inputs.title = o.title;
  BATON_ASSIGN(inputs.profile_json, ReadIfGiven(o.profile));
  BATON_ASSIGN(inputs.plan_json, ReadIfGiven(o.plan));
  BATON_ASSIGN(inputs.search_json, ReadIfGiven(o.search));
  BATON_ASSIGN(inputs.eval_json, ReadEach(o.evals));
  BATON_ASSIGN(inputs.bench_json, ReadEach(o.benches));
  BATON_ASSIGN(inputs.run_json, ReadEach(o.runs));
  BATON_ASSIGN(inputs.info_json, ReadIfGiven(o.info));
  BATON_ASSIGN(inputs.train_logs, ReadEach(o.trainings));
  BATON_ASSIGN(const std::string page, RenderReport(inputs));
  BATON_TRY(WriteFile(o.output, page));
  Note(fmt::format("{}: {}", o.output, Bytes(static_cast<double>(page.size()))));
  return 0;
}

}  // namespace

void AddReport(CLI::App& app, Action& action) {
  CLI::App* command = AddCommand(
      app, "report", "One self-contained HTML page from the results of the other commands",
      "  baton report --profile profile.json --plan plan.json --search search.json \\\n"
      "               --eval eval.json --bench bench.json -o report.html\n"
      "  baton report --run-json first.json second.json -o routing.html\n"
      "  baton report --train-log out/clsa/log.jsonl out/dense/log.jsonl -o training.html");
  AddCommandWith<ReportFlags>(command, action, AddOptions, Run);
}

}  // namespace baton::apps
