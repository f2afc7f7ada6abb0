#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "train/evaluate.h"
#include "train/program/commands.h"
#include "train/program/data.h"
#include "train/trainer.h"

namespace baton::train {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

volatile std::sig_atomic_t stop_asked = 0;

double Since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

struct LmFlags {
  std::string config, recipe, data, out, device = "auto", type = "bf16";
  int64_t seed = -1, log_every = 50, save_every = 0, stop_at = -1, eval_tokens = 32768;
  bool resume = false, json = false;
};

nlohmann::json ToObject(const Losses& l) {
  const auto number = [](double v) { return std::isnan(v) ? nlohmann::json() : nlohmann::json(v); };
  return {{"text", number(l.by_kind[kTextToken])},
          {"facts", number(l.by_kind[kFactAnswer])},
          {"pairs", number(l.by_kind[kPairAnswer])},
          {"chains", number(l.by_kind[kChainAnswer])},
          {"distillation", l.distillation}};
}

class LmRun {
 public:
  LmRun(const LmFlags& flags, ModelFile model, Recipe recipe, Tensor text)
      : flags_(flags),
        model_(std::move(model)),
        recipe_(std::move(recipe)),
        text_(std::move(text)),
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
    Log({{"event", "start"},
         {"parameters", parameters_.count()},
         {"steps", recipe_.steps()},
         {"tokens", recipe_.tokens()},
         {"seed", recipe_.seed},
         {"step", trainer_.step()},
         {"device", text_.is_cuda() ? "cuda" : "cpu"},
         {"torch", TORCH_VERSION}});
    start_ = Clock::now();
    const int64_t end = flags_.stop_at < 0 ? recipe_.steps() : flags_.stop_at;
    while (!trainer_.done() && trainer_.step() < end && stop_asked == 0) {
      trainer_.Step();
      if (trainer_.step() % flags_.log_every == 0 || trainer_.done()) LogLosses();
      if (flags_.save_every > 0 && trainer_.step() % flags_.save_every == 0)
        BATON_TRY(trainer_.Save(StatePath()));
    }
    if (!trainer_.done()) {
      BATON_TRY(trainer_.Save(StatePath()));
      return stop_asked ? Error::Cancelled().Hint("continue with --resume") : Status::Ok();
    }
    const auto type = flags_.type == "f32" ? torch::kFloat32 : torch::kBFloat16;
    BATON_TRY(SaveFolder(flags_.out, model_, parameters_, type, flags_.data + "/tokenizer"));
    return Test();
  }

 private:
  std::string StatePath() const { return flags_.out + "/state.safetensors"; }

  void Log(const nlohmann::json& line) {
    log_ << line.dump() << '\n' << std::flush;
    if (flags_.json) fmt::print("{}\n", line.dump()), std::fflush(stdout);
  }

  void LogLosses() {
    nlohmann::json line = {
        {"event", "losses"}, {"step", trainer_.step()}, {"tokens", trainer_.tokens()}};
    const Losses losses = trainer_.TakeLosses();  // waits for the device
    const double seconds = Since(start_);
    line["seconds"] = seconds;
    line["losses"] = ToObject(losses);
    Log(line);
    if (flags_.json) return;
    const double left = seconds * static_cast<double>(recipe_.steps() - trainer_.step()) /
                        static_cast<double>(trainer_.step());
    fmt::print(stderr,
               "{}step {}/{} | text {:.3f} facts {:.3f} pairs {:.3f} chains {:.3f} | {:.0f} s, "
               "{:.0f} s left{}",
               isatty(2) ? "\r" : "", trainer_.step(), recipe_.steps(), losses.by_kind[kTextToken],
               losses.by_kind[kFactAnswer], losses.by_kind[kPairAnswer],
               losses.by_kind[kChainAnswer], seconds, left,
               isatty(2) && !trainer_.done() ? "  " : "\n");
  }

  Status Test() {
    const double seconds = Since(start_);
    BATON_ASSIGN(const Tensor held_out, ReadTokenFile(flags_.data + "/test.u16", text_.device()));
    const Tasks tasks(held_out, model_.config.vocab);
    const int64_t n = recipe_.stages.back().n;
    const Evaluation e =
        Evaluate(trainer_.transformer(), tasks,
                 {.n = n, .tokens = flags_.eval_tokens, .dense_memory = !trainer_.sparse()});
    nlohmann::json line = {
        {"event", "result"}, {"seconds", seconds}, {"tokens", trainer_.tokens()}};
    line["evaluation"] = nlohmann::json::parse(e.ToJson());
    Log(line);
    if (!flags_.json) fmt::print("{}\n", line.dump());
    return Status::Ok();
  }

