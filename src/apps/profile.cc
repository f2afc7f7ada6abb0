// baton profile: measure which layers can use which layers' top-k sets.
#include "baton/profile.h"

#include <algorithm>

#include "apps/command.h"

namespace baton::apps {
namespace {

struct ProfileFlags {
  EngineFlags engine;
  ProfileOptions options;
  std::string output;
};

void AddOptions(CLI::App* command, ProfileFlags& o) {
  o.engine.AddModel(command);
  ProfileOptions& p = o.options;
  command
      ->add_option("--text", p.texts,
                   "Text files or folders, of the kinds that the plan is for: PATH or KIND=PATH")
      ->required();
  const auto list = [&](const std::string& name, std::vector<int64_t>& values,
                        const std::string& help) {
    command->add_option(name, values, help)
        ->delimiter(',')
        ->allow_extra_args(false)
        ->check(AtLeast(1))
        ->capture_default_str();
  };
  command->add_option("--context", p.context, "Context length that the plan is for")
      ->check(AtLeast(1))
      ->capture_default_str();
  command->add_option("--probes", p.probes, "Retrieval probes of each split")
      ->check(AtLeast(0))
      ->capture_default_str();
  command->add_option("--seed", p.seed, "Seed of probes and splits")->capture_default_str();
  list("--budgets", p.budgets, "Tokens that a reuse or scan layer may attend to");
  list("--windows", p.windows, "Widths of window layers, sink included");
  command->add_option("--sink", p.sink, "First tokens that every set holds")
      ->check(AtLeast(0))
      ->capture_default_str();
  command->add_option("--recent", p.recent, "Latest tokens that every set holds")
      ->check(AtLeast(0))
      ->capture_default_str();
  command->add_option("--scope", p.scope, "all: one set per layer; group: one per KV head")
      ->transform(OneOf<Scope>({{"all", Scope::kAll}, {"group", Scope::kGroup}}));
  command->add_option("--pool", p.pool, "Over query heads: sum or max")
      ->transform(OneOf<Pool>({{"sum", Pool::kSum}, {"max", Pool::kMax}}));
  command->add_option("--block", p.block, "Unit of selection in tokens")
      ->check(AtLeast(1))
      ->capture_default_str();
  command->add_option("-o,--output", o.output, "Profile to write")->required();
  o.engine.Add(command, EngineFlags::Context::kOwnedByCommand);
}

Result<int> Run(const ProfileFlags& o, const Invocation&) {
  BATON_TRY(CheckWritable(o.output));
  BATON_ASSIGN(auto engine, o.engine.Load());
  InterruptGuard guard(*engine);
  std::optional<Profile> profile;
  {
    Progress progress;
    BATON_ASSIGN(profile, MakeProfile(*engine, o.options, progress.Callback()));
  }
  BATON_TRY(profile->Save(o.output));
  for (const std::string& warning : profile->warnings) Note("baton: warning: " + warning);
  Table kinds({"kind of text", "files", "tokens"});
  for (const KindLoss& kind : profile->kinds) {
    const auto files =
        std::count_if(profile->options.texts.begin(), profile->options.texts.end(),
                      [&](const std::string& text) { return text.starts_with(kind.name + "="); });
    kinds.Row({kind.name, Count(files), Count(kind.tokens)});
    if (kind.tokens < 4 * profile->options.context)
      Note(fmt::format(
          "the kind {} is short for a context of {}: in some splits text of other "
          "kinds, or less, comes before it (hint: {} tokens of text fill all)",
          kind.name, Count(profile->options.context), Count(4 * profile->options.context)));
  }
  Table table({"split", "contexts of", "text tokens", "scored", "probes", "dense finds"});
  int64_t shortest = profile->options.context;
  for (const SplitInfo& s : profile->splits) {
    const bool measured = s.scored_positions > 0;  // the others are the search's
    table.Row({s.name, Count(s.context), Count(s.text_tokens),
               measured ? Count(s.scored_positions) : "-", Count(s.probes),
               measured ? Count(s.probes_dense_finds) : "-"});
    shortest = std::min(shortest, s.context);
  }
  if (shortest < profile->options.context)
    Note(fmt::format("some splits have contexts of {}", Count(shortest)));
  BATON_TRY(Print(kinds.ToString() + "\n" + table.ToString()));
  BATON_TRY(Print(fmt::format("{}: {} layers, {} budgets, context {}, {}\n", o.output,
                              profile->layers, profile->options.budgets.size(),
                              Count(profile->options.context), Duration(profile->seconds))));
  return 0;
}

}  // namespace

void AddProfile(CLI::App& app, Action& action) {
  CLI::App* command = AddCommand(
      app, "profile", "Measure what each layer's attention needs; the input of `baton plan`",
      "  baton profile model.gguf --text prose=books/ code=src/ mail.txt --context 8192 -o "
      "profile.json\n"
      "  baton profile model.gguf --text book.txt --context 4096 --budgets 256,512 -o "
      "profile.json");
  AddCommandWith<ProfileFlags>(command, action, AddOptions, Run);
}

}  // namespace baton::apps
