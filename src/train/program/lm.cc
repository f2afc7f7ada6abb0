#include <unistd.h>

#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "results/train_log.h"
#include "train/evaluate.h"
#include "train/program/commands.h"
#include "train/program/data.h"
#include "train/trainer.h"

namespace baton::train {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr int64_t kMostTokens = int64_t{1} << 30;  // of a row

volatile std::sig_atomic_t stop_asked = 0;

double Since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

struct LmFlags {
  std::string config, recipe, data, out, device = "auto", type = "bf16";
  int64_t seed = -1, log_every = 50, save_every = 0, test_every = 0, stop_at = -1;
  int64_t eval_tokens = 32768;
  bool resume = false, json = false;
};

class LmRun {
 public:
  LmRun(const LmFlags& flags, ModelFile model, Recipe recipe, Tensor text, Tensor held_out)
      : flags_(flags),
        model_(std::move(model)),
        recipe_(std::move(recipe)),
        text_(std::move(text)),
        held_out_(std::move(held_out)),
        parameters_(model_.config, recipe_.seed,
                    torch::TensorOptions(text_.device()).dtype(torch::kFloat32)),
        trainer_(model_, parameters_, recipe_, text_) {}

  Status Run() {
    std::error_code ec;
    fs::create_directories(flags_.out, ec);
    if (ec) return Error::Io("{}: {}", flags_.out, ec.message());
    if (flags_.resume) BATON_TRY(trainer_.Load(StatePath()));
    log_.open(flags_.out + "/log.jsonl", flags_.resume ? std::ios::app : std::ios::trunc);
    std::signal(SIGINT, [](int) { stop_asked = 1; });
    Log(results::TrainLine("start", results::TrainStart{.trains = "lm",
                                                        .model = NameOf(flags_.config),
                                                        .parameters = parameters_.count(),
                                                        .steps = recipe_.steps(),
                                                        .tokens = recipe_.tokens(),
                                                        .seed = recipe_.seed,
                                                        .step = trainer_.step(),
                                                        .device = text_.is_cuda() ? "cuda" : "cpu",
                                                        .torch = TORCH_VERSION}));
    first_step_ = trainer_.step();
    start_ = Clock::now();
    const int64_t end = flags_.stop_at < 0 ? recipe_.steps() : flags_.stop_at;
    while (!trainer_.done() && trainer_.step() < end && stop_asked == 0) {
      trainer_.Step();
      if (trainer_.step() % flags_.log_every == 0 || trainer_.done()) LogLosses();
      if (flags_.test_every > 0 && trainer_.step() % flags_.test_every == 0 && !trainer_.done())
        Test("test");
      if (flags_.save_every > 0 && trainer_.step() % flags_.save_every == 0)
        BATON_TRY(trainer_.Save(StatePath()));
    }
    if (!trainer_.done()) {
      BATON_TRY(trainer_.Save(StatePath()));
      return stop_asked ? Error::Cancelled().Hint("continue with --resume") : Status::Ok();
    }
    const auto type = flags_.type == "f32" ? torch::kFloat32 : torch::kBFloat16;
    BATON_TRY(SaveFolder(flags_.out, model_, parameters_, type, flags_.data + "/tokenizer"));
    Test("result");
    return Status::Ok();
  }

 private:
  std::string StatePath() const { return flags_.out + "/state.safetensors"; }

  static std::string NameOf(const std::string& config) {
    const fs::path path = fs::weakly_canonical(config);
    return (path.filename() == "config.json" ? path.parent_path() : path).stem().string();
  }

  void Log(const results::OrderedJson& line) {
    log_ << line.dump() << '\n' << std::flush;
    if (flags_.json) fmt::print("{}\n", line.dump()), std::fflush(stdout);
  }

  void LogLosses() {
    const Losses l = trainer_.TakeLosses();  // waits for the device
    const results::LmLosses line{.step = trainer_.step(),
                                 .tokens = trainer_.tokens(),
                                 .seconds = Since(start_),
                                 .text = l.by_kind[kTextToken],
                                 .facts = l.by_kind[kFactAnswer],
                                 .pairs = l.by_kind[kPairAnswer],
                                 .chains = l.by_kind[kChainAnswer],
                                 .distillation = l.distillation};
    Log(results::TrainLine("losses", line));
    if (flags_.json) return;
    const double left = line.seconds * static_cast<double>(recipe_.steps() - line.step) /
                        static_cast<double>(line.step - first_step_);
    const auto shown = [](double loss) {  // a short interval may have no tokens of a kind
      return std::isnan(loss) ? std::string("-") : fmt::format("{:.3f}", loss);
    };
    fmt::print(stderr,
               "{}step {}/{} | text {} facts {} pairs {} chains {} | {:.0f} s, {:.0f} s left{}",
               isatty(2) ? "\r" : "", line.step, recipe_.steps(), shown(line.text),
               shown(line.facts), shown(line.pairs), shown(line.chains), line.seconds, left,
               isatty(2) && !trainer_.done() ? "  " : "\n");
  }

