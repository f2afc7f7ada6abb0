// baton serve: the engine behind OpenAI's HTTP API.
#include <filesystem>
#include <sstream>

#include "apps/command.h"
#include "server/server.h"

namespace baton::apps {
namespace {

struct ServeCommand {
  EngineFlags engine;
  server::ServerOptions server;
  std::vector<std::string> plans;
  std::string key_file, name, chat_template;
  RouteOptions route;
  int keep_alive_s = 10, grace_s = 30, body_mib = 16, cache_gib = 16;
};

void AddLimits(CLI::App* command, ServeCommand& o) {
  const auto add = [&](const std::string& name, auto& value, double least, const char* help) {
    command->add_option(name, value, help)
        ->check(AtLeast(least))
        ->group("Limits")
        ->capture_default_str();
  };
  add("--parallel", o.server.service.parallel, 0,
      "Answers in the engine at a time; 0: as many as a decode pass holds (16, on a GPU 64)");
  add("--queue", o.server.service.queue, 0, "Requests that may wait behind them");
  add("--kv-tokens", o.engine.options.kv_tokens, 0,
      "Tokens of KV cache, all answers together; 0: four full contexts");
  o.engine.options.prefix_cache_tokens = -1;
  add("--prefix-cache-tokens", o.engine.options.prefix_cache_tokens, -1,
      "Most tokens of prompts to keep for later ones; -1: a quarter of memory, 0: none");
  command
      ->add_option("--cache-dir", o.engine.options.cache_dir,
                   "Folder that keeps cached prompts across restarts")
      ->group("Limits");
  add("--cache-gib", o.cache_gib, 1, "Most that the folder may hold, in GiB");
  add("--prompt-chunk", o.engine.options.prompt_chunk, 0,
      "Prompt tokens per pass; 0: 512, on a GPU 2,048");
  o.engine.options.prompt_share = 0.45;
  command
      ->add_option("--prompt-share", o.engine.options.prompt_share,
                   "Share of the time that prompts get while others decode, to 1: whole passes")
      ->check(Between(0.01, 1.0))
      ->group("Limits")
      ->capture_default_str();
  add("--connections", o.server.connections, 1, "Open connections");
  add("--body-mib", o.body_mib, 1, "Largest request, in MiB");
  add("--keep-alive", o.keep_alive_s, 1, "Seconds of silence in a stream before a comment");
  add("--grace", o.grace_s, 0, "Seconds that a stop gives to answers in progress");
}

void AddOptions(CLI::App* command, ServeCommand& o) {
  o.engine.AddModel(command);
  command->add_option("--host", o.server.host, "IP address to listen on")->capture_default_str();
  command->add_option("--port", o.server.port, "0: one that is free")
      ->check(Between(0, 65535))
      ->capture_default_str();
  command->add_option("--api-key-file", o.key_file, "Keys that clients may give, a line each");
  command->add_option("--name", o.name, "The model's name; left out: the file's");
  CLI::Option* plan =
      command
          ->add_option("--plan", o.plans,
                       "Attention plan, FILE or NAME=FILE; several: requests choose by name, the "
                       "first is for those that do not")
          ->allow_extra_args(false);
  command
      ->add_option("--router", o.engine.options.router,
                   "Layer router: decides for each request which layers attend fully")
      ->excludes(plan);
  command->add_option("--chat-template", o.chat_template,
                      "File with a Jinja template, in place of the model's own");
  AddLimits(command, o);
  o.engine.Add(command);
}

Result<std::vector<std::string>> ReadKeys(const std::string& path) {
  std::vector<std::string> keys;
  if (path.empty()) return keys;
  BATON_ASSIGN(const std::string text, ReadFile(path));
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    while (!line.empty() && std::isspace(static_cast<unsigned char>(line.back()))) line.pop_back();
    if (!line.empty()) keys.push_back(line);
  }
  if (keys.empty())
    return Error::InvalidArgument("{}: no key", path).Hint("write one key on each line");
  return keys;
}

Result<server::Model> LoadModel(const ServeCommand& o) {
  server::Model model;
  EngineFlags flags = o.engine;
  flags.options.kv_contexts = 4;
  flags.options.cache_dir_bytes = int64_t{o.cache_gib} << 30;
  if (!o.chat_template.empty()) {
    BATON_ASSIGN(flags.options.chat_template, ReadFile(o.chat_template));
  }
  BATON_ASSIGN(model.engine, flags.Load());
  if (!model.engine->info().has_tokenizer)
    return Error::NotFound("{}: the model has no tokenizer", flags.model);
  const std::filesystem::path path(flags.model);
  const std::filesystem::path file = path.extension() == ".gguf" ? path.stem() : path.filename();
  model.name = o.name.empty() ? file.string() : o.name;
  for (const std::string& given : o.plans) {
    const size_t equals = given.find('=');
    const bool named = equals != std::string::npos;
    const std::string plan_file = named ? given.substr(equals + 1) : given;
    const std::string name =
        named ? given.substr(0, equals) : std::filesystem::path(plan_file).stem().string();
    BATON_ASSIGN(auto plan, LoadPlan(*model.engine, plan_file));
    if (name == "dense" || !model.plans.emplace(name, *std::move(plan)).second)
      return Error::InvalidArgument("--plan: the name {} is taken", name).Hint("give NAME=FILE");
    if (model.plan.empty()) model.plan = name;
  }
  if (!flags.options.router.empty()) model.route = o.route;
  return model;
}

Result<int> ServeModel(const ServeCommand& o, const Invocation&) {
  server::ServerOptions options = o.server;
  BATON_ASSIGN(options.service.keys, ReadKeys(o.key_file));
  options.service.keep_alive = std::chrono::seconds(o.keep_alive_s);
  options.grace = std::chrono::seconds(o.grace_s);
  options.body_bytes = int64_t{o.body_mib} << 20;
  options.all_body_bytes = std::max(options.all_body_bytes, options.body_bytes);
  const std::string host =
      o.server.host.find(':') == std::string::npos ? o.server.host : "[" + o.server.host + "]";
  const server::ServerEvents events{
      .on_listening =
          [&](int port) { Note(fmt::format("baton: listening on http://{}:{}", host, port)); },
      .on_ready =
          [](const server::Model& m) {
            Note(fmt::format("baton: serving {}, context {}, {} tokens of KV cache, {}", m.name,
                             m.engine->options().context, m.engine->options().kv_tokens,
                             m.plan.empty() ? (m.route ? "routed" : "dense") : "plan " + m.plan));
          },
      .on_stopping = [] { Note("baton: stopping; a second signal does not wait"); }};
  BATON_TRY(server::Serve(
      options, [&] { return LoadModel(o); }, events));
  return 0;
}

}  // namespace

void AddServe(CLI::App& app, Action& action) {
  CLI::App* command =
      AddCommand(app, "serve", "Serve a model to clients of OpenAI's HTTP API",
                 "  baton serve model.gguf\n"
                 "  baton serve model.gguf --plan plan.json --port 8000 --api-key-file keys.txt\n"
                 "  curl localhost:8080/v1/chat/completions -d "
                 "'{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}'");
  AddCommandWith<ServeCommand>(command, action, AddOptions, ServeModel);
}

}  // namespace baton::apps
