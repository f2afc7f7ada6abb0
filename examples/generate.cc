// Generates text with the library: load a model, perhaps a plan, stream the answer, read its cost.
//
//   baton_example model.gguf "Why is the sky blue?" [plan.json]
#include <cstdio>
#include <string>
#include <string_view>

#include "baton/engine.h"
#include "baton/plan.h"

namespace {

baton::Status Run(const std::string& model, const std::string& question, const char* plan_path) {
  BATON_ASSIGN(auto engine, baton::Engine::Load(model, {.kv = baton::KvType::kBF16}));
  baton::Request request;
  request.chat = {{"user", question}};
  request.max_tokens = 64;
  if (plan_path) {
    BATON_ASSIGN(request.plan, baton::Plan::Load(plan_path));
    // Generate() checks as well; asking first gives the warnings.
    std::vector<std::string> warnings;
    BATON_TRY(engine->CheckPlan(*request.plan, &warnings));
    for (const std::string& warning : warnings) fmt::print(stderr, "warning: {}\n", warning);
  }
  BATON_ASSIGN(const baton::Generation answer,
               engine->Generate(request, [](std::string_view piece) {
                 fmt::print("{}", piece);
                 return std::fflush(stdout) == 0;  // false stops the request
               }));
  const baton::RequestStats& stats = answer.stats;
  fmt::print("\n{} prompt tokens, {} generated in {:.2f} s, {:.0f} KV bytes read per token\n",
             stats.prompt_tokens, stats.generated_tokens, stats.decode_seconds,
             stats.kv_bytes_per_token);
  return baton::Status::Ok();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    fmt::print(stderr, "usage: {} MODEL QUESTION [PLAN]\n", argv[0]);
    return 2;
  }
  const baton::Status status = Run(argv[1], argv[2], argc > 3 ? argv[3] : nullptr);
  if (status.ok()) return 0;
  fmt::print(stderr, "error: {}\n", status.error().ToString());
  return 1;
}
