// Any bytes as a plan file: an error or a plan that writes, reads back equal, and resolves or is
// rejected with one line.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "base/check.h"
#include "baton/plan.h"
#include "plan/kv_bytes.h"
#include "plan/resolved.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace baton;
  static const ModelShape model{.architecture = "llama",
                                .fingerprint = "sha256:aa",
                                .layers = 6,
                                .heads = 9,
                                .kv_heads = 3,
                                .head_dim = 64,
                                .window = {0, 0, 0, 0, 512, 0}};
  const auto plan = Plan::Parse(std::string(reinterpret_cast<const char*>(data), size));
  if (!plan.ok()) {
    BATON_CHECK(plan.error().ToString().find('\n') == std::string::npos);
    return 0;
  }
  const auto back = Plan::Parse(plan->ToJson());
  BATON_CHECK(back.ok());
  BATON_CHECK(back->ToJson() == plan->ToJson());
  const auto resolved = Resolve(*plan, model, nullptr);
  if (!resolved.ok()) return 0;
  for (int64_t visible : {int64_t{1}, int64_t{600}, int64_t{1} << 20})
    BATON_CHECK_GE(KvBytesPerToken(*resolved, model, visible), int64_t{0});
  return 0;
}
