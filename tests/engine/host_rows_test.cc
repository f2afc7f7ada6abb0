// Caches whose rows lie in host memory: the same results, wherever they lie.
#include "tests/engine/test_requests.h"

namespace baton {
namespace {

using namespace test;

TEST(HostRows, CudaRequestsKeepTheirBits) {
  if (!HaveGpu()) GTEST_SKIP() << "needs the cuda backend and a GPU";
  const BackendCase cuda = BackendCases().back();
  const auto near = LoadEngine(TinySpec(), cuda, {.prompt_chunk = 48});
  const auto far = LoadEngine(TinySpec(), cuda, {.kv_host = true, .prompt_chunk = 48});
  const ResolvedPlan plan = Resolved(*far, SparsePlan(16));
  std::string rows;
  for (const CacheSpec& c : plan.caches) rows += c.host_rows ? 'h' : 'd';
  EXPECT_EQ(rows, "dhhhhd");
  for (const Request& r : MixedRequests()) {
    EXPECT_EQ(Fingerprint(far->Generate(r).value()), Fingerprint(near->Generate(r).value()));
  }
  const auto batch = far->GenerateBatch(MixedRequests()).value();
  const auto expected = near->GenerateBatch(MixedRequests()).value();
  for (size_t i = 0; i < batch.size(); ++i)
    EXPECT_EQ(Fingerprint(batch[i]), Fingerprint(expected[i])) << i;
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