  const LmFlags& flags_;
  ModelFile model_;
  Recipe recipe_;
  Tensor text_;
  Parameters parameters_;
  Trainer trainer_;
  std::ofstream log_;
  Clock::time_point start_;
};

Status Lm(const LmFlags& flags) {
  BATON_ASSIGN(const torch::Device device, DeviceOf(flags.device));
  BATON_ASSIGN(const int64_t vocab, VocabularyOf(flags.data + "/tokenizer"));
  BATON_ASSIGN(ModelFile model, ModelFile::Read(flags.config, vocab));
  BATON_ASSIGN(const std::string text, ReadFileText(flags.recipe));
  BATON_ASSIGN(Recipe recipe, Recipe::Parse(text));
  if (flags.seed >= 0) recipe.seed = static_cast<uint64_t>(flags.seed);
  BATON_ASSIGN(Tensor tokens, ReadTokenFile(flags.data + "/train.u16", device));
  return LmRun(flags, std::move(model), std::move(recipe), std::move(tokens)).Run();
}

struct EvalFlags {
  std::string model, data, device = "auto";
  int64_t n = 4096, tokens = 32768, batches = 8;
  bool dense_memory = false;
};

Status Eval(const EvalFlags& flags) {
  BATON_ASSIGN(const torch::Device device, DeviceOf(flags.device));
  BATON_ASSIGN(const Checkpoint checkpoint, Checkpoint::Open(flags.model));
  const Parameters parameters(checkpoint, torch::TensorOptions(device).dtype(torch::kFloat32));
  const Transformer model(checkpoint.config, parameters,
                          device.is_cuda() ? torch::kBFloat16 : torch::kFloat32);
  BATON_ASSIGN(const Tensor held_out, ReadTokenFile(flags.data + "/test.u16", device));
  const Tasks tasks(held_out, checkpoint.config.vocab);
  fmt::print("{}\n", Evaluate(model, tasks,
                              {.n = flags.n,
                               .tokens = flags.tokens,
                               .batches = flags.batches,
                               .dense_memory = flags.dense_memory})
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
  BATON_ASSIGN(const torch::Device device, DeviceOf(flags.device));
  BATON_ASSIGN(const ModelFile model, ModelFile::Read(flags.config, flags.vocab));
  BATON_ASSIGN(const Tensor text, ReadTokenFile(flags.data + "/train.u16", device));
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
  command->add_option("--device", flags.device, "auto, cpu or cuda");
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
  command->add_option("--log-every", flags->log_every, "Steps")->check(CLI::PositiveNumber);
  command->add_option("--save-every", flags->save_every, "Steps between states; 0: none");
  command->add_option("--stop-at", flags->stop_at, "Stop before this step, with a state");
  command->add_option("--eval-tokens", flags->eval_tokens, "Of a batch of the final test");
  command->add_flag("--resume", flags->resume, "Continue from the state in --out");
  command->add_flag("--json", flags->json, "One JSON object a line");
  command->callback([flags, &action] { action = [flags] { return Lm(*flags); }; });
}

void AddEval(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("eval", "Text loss and recall of a checkpoint");
  auto flags = std::make_shared<EvalFlags>();
  command->add_option("MODEL", flags->model, "Folder or GGUF file")->required();
  AddCommonFlags(command, *flags);
  command->add_option("-n", flags->n, "Tokens of a row");
  command->add_option("--tokens", flags->tokens, "Of a batch");
  command->add_option("--batches", flags->batches, "Of each kind");
  command->add_flag("--dense", flags->dense_memory, "Readers of an indexer's list see all keys");
  command->callback([flags, &action] { action = [flags] { return Eval(*flags); }; });
}

void AddBench(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("bench", "Tokens a second of training steps");
  auto flags = std::make_shared<BenchFlags>();
  command->add_option("CONFIG", flags->config, "config.json of the model")->required();
  AddCommonFlags(command, *flags);
  command->add_option("-n", flags->n, "Tokens of a row");
  command->add_option("--tokens", flags->tokens, "Of a step");
  command->add_option("--steps", flags->steps, "Timed steps");
  command->add_option("--vocab", flags->vocab, "Tokens of the vocabulary");
  command->add_flag("--dense", flags->dense_memory, "Readers of an indexer's list see all keys");
  command->callback([flags, &action] { action = [flags] { return Bench(*flags); }; });
}

}  // namespace baton::train
