#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "baton/plan.h"
#include "results/train_log.h"
#include "train/program/commands.h"
#include "train/program/data.h"
#include "train/router_evaluate.h"
#include "train/router_trainer.h"

namespace baton::train {
namespace {

using Clock = std::chrono::steady_clock;

struct RouterFlags {
  std::string model, recipe, samples, device = "auto";
  // router
  std::string out;
  bool list = false, json = false;
  int64_t seed = -1, log_every = 25;
  // router-eval
  std::vector<std::string> routers, plans, masks;
  double margin = 0;
  bool harm = false;
};

// A frozen model on its device, with the samples of a split and dense attention's answers.
struct Frozen {
  Frozen(Checkpoint opened, const RouterRecipe& recipe, torch::Device on)
      : checkpoint(std::move(opened)),
        device(on),
        type(on.is_cuda() ? torch::kBFloat16 : torch::kFloat32),
        parameters(checkpoint, torch::TensorOptions(device).dtype(type)),
        transformer(checkpoint.config, parameters, type),
        model(transformer, recipe) {
    parameters.Freeze();
  }

  const Checkpoint checkpoint;
  const torch::Device device;
  const torch::ScalarType type;
  Parameters parameters;
  const Transformer transformer;
  const RoutedModel model;
};

Result<RouterRecipe> ReadRecipe(const RouterFlags& flags) {
  BATON_ASSIGN(const std::string text, ReadFileText(flags.recipe));
  Result<RouterRecipe> recipe = RouterRecipe::Parse(text);
  if (!recipe.ok()) return std::move(recipe).error().At(flags.recipe);
  if (flags.seed >= 0) recipe->seed = static_cast<uint64_t>(flags.seed);
  return recipe;
}

Result<std::unique_ptr<Frozen>> Load(const RouterFlags& flags, const RouterRecipe& recipe) {
  BATON_ASSIGN(const torch::Device device, DeviceOf(flags.device));
  BATON_ASSIGN(Checkpoint checkpoint, Checkpoint::Open(flags.model));
  if (!checkpoint.config.plan.empty())
    return Error::Unsupported("{}: a {} model; routers are for models whose layers are all full",
                              flags.model, checkpoint.config.architecture);
  BATON_TRY(CheckTrainable(checkpoint.config));
  return std::make_unique<Frozen>(std::move(checkpoint), recipe, device);
}

Result<RouterSamples> ReadSamples(const RouterFlags& flags, const char* split,
                                  const RoutedModel& model) {
  Result<RouterSamples> samples =
      RouterSamples::Read(flags.samples, split, model.transformer().config().vocab);
  if (!samples.ok()) return samples;
  for (const RouterSample& s : samples->all()) {
    if (s.prompt <= model.recipe().settings.pool)
      return Error::InvalidArgument("{}/{}: a prompt of {} tokens, expected more than pool {}",
                                    flags.samples, split, s.prompt, model.recipe().settings.pool);
  }
  return samples;
}

Plan PlanOf(const std::vector<double>& full, const RouterRecipe& recipe, const Checkpoint& model) {
  const bool exact = recipe.mode == RouterRecipe::Mode::kExact;
  const RouterSettings& s = recipe.settings;
  Plan plan = Plan::Dense(static_cast<int>(full.size()));
  plan.architecture = model.config.architecture;
  plan.fingerprint = model.fingerprint;
  plan.evict = !exact;
  plan.min_context = s.sink + s.window;
  for (size_t l = 0; l < full.size(); ++l) {
    if (full[l] > 0) continue;
    plan.layers[l] = {
        .role = exact ? Role::kRoute : Role::kWindow, .sink = s.sink, .recent = s.window};
  }
  return plan;
}

class RouterRun {
 public:
  RouterRun(const RouterFlags& flags, const RouterRecipe& recipe, const Frozen& frozen,
            const RouterSamples& samples)
      : flags_(flags), recipe_(recipe), frozen_(frozen), samples_(samples) {}

