// Names of options that people bring from other engines.
#include <array>

#include "apps/command.h"

namespace baton::apps {
namespace {

constexpr const char* kChat = "leave it out: without --prompt, --file or a pipe, run is a chat";
constexpr const char* kCpu = "leave it out: Baton runs on the CPU";
constexpr const char* kChunks = "leave it out: prompts run in passes of 512 tokens";
constexpr const char* kMemory = "leave it out: weights are copied into memory, on huge pages";
constexpr const char* kSampler = "there are --temp, --top-k, --top-p, --min-p and penalties";

// Option, advice: options of Baton, or a sentence.
constexpr std::array<std::array<const char*, 2>, 52> kAdvice = {{
    {"-ngl", kCpu},
    {"--n-gpu-layers", kCpu},
    {"--gpu-layers", kCpu},
    {"--device", kCpu},
    {"--main-gpu", kCpu},
    {"-fa", "leave it out: attention never holds the matrix of scores"},
    {"--flash-attn", "leave it out: attention never holds the matrix of scores"},
    {"-ctk", "--kv"},
    {"-ctv", "--kv"},
    {"--cache-type-k", "--kv"},
    {"--cache-type-v", "--kv"},
    {"--kv-cache-dtype", "--kv"},
    {"-sys", "--system"},
    {"--num-ctx", "--context"},
    {"--num_ctx", "--context"},
    {"--n-ctx", "--context"},
    {"--max-model-len", "--context"},
    {"--num-predict", "--max-tokens"},
    {"--max-new-tokens", "--max-tokens"},
    {"-i", kChat},
    {"--interactive", kChat},
    {"--interactive-first", kChat},
    {"-cnv", kChat},
    {"--conversation", kChat},
    {"-no-cnv", "--raw"},
    {"--no-conversation", "--raw"},
    {"--jinja", "leave it out: chat templates are always run"},
    {"-b", kChunks},
    {"--batch-size", kChunks},
    {"-ub", kChunks},
    {"--ubatch-size", kChunks},
    {"-tb", "--threads"},
    {"--threads-batch", "--threads"},
    {"--mlock", kMemory},
    {"--no-mmap", kMemory},
    {"--numa", kMemory},
    {"--no-display-prompt", "leave it out: the prompt is never printed, unless by --show-prompt"},
    {"--simple-io", "leave it out"},
    {"--no-warmup", "leave it out"},
    {"-e", "write newlines as your shell does, for example $'a\\nb'"},
    {"--escape", "write newlines as your shell does, for example $'a\\nb'"},
    {"--verbose-prompt", "--show-prompt"},
    {"--perf", "--stats"},
    {"--verbose", "--stats"},
    {"--mirostat", kSampler},
    {"--typical", kSampler},
    {"--xtc-probability", kSampler},
    {"--dry-multiplier", kSampler},
    {"--samplers", kSampler},
    {"-hf", "give a file or folder; Baton downloads nothing"},
    {"--hf-repo", "give a file or folder; Baton downloads nothing"},
    {"--rope-freq-base", "the file's own value is used"},
}};

}  // namespace

std::string AdviceFor(const std::string& option) {
  for (const auto& [name, advice] : kAdvice) {
    if (option == name) return advice;
  }
  return "";
}

}  // namespace baton::apps
