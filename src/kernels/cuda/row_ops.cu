// Operations on rows of the batch that are bound by memory.
#include <algorithm>
#include <bit>

#include "formats/dequantize.h"
#include "kernels/cuda/cuda_ops_impl.h"
#include "kernels/cuda/kv_access.cuh"
#include "kernels/cuda/reduce.cuh"

namespace baton::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

unsigned Blocks(int64_t n, int64_t per_block) {
  return static_cast<unsigned>((n + per_block - 1) / per_block);
}

struct GatherTable {
  KvAccess from, to;
  const int32_t* positions;
  int64_t count;
};

// A warp per token; Word divides a row.
template <typename Word>
__global__ void GatherTokens(const GatherTable* table) {
  const int lane = threadIdx.x % kWarp;
  const KvAccess &from = table->from, &to = table->to;
  const int64_t i = blockIdx.x * int64_t{kWarps} + threadIdx.x / kWarp;
  if (i >= table->count) return;
  const int64_t position = table->positions[i];
  const Word* source = reinterpret_cast<const Word*>(from.row(position));
  Word* target = reinterpret_cast<Word*>(to.row(i));
  const int words = from.row_bytes / static_cast<int>(sizeof(Word));
  for (int w = lane; w < words; w += kWarp) target[w] = source[w];
  if (from.dtype != DType::kI8) return;
  const float* source_scale = from.scale(position, false, 0);
  float* target_scale = to.scale(i, false, 0);
  for (int n = lane; n < from.planes * from.kv_heads; n += kWarp) target_scale[n] = source_scale[n];
}

__global__ void CopyRowsKernel(const float* from, int64_t from_stride, const int64_t* rows,
                               float* to, int64_t to_stride, int64_t n) {
  LetNextBegin();
  AwaitPrevious();
  const float* source = from + rows[blockIdx.y] * from_stride;
  float* target = to + blockIdx.y * to_stride;
  const int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (i < n) target[i] = source[i];
}

__global__ void AddKernel(float* x, const float* y, int64_t n) {
  LetNextBegin();
  AwaitPrevious();
  const int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (i < n) x[i] += y[i];
}

// A block per row of the segments.
__global__ void RotaryTableKernel(const Rows* segments, const float* frequencies, int64_t half,
                                  float gain, float* cos, int64_t cos_stride, float* sin,
                                  int64_t sin_stride) {
  int64_t row = blockIdx.x;
  while (row >= segments->count) row -= segments++->count;
  const int64_t position = segments->position + row;
  row += segments->first;
  for (int64_t d = threadIdx.x; d < half; d += blockDim.x) {
    double s, c;
    sincos(static_cast<double>(position) * static_cast<double>(frequencies[d]), &s, &c);
    cos[row * cos_stride + d] = static_cast<float>(c) * gain;
    sin[row * sin_stride + d] = static_cast<float>(s) * gain;
  }
}

}  // namespace

void CudaOps::DoGather(const GatherParams& p) {
  const int64_t count = std::ssize(p.positions);
  if (count == 0) return;
  Recorder::Operation operation(recorder_);
  const GatherTable value{KvAccess(p.from), KvAccess(p.to), p.positions.data(), count};
  const GatherTable* table = recorder_.Table(std::span<const GatherTable>(&value, 1));
  // A power of two, so that lists of nearly equal lengths repeat a launch.
  const auto blocks = std::bit_ceil(Blocks(count, kWarps));
  const int64_t bytes = p.from.layout.row_bytes();
  if (bytes % 16 == 0) {
    recorder_.Launch(GatherTokens<uint4>, blocks, kThreads, 0, table);
  } else if (bytes % 4 == 0) {
    recorder_.Launch(GatherTokens<uint32_t>, blocks, kThreads, 0, table);
  } else {
    recorder_.Launch(GatherTokens<uint8_t>, blocks, kThreads, 0, table);
  }
}

// The embedding table stays in the mapped file; the host expands the rows of the tokens.
void CudaOps::DoEmbed(const EmbedParams& p) {
  const RawMatrix& e = *p.table;
  const int64_t rows = p.x.dim(0);
  if (rows == 0) return;
  Recorder::Operation operation(recorder_);
  const auto [host, device] = recorder_.TableSpace<float>(rows * e.cols);
  threads_.For(rows, [&, host = host](int64_t t, int) { EmbedRow(p, t, host + t * e.cols); });
  if (p.x.contiguous()) return recorder_.Copy(p.x.data(), device, p.x.size() * 4);
  for (int64_t t = 0; t < rows; ++t) recorder_.Copy(p.x.row(t), device + t * e.cols, e.cols * 4);
}

void CudaOps::DoCopyRows(const CopyRowsParams& p) {
  if (p.rows.empty()) return;
  Recorder::Operation operation(recorder_);
  recorder_.Launch(
      CopyRowsKernel,
      {.grid = dim3(Blocks(p.to.dim(1), kThreads), static_cast<unsigned>(p.rows.size())),
       .block = kThreads,
       .overlapped = true},
      p.from.data(), p.from.stride(0), recorder_.Table(p.rows), p.to.data(), p.to.stride(0),
      p.to.dim(1));
}

void CudaOps::DoAdd(const AddParams& p) {
  Recorder::Operation operation(recorder_);
  recorder_.Launch(AddKernel,
                   {.grid = Blocks(p.x.size(), kThreads), .block = kThreads, .overlapped = true},
                   p.x.data(), p.y.data(), p.x.size());
}

void CudaOps::DoRotaryTable(const RotaryTableParams& p) {
  int64_t rows = 0;
  for (const Rows& r : p.segments) rows += r.count;
  if (rows == 0 || p.frequencies.empty()) return;
  Recorder::Operation operation(recorder_);
  recorder_.Launch(RotaryTableKernel, static_cast<unsigned>(rows), 64, 0,
                   recorder_.Table(p.segments), recorder_.Table(p.frequencies),
                   std::ssize(p.frequencies), p.gain, p.cos.data(), p.cos.stride(0), p.sin.data(),
                   p.sin.stride(0));
}

}  // namespace baton::cuda