  Status Run() {
    const Clock::time_point start = Clock::now();
    const Teacher teacher = Teach(frozen_.model, samples_, frozen_.device);
    results::OrderedJson answered;
    for (size_t i = 0; i < samples_.all().size(); ++i) {
      const RouterSample& s = samples_.all()[i];
      results::OrderedJson& counts = answered[s.task][std::to_string(s.length)];
      if (counts.is_null()) counts = {0, 0};
      counts[0] = counts[0].get<int>() + (teacher.answered[i] ? 1 : 0);
      counts[1] = counts[1].get<int>() + 1;
    }
    Print({{"event", "dense"}, {"seconds", Since(start)}, {"answered", answered}});
    const auto options = torch::TensorOptions(frozen_.device).dtype(torch::kFloat32);
    const ModelConfig& config = frozen_.checkpoint.config;
    Gates gates = flags_.list ? Gates::List(config.layers, recipe_.bias, options)
                              : Gates::Routers(config.layers, config.head_dim, recipe_.bias,
                                               recipe_.seed, options);
    RouterTrainer trainer(frozen_.model, samples_, teacher, gates, frozen_.device);
    if (!trainer.usable())
      return Error::InvalidArgument(
          "{}: of no task and length does dense attention answer two samples", flags_.samples);
    int64_t parameters = 0;
    for (const Tensor& t : gates.values()) parameters += t.numel();
    Print(results::TrainLine(
        "start", results::TrainStart{.trains = flags_.list ? "list" : "router",
                                     .model = std::filesystem::path(flags_.model).stem().string(),
                                     .parameters = parameters,
                                     .steps = recipe_.steps,
                                     .seed = recipe_.seed,
                                     .device = frozen_.device.is_cuda() ? "cuda" : "cpu",
                                     .torch = TORCH_VERSION}));
    const Clock::time_point begin = Clock::now();
    while (!trainer.done()) {
      trainer.Step();
      if (trainer.step() % flags_.log_every == 0 || trainer.done()) Log(trainer, begin);
    }
    const double seconds = Since(begin);
    if (recipe_.has_target) trainer.MeetTarget();
    results::OrderedJson result = {{"event", "trained"},
                                   {"seconds", seconds},
                                   {"tokens", trainer.tokens()},
                                   {"steps", trainer.step()}};
    if (flags_.list) {
      result["full"] = gates.Full();
      BATON_TRY(PlanOf(gates.Full(), recipe_, frozen_.checkpoint).Save(flags_.out));
    } else {
      BATON_TRY(WriteRouter(flags_.out, InFileOrder(gates.ToFile(recipe_.settings), config),
                            /*bf16=*/true));
    }
    Print(result);
    return Status::Ok();
  }

 private:
  static double Since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  }

  void Print(const results::OrderedJson& line) const {
    if (flags_.json) fmt::print("{}\n", line.dump()), std::fflush(stdout);
  }

  void Log(RouterTrainer& trainer, Clock::time_point begin) const {
    const RouterLosses l = trainer.TakeLosses();
    results::OrderedJson line = results::TrainLine(
        "losses", results::GateLosses{.step = trainer.step(),
                                      .tokens = trainer.tokens(),
                                      .seconds = Since(begin),
                                      .loss = {l.loss.answer, l.loss.text},
                                      .windows = {l.windows.answer, l.windows.text}});
    for (const auto& [task, price] : trainer.prices()) line["prices"][task] = price[0];
    Print(line);
    if (flags_.json) return;
    fmt::print(stderr,
               "step {}/{} | loss at answers {:.4f}, text {:.4f} | on windows {:.2f}, {:.2f} | "
               "{:.0f} s\n",
               trainer.step(), recipe_.steps, l.loss.answer, l.loss.text, l.windows.answer,
               l.windows.text, Since(begin));
  }