  // On held-out samples, the same each time. `event`: "test", or "result" at the end.
  void Test(const char* event) {
    const double seconds = Since(start_);
    const Evaluation e = Evaluate(trainer_.transformer(), Tasks(held_out_, model_.config.vocab),
                                  {.n = recipe_.stages.back().n,
                                   .tokens = flags_.eval_tokens,
                                   .dense_memory = !trainer_.sparse()});
    results::OrderedJson line = {{"event", event},
                                 {"step", trainer_.step()},
                                 {"tokens", trainer_.tokens()},
                                 {"seconds", seconds}};
    line["evaluation"] = results::OrderedJson::parse(e.ToJson());
    Log(line);
    if (!flags_.json && trainer_.done()) fmt::print("{}\n", line.dump());
  }

  const LmFlags& flags_;
  ModelFile model_;
  Recipe recipe_;
  Tensor text_, held_out_;
  Parameters parameters_;
  Trainer trainer_;
  std::ofstream log_;
  Clock::time_point start_;
  int64_t first_step_ = 0;  // of this part of the run
};

Status Lm(const LmFlags& flags) {
  BATON_ASSIGN(const torch::Device device, DeviceOf(flags.device));
  BATON_ASSIGN(const int64_t vocab, VocabularyOf(flags.data + "/tokenizer"));
  BATON_ASSIGN(ModelFile model, ModelFile::Read(flags.config, vocab));
  BATON_ASSIGN(const std::string text, ReadFileText(flags.recipe));
  Result<Recipe> recipe = Recipe::Parse(text);
  if (!recipe.ok()) return std::move(recipe).error().At(flags.recipe);
  if (flags.seed >= 0) recipe->seed = static_cast<uint64_t>(flags.seed);
  int64_t n = 0;
  for (const Stage& s : recipe->stages) n = std::max(n, s.n);
  BATON_ASSIGN(Tensor tokens, ReadTokenFile(flags.data + "/train.u16", vocab, n, device));
  BATON_ASSIGN(Tensor held_out, ReadTokenFile(flags.data + "/test.u16", vocab, n, device));
  return LmRun(flags, std::move(model), std::move(recipe).value(), std::move(tokens),
               std::move(held_out))
      .Run();
}

struct EvalFlags {
  std::string model, data, device = "auto";
  int64_t n = 4096, tokens = 32768, batches = 8, rank_bits = 0;
  bool dense_memory = false;
};

Status Eval(const EvalFlags& flags) {
  BATON_ASSIGN(const torch::Device device, DeviceOf(flags.device));
  BATON_ASSIGN(const Checkpoint checkpoint, Checkpoint::Open(flags.model));
  const Parameters parameters(checkpoint, torch::TensorOptions(device).dtype(torch::kFloat32));
  const Transformer model(checkpoint.config, parameters,
                          device.is_cuda() ? torch::kBFloat16 : torch::kFloat32);
  BATON_ASSIGN(const Tensor held_out,
               ReadTokenFile(flags.data + "/test.u16", checkpoint.config.vocab, flags.n, device));
  const Tasks tasks(held_out, checkpoint.config.vocab);
  fmt::print("{}\n", Evaluate(model, tasks,
                              {.n = flags.n,
                               .tokens = flags.tokens,
                               .batches = flags.batches,
                               .dense_memory = flags.dense_memory,
                               .rank_bits = flags.rank_bits})
                         .ToJson());
  return Status::Ok();
}

struct BenchFlags {
  std::string config, data, device = "auto";
  int64_t n = 4096, tokens = 32768, steps = 20, vocab = 8192;
  bool dense_memory = false;
};

// Tokens a second of whole training steps with AdamW, after some that warm up.
Status Bench(const BenchFlags& flags) {
  constexpr int64_t kWarm = 5;
  if (flags.tokens < flags.n)
    return Error::InvalidArgument("--tokens {}: expected a row of {} or more", flags.tokens,
                                  flags.n);
  BATON_ASSIGN(const torch::Device device, DeviceOf(flags.device));
  BATON_ASSIGN(const ModelFile model, ModelFile::Read(flags.config, flags.vocab));
  BATON_ASSIGN(const Tensor text,
               ReadTokenFile(flags.data + "/train.u16", flags.vocab, flags.n, device));
  Recipe recipe;
  recipe.stages = {{.steps = kWarm + flags.steps, .n = flags.n, .rows = flags.tokens / flags.n}};
  recipe.optimizer.muon = false;
  recipe.optimizer.clip = 0;
  recipe.sparse_from = flags.dense_memory ? recipe.steps() : -1;
  Parameters parameters(model.config, 1, torch::TensorOptions(device).dtype(torch::kFloat32));
  Trainer trainer(model, parameters, recipe, text);
  Clock::time_point start = Clock::now();
  while (!trainer.done()) {
    trainer.Step();
    if (trainer.step() == kWarm) trainer.TakeLosses(), start = Clock::now();
  }
  trainer.TakeLosses();
  const double seconds = Since(start);
  const nlohmann::json line = {
      {"event", "bench"},
      {"config", flags.config},
      {"n", flags.n},
      {"dense_memory", flags.dense_memory},
      {"parameters", parameters.count()},
      {"ms", seconds * 1e3 / static_cast<double>(flags.steps)},
      {"ktokens_per_s", static_cast<double>(flags.steps * flags.tokens) / seconds / 1e3}};
  fmt::print("{}\n", line.dump());
  return Status::Ok();
}

template <typename Flags>
void AddCommonFlags(CLI::App* command, Flags& flags) {
  command->add_option("--data", flags.data, "Folder with train.u16, test.u16 and tokenizer/")
      ->required();
  command->add_option("--device", flags.device, "auto, cpu or cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
}

}  // namespace

void AddLm(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("lm", "Train a model");
  auto flags = std::make_shared<LmFlags>();
  command->add_option("CONFIG", flags->config, "config.json of the model")->required();
  command->add_option("--recipe", flags->recipe, "How it is trained, a JSON file")->required();
  AddCommonFlags(command, *flags);
  command->add_option("-o,--out", flags->out, "Folder of the checkpoint, log and state")
      ->required();
  command->add_option("--seed", flags->seed, "In place of the recipe's");
  command->add_option("--type", flags->type, "Of the checkpoint: bf16 or f32")
      ->check(CLI::IsMember({"bf16", "f32"}));
  command->add_option("--log-every", flags->log_every, "Steps")
      ->check(CLI::Range(int64_t{1}, kMostTokens));
  command->add_option("--save-every", flags->save_every, "Steps between states; 0: none");
  command->add_option("--test-every", flags->test_every,
                      "Steps between tests on held-out samples; 0: only at the end");
  command->add_option("--stop-at", flags->stop_at, "Stop before this step, with a state");
  command->add_option("--eval-tokens", flags->eval_tokens, "Of a batch of a test")
      ->check(CLI::Range(int64_t{1}, kMostTokens));
  command->add_flag("--resume", flags->resume, "Continue from the state in --out");
  command->add_flag("--json", flags->json, "One JSON object a line");
  command->callback([flags, &action] { action = [flags] { return Lm(*flags); }; });
}

void AddEval(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("eval", "Text loss and recall of a checkpoint");
  auto flags = std::make_shared<EvalFlags>();
  command->add_option("MODEL", flags->model, "Folder or GGUF file")->required();
  AddCommonFlags(command, *flags);
  command->add_option("-n", flags->n, "Tokens of a row")
      ->check(CLI::Range(kShortestRow, kMostTokens));
  command->add_option("--tokens", flags->tokens, "Of a batch")
      ->check(CLI::Range(int64_t{1}, kMostTokens));
  command->add_option("--batches", flags->batches, "Of each kind")
      ->check(CLI::Range(int64_t{1}, kMostTokens));
  command->add_flag("--dense", flags->dense_memory, "Readers of an indexer's list see all keys");
  command
      ->add_option("--rank-bits", flags->rank_bits,
                   "Rank lists by keys of so many bits; layers that rank read their own list")
      ->check(CLI::Range(int64_t{2}, int64_t{16}));
  command->callback([flags, &action] { action = [flags] { return Eval(*flags); }; });
}

void AddBench(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("bench", "Tokens a second of training steps");
  auto flags = std::make_shared<BenchFlags>();
  command->add_option("CONFIG", flags->config, "config.json of the model")->required();
  AddCommonFlags(command, *flags);
  command->add_option("-n", flags->n, "Tokens of a row")
      ->check(CLI::Range(kShortestRow, kMostTokens));
  command->add_option("--tokens", flags->tokens, "Of a step");
  command->add_option("--steps", flags->steps, "Timed steps")
      ->check(CLI::Range(int64_t{1}, kMostTokens));
  command->add_option("--vocab", flags->vocab, "Tokens of the vocabulary")
      ->check(CLI::Range(int64_t{64}, int64_t{32768}));
  command->add_flag("--dense", flags->dense_memory, "Readers of an indexer's list see all keys");
  command->callback([flags, &action] { action = [flags] { return Bench(*flags); }; });
}

}  // namespace baton::train
