// baton completion, baton man: written from the options as they are registered, so that they cannot
// differ from --help.
#include "apps/command.h"

namespace baton::apps {
namespace {

enum class Shell { kBash, kZsh, kFish };

struct ReferenceOptions {
  Shell shell = Shell::kBash;
};

std::vector<const CLI::App*> Commands(const CLI::App& app) {
  return app.get_subcommands([](const CLI::App* command) { return !command->get_name().empty(); });
}

// "-n", "--max-tokens", ...; none of what is given by its place.
std::vector<std::string> Names(const CLI::Option& option) {
  std::vector<std::string> names;
  for (const std::string& s : option.get_snames()) names.push_back("-" + s);
  for (const std::string& l : option.get_lnames()) names.push_back("--" + l);
  return names;
}

std::string AllNames(const CLI::App& app) {
  std::string all;
  for (const CLI::Option* option : app.get_options())
    for (const std::string& name : Names(*option)) all += (all.empty() ? "" : " ") + name;
  return all;
}

std::string CommandNames(const CLI::App& app) {
  std::string all;
  for (const CLI::App* c : Commands(app)) all += (all.empty() ? "" : " ") + c->get_name();
  return all;
}

std::string Bash(const CLI::App& app) {
  std::string cases;
  for (const CLI::App* c : Commands(app))
    cases += fmt::format("    {}) options='{}' ;;\n", c->get_name(), AllNames(*c));
  return fmt::format(R"(# bash completion of baton
_baton() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} options=''
  if [ "$COMP_CWORD" = 1 ]; then
    COMPREPLY=($(compgen -W '{} {}' -- "$word"))
    return
  fi
  case ${{COMP_WORDS[1]}} in
{}  esac
  if [[ $word == -* ]]; then COMPREPLY=($(compgen -W "$options" -- "$word")); else COMPREPLY=($(compgen -f -- "$word")); fi
}}
complete -o filenames -F _baton baton
)",
                     CommandNames(app), AllNames(app), cases);
}

std::string Zsh(const CLI::App& app) {
  std::string cases;
  for (const CLI::App* c : Commands(app))
    cases += fmt::format("    {}) options=({}) ;;\n", c->get_name(), AllNames(*c));
  return fmt::format(R"(#compdef baton
_baton() {{
  local -a options
  if (( CURRENT == 2 )); then
    compadd -- {} {}
    return
  fi
  case $words[2] in
{}  esac
  if [[ $PREFIX == -* ]]; then compadd -- $options; else _files; fi
}}
_baton "$@"
)",
                     CommandNames(app), AllNames(app), cases);
}

// In single quotes, as fish reads them.
std::string Quoted(const std::string& text) {
  std::string quoted = "'";
  for (const char c : text)
    quoted += c == '\'' || c == '\\' ? std::string("\\") + c : std::string(1, c);
  return quoted + "'";
}

std::string Fish(const CLI::App& app) {
  std::string script = "# fish completion of baton\n";
  for (const CLI::App* c : Commands(app)) {
    script += fmt::format("complete -c baton -n __fish_use_subcommand -f -a {} -d {}\n",
                          c->get_name(), Quoted(c->get_description()));
    for (const CLI::Option* option : c->get_options()) {
      std::string names;
      for (const std::string& s : option->get_snames()) names += " -s " + s;
      for (const std::string& l : option->get_lnames()) names += " -l " + l;
      if (names.empty()) continue;
      script += fmt::format("complete -c baton -n '__fish_seen_subcommand_from {}'{}{} -d {}\n",
                            c->get_name(), names, option->get_expected_max() > 0 ? " -r" : "",
                            Quoted(option->get_description()));
    }
  }
  return script;
}

// Text of a manual page: what troff would take for a request or an escape is escaped.
std::string Roff(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool line_start = i == 0 || text[i - 1] == '\n';
    if (line_start && (text[i] == '.' || text[i] == '\'')) out += "\\&";
    if (text[i] == '\\') {
      out += "\\e";
    } else if (text[i] == '-') {
      out += "\\-";
    } else {
      out += text[i];
    }
  }
  return out;
}

std::string ManOptions(const CLI::App& app) {
  std::string out;
  for (const CLI::Option* option : app.get_options()) {
    std::string names;
    for (const std::string& name : Names(*option)) names += (names.empty() ? "" : ", ") + name;
    if (names.empty()) names = option->get_name(/*positional=*/true);
    out += fmt::format(".TP\n.B {}\n{}\n", Roff(names), Roff(option->get_description()));
  }
  return out;
}

std::string ManPage(const CLI::App& app) {
  std::string out = fmt::format(
      ".TH BATON 1 \"\" \"baton {}\" \"User Commands\"\n.SH NAME\nbaton \\- {}\n.SH SYNOPSIS\n"
      ".B baton\n.I COMMAND\n[options]\n.SH OPTIONS\n{}",
      BATON_VERSION, Roff(app.get_description()), ManOptions(app));
  for (const CLI::App* c : Commands(app)) {
    out += fmt::format(".SH \"BATON {}\"\n{}\n{}.PP\n.nf\n{}\n.fi\n", Roff(c->get_name()),
                       Roff(c->get_description()), ManOptions(*c), Roff(c->get_footer()));
  }
  return out;
}

}  // namespace

void AddCompletion(CLI::App& app, Action& action) {
  CLI::App* command = AddCommand(app, "completion", "Command line completion for a shell",
                                 "  baton completion bash >/etc/bash_completion.d/baton\n"
                                 "  baton completion zsh >/usr/share/zsh/site-functions/_baton\n"
                                 "  baton completion fish >~/.config/fish/completions/baton.fish");
  auto options = std::make_shared<ReferenceOptions>();
  command->add_option("SHELL", options->shell, "Which")
      ->transform(
          OneOf<Shell>({{"bash", Shell::kBash}, {"zsh", Shell::kZsh}, {"fish", Shell::kFish}}))
      ->option_text("bash|zsh|fish")
      ->required();
  command->callback([&app, &action, options] {
    action = [&app, options](const Invocation&) -> Result<int> {
      const Shell shell = options->shell;
      BATON_TRY(Print(shell == Shell::kBash  ? Bash(app)
                      : shell == Shell::kZsh ? Zsh(app)
                                             : Fish(app)));
      return 0;
    };
  });
}

void AddMan(CLI::App& app, Action& action) {
  CLI::App* command = AddCommand(app, "man", "The manual page, in troff's form",
                                 "  baton man | man -l -\n"
                                 "  baton man >/usr/share/man/man1/baton.1");
  command->callback([&app, &action] {
    action = [&app](const Invocation&) -> Result<int> {
      BATON_TRY(Print(ManPage(app)));
      return 0;
    };
  });
}

}  // namespace baton::apps