  const RouterFlags& flags_;
  const RouterRecipe& recipe_;
  const Frozen& frozen_;
  const RouterSamples& samples_;
};

Status TrainRouter(const RouterFlags& flags) {
  BATON_ASSIGN(const RouterRecipe recipe, ReadRecipe(flags));
  BATON_ASSIGN(const std::unique_ptr<Frozen> frozen, Load(flags, recipe));
  BATON_ASSIGN(const RouterSamples samples, ReadSamples(flags, "train", frozen->model));
  return RouterRun(flags, recipe, *frozen, samples).Run();
}

Result<std::string> MaskOf(const std::string& path, int layers) {
  BATON_ASSIGN(const Plan plan, Plan::Load(path));
  if (static_cast<int>(plan.layers.size()) != layers)
    return Error::InvalidArgument("{}: a plan of {} layers, the model has {}", path,
                                  plan.layers.size(), layers);
  std::string mask;
  for (const LayerRole& role : plan.layers)
    mask += role.role == Role::kWindow || role.role == Role::kRoute ? 'S' : 'F';
  return mask;
}

Status EvalRouters(const RouterFlags& flags) {
  BATON_ASSIGN(const RouterRecipe recipe, ReadRecipe(flags));
  BATON_ASSIGN(const std::unique_ptr<Frozen> frozen, Load(flags, recipe));
  const RoutedModel& model = frozen->model;
  const ModelConfig& config = frozen->checkpoint.config;
  const auto options = torch::TensorOptions(frozen->device).dtype(torch::kFloat32);
  std::vector<Gates> gates;
  gates.reserve(flags.routers.size());
  std::vector<RouterSubject> subjects;
  for (const std::string& path : flags.routers) {
    BATON_ASSIGN(const RouterFile file, LoadRouter(path, config));
    if (file.settings != recipe.settings)
      return Error::InvalidArgument("{}: its sizes are not those of {}", path, flags.recipe);
    gates.push_back(Gates::Of(file, options));
    subjects.push_back({.name = path, .gates = &gates.back(), .margin = flags.margin});
  }
  for (const std::string& path : flags.plans) {
    BATON_ASSIGN(const std::string mask, MaskOf(path, config.layers));
    subjects.push_back({.name = path, .mask = mask});
  }
  for (const std::string& text : flags.masks) {
    const size_t sign = text.find('=');
    const std::string mask = sign == std::string::npos ? text : text.substr(sign + 1);
    if (static_cast<int>(mask.size()) != config.layers ||
        mask.find_first_not_of("FS") != std::string::npos)
      return Error::InvalidArgument("--mask {}: expected NAME= and {} letters, F or S", text,
                                    config.layers);
    subjects.push_back({.name = text.substr(0, sign), .mask = mask});
  }
  if (flags.harm) {
    constexpr size_t kSamples = 8;
    constexpr int64_t kLongest = 4096;
    BATON_ASSIGN(const RouterSamples train, ReadSamples(flags, "train", model));
    const Teacher teacher = Teach(model, train, frozen->device);
    const std::vector<double> harm =
        LayerHarm(model, train, teacher, kSamples, kLongest, frozen->device);
    fmt::print("{}\n", nlohmann::json({{"event", "harm"}, {"nats", harm}}).dump());
    std::fflush(stdout);
  }
  if (subjects.empty()) return Status::Ok();
  BATON_ASSIGN(const RouterSamples test, ReadSamples(flags, "test", model));
  const Teacher teacher = Teach(model, test, frozen->device);
  for (const RouterResult& r : EvaluateRouters(
           model, test, teacher, subjects, [&](size_t i) { return teacher.answered[i]; },
           frozen->device))
    fmt::print("{}\n", ToJson(r, test, recipe.settings));
  return Status::Ok();
}

void AddCommonFlags(CLI::App* command, RouterFlags& flags) {
  command->add_option("MODEL", flags.model, "The frozen model: folder or GGUF file")->required();
  command->add_option("--recipe", flags.recipe, "JSON file, as in configs/router")->required();
  command->add_option("--samples", flags.samples, "Folder that scripts/router-samples made")
      ->required();
  command->add_option("--device", flags.device, "auto, cpu or cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
}

}  // namespace

void AddRouter(CLI::App& app, Action& action) {
  CLI::App* command =
      app.add_subcommand("router", "Train a model's routers, or one list of layers");
  auto flags = std::make_shared<RouterFlags>();
  AddCommonFlags(command, *flags);
  command->add_option("-o,--out", flags->out, "Router file, or plan of a list")->required();
  command->add_flag("--list", flags->list, "One list for all requests");
  command->add_option("--seed", flags->seed, "In place of the recipe's");
  command->add_option("--log-every", flags->log_every, "Steps")->check(CLI::PositiveNumber);
  command->add_flag("--json", flags->json, "One JSON object a line");
  command->callback([flags, &action] { action = [flags] { return TrainRouter(*flags); }; });
}

void AddRouterEval(CLI::App& app, Action& action) {
  CLI::App* command =
      app.add_subcommand("router-eval", "Routers and lists on the test samples, as JSON lines");
  auto flags = std::make_shared<RouterFlags>();
  AddCommonFlags(command, *flags);
  command->add_option("--router", flags->routers, "Router files");
  command->add_option("--margin", flags->margin, "Logit difference that a window needs");
  command->add_option("--plan", flags->plans, "Plans of full and window layers");
  command->add_option("--mask", flags->masks, "NAME=FFS..., one letter a layer");
  command->add_flag("--harm", flags->harm, "Rank layers by the loss of a window in each alone");
  command->callback([flags, &action] { action = [flags] { return EvalRouters(*flags); }; });
}

}  // namespace baton::train
