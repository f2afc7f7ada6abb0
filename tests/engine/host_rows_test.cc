// Caches whose rows lie in host memory: the same results, wherever they lie.
#include "tests/engine/test_requests.h"

namespace baton {
namespace {

using namespace test;

TEST(HostRows, CudaRequestsKeepTheirBits) {
  if (!HaveGpu()) GTEST_SKIP() << "needs the cuda backend and a GPU";
  const BackendCase cuda = BackendCases().back();
  // Prompts of many rows are for the library, which reads a copy of a bf16 cache.
  std::vector<Request> requests = MixedRequests();
  requests.push_back(TokensRequest(700, 7, 9, SparsePlan(16)));
  for (const KvType kv : {KvType::kBF16, KvType::kInt8}) {
    for (const int64_t chunk : {48, 512}) {
      BackendCase typed = cuda;
      typed.kv = kv;
      const auto on_gpu = LoadEngine(TinySpec(), typed, {.prompt_chunk = chunk});
      const auto on_host = LoadEngine(TinySpec(), typed, {.kv_host = true, .prompt_chunk = chunk});
      const ResolvedPlan plan = Resolved(*on_host, SparsePlan(16));
      std::string rows;
      for (const CacheSpec& c : plan.caches) rows += c.host_rows ? 'h' : 'd';
      EXPECT_EQ(rows, "dhhhhd");
      const auto batch = on_host->GenerateBatch(requests).value();
      const auto expected = on_gpu->GenerateBatch(requests).value();
      for (size_t i = 0; i < batch.size(); ++i) {
        EXPECT_EQ(Fingerprint(batch[i]), Fingerprint(expected[i])) << i << ", chunks of " << chunk;
        EXPECT_EQ(Fingerprint(on_host->Generate(requests[i]).value()), Fingerprint(expected[i]));
      }
    }
  }
}

TEST(HostRows, OtherBackendsHaveNoOtherMemory) {
  for (const BackendCase& c : BackendCases()) {
    if (c.backend == Backend::kCuda) continue;
    const auto engine =
        Engine::Load(ModelFile(TinySpec()), {.backend = c.backend, .kv_host = true});
    ASSERT_FALSE(engine.ok());
    EXPECT_NE(engine.error().ToString().find("--kv-host"), std::string::npos);
  }
}

}  // namespace
}  // namespace baton
