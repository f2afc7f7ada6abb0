// Tokens picked from rows of logits, a team of blocks per row.
#include <algorithm>
#include <bit>

#include "kernels/cuda/cuda_ops_impl.h"
#include "kernels/cuda/sample_row.cuh"

namespace baton::cuda {
namespace {

constexpr int64_t kLeastOfBlock = 4096;  // fewer ids are not worth a block

__global__ void __launch_bounds__(kSampleThreads, 2)
    SampleKernel(const SampleTask* tasks, const float* logits, int32_t vocab, uint32_t* keys,
                 SampledRow* sampled) {
  __shared__ SampleShared shared;
  __shared__ SampleTask task;
  const Team team;
  const int64_t row = blockIdx.x / team.size();
  LetNextBegin();
  if (threadIdx.x == 0) task = tasks[row];
  RowSampler sampler(task, logits + row * vocab, vocab, keys + row * vocab, team, shared);
  __syncthreads();
  AwaitPrevious();
  sampler.Run(sampled + row);
}

}  // namespace

void CudaOps::DoSample(const SampleParams& p) {
  const int64_t n = p.logits.dim(0), vocab = p.logits.dim(1);
  const int team = TeamSize(recorder_, vocab, kLeastOfBlock, kMostTeam);
  BATON_CHECK_LE(vocab, team * kMostOfBlock);
  Recorder::Operation operation(recorder_);
  uint32_t* const keys = scratch_.Get<uint32_t>(Scratch::kKeys, n * vocab);
  int64_t entries = 0, words = 0;
  for (const SampleRow& r : p.rows) entries += std::ssize(r.entries), words += std::ssize(r.mask);
  // What changes its size from step to step follows all else in the tables, in powers of two.
  const auto capacity = [](int64_t size) {
    return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(size)));
  };
  const auto tasks = recorder_.TableSpace<SampleTask>(n);
  auto entry = recorder_.TableSpace<SampleEntry>(capacity(entries));
  auto mask = recorder_.TableSpace<uint32_t>(capacity(words));
  for (int64_t i = 0; i < n; ++i) {
    const SampleRow& r = p.rows[static_cast<size_t>(i)];
    std::copy(r.entries.begin(), r.entries.end(), entry.host);
    std::copy(r.mask.begin(), r.mask.end(), mask.host);
    tasks.host[i] = {.entries = entry.device,
                     .mask = r.mask.empty() ? nullptr : mask.device,
                     .uniform = r.uniform,
                     .temperature = r.temperature,
                     .top_p = r.top_p,
                     .min_p = r.min_p,
                     .repetition_penalty = r.repetition_penalty,
                     .presence_penalty = r.presence_penalty,
                     .frequency_penalty = r.frequency_penalty,
                     .top_k = r.top_k,
                     .entry_count = static_cast<int32_t>(r.entries.size())};
    entry.host += r.entries.size(), entry.device += r.entries.size();
    mask.host += r.mask.size(), mask.device += r.mask.size();
  }
  recorder_.Launch(SampleKernel,
                   {.grid = static_cast<unsigned>(n * team),
                    .block = kSampleThreads,
                    .cluster = static_cast<unsigned>(team),
                    .overlapped = true},
                   static_cast<const SampleTask*>(tasks.device), p.logits.data(),
                   static_cast<int32_t>(vocab), keys, p.sampled);
}

}  // namespace baton::cuda
