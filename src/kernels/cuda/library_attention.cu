#include <cuda_bf16.h>

#include <bit>

#include "kernels/cuda/library_attention.h"
#include "kernels/cuda/mma.cuh"

namespace baton::cuda {
namespace {

// The library has a block for 128 rows of a head and does not split keys, so fewer rows, which
// would leave most of a GPU idle, are the own kernels'. More are computed one after another, which
// bounds scratch memory and the number of plans.
constexpr int64_t kLeastRows = 256, kMostRows = 8192;
// Limits of plans are powers of two, keys from this on.
constexpr int64_t kLeastKeys = 4096;
// Page table entries past the limit, in case they are read ahead.
constexpr int64_t kMorePages = 64;
// The copy of a cache in host memory grows by so many.
constexpr int64_t kCopiedPages = 1024;
constexpr int kThreads = 256;

// What changes from one chunk of a prompt to the next.
struct Sequence {
  int32_t rows = 0, unused_rows[3] = {};  // the library wants lengths aligned
  int32_t keys = 0, unused_keys[3] = {};
  const int32_t* pages = nullptr;
  int64_t stored = 0;  // tokens of the cache, at least `keys`
};

struct KvStrides {
  int64_t page_bytes = 0, row_bytes = 0, value_bytes = 0;  // value_bytes: V of a token, all heads
};

// q in bf16, four values a thread; the page table, whose last entry is repeated up to `entries`;
// and zeros as V of the slots past the last token: the library multiplies whatever is there by
// zero, also a NaN that another sequence left behind.
__global__ void PrepareLibraryAttention(const float* q, __nv_bfloat16* to, int64_t fours,
                                        const Sequence* sequence, std::byte* values, KvStrides kv,
                                        int32_t* pages, int64_t entries) {
  const int64_t thread = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  const int64_t threads = gridDim.x * int64_t{kThreads};
  if (thread < fours) {
    const float4 x = reinterpret_cast<const float4*>(q)[thread];
    reinterpret_cast<uint2*>(to)[thread] = {PackBf16(x.x, x.y), PackBf16(x.z, x.w)};
  }
  const int last = (sequence->keys - 1) / KvLayout::kSlots;
  for (int64_t i = thread; i < entries; i += threads)
    pages[i] = sequence->pages[i < last ? i : last];
  std::byte* const page = values + sequence->pages[last] * kv.page_bytes;
  const int64_t used = sequence->stored - last * int64_t{KvLayout::kSlots};
  const int64_t words = kv.value_bytes / 16, free = (KvLayout::kSlots - used) * words;
  for (int64_t i = thread; i < free; i += threads)
    reinterpret_cast<uint4*>(page + (used + i / words) * kv.row_bytes)[i % words] = {};
}

// The pages of a cache that lies in host memory, in order, and the table of the copy: the library
// reads every key once for each 128 rows, which should cross the bus once.
__global__ void CopyPages(const Sequence* sequence, const std::byte* arena, int64_t page_bytes,
                          std::byte* to, int32_t* table) {
  const int page = static_cast<int>(blockIdx.x), last = (sequence->keys - 1) / KvLayout::kSlots;
  if (page > last) return;
  if (threadIdx.x == 0) table[page] = page;
  const auto* from = reinterpret_cast<const uint4*>(arena + sequence->pages[page] * page_bytes);
  auto* out = reinterpret_cast<uint4*>(to + page * page_bytes);
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < page_bytes / 16; i += kThreads) out[i] = from[i];
}

// o in f32, and lse [Hq, stride] as [T, Hq].
__global__ void FinishLibraryAttention(const __nv_bfloat16* from, float* o, int64_t fours,
                                       const float* lse_from, int64_t stride, float* lse,
                                       int32_t rows, int32_t heads) {
  const int64_t thread = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (thread >= fours) return;
  const uint2 x = reinterpret_cast<const uint2*>(from)[thread];
  reinterpret_cast<float4*>(o)[thread] = {
      __uint_as_float(x.x << 16), __uint_as_float(x.x & 0xffff0000u), __uint_as_float(x.y << 16),
      __uint_as_float(x.y & 0xffff0000u)};
  if (lse && thread < int64_t{rows} * heads)
    lse[thread] = lse_from[thread % heads * stride + thread / heads];
}

int64_t PowerOfTwo(int64_t least) {
  return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(least)));
}
int64_t RoundUp(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
int64_t Aligned(int64_t bytes) { return RoundUp(bytes, 256); }

}  // namespace

bool LibraryAttention::Suits(const AttendParams::Segment& s) {
  const KvLayout& layout = s.kv.layout;
  return s.rows.count >= kLeastRows && s.keys.kind == KeySet::Kind::kAll && !s.scores &&
         !s.rows_alone && layout.dtype == DType::kBF16 && layout.head_dim % 8 == 0;
}

bool LibraryAttention::Attend(Recorder& recorder, Scratch& scratch, const AttendParams& p,
                              const AttendParams::Segment& s) {
  const KvLayout& layout = s.kv.layout;
  if (!Suits(s)) return false;
  if (!std::exchange(opened_, true)) cudnn_ = Cudnn::Load(recorder.stream());
  if (!cudnn_) return false;
  const Cudnn::Shape most{.rows = PowerOfTwo(std::min(s.rows.count, kMostRows)),
                          .keys = PowerOfTwo(std::max(s.rows.position + s.rows.count, kLeastKeys)),
                          .heads = p.q.dim(1),
                          .kv_heads = layout.kv_heads,
                          .dim = layout.head_dim,
                          .page_stride = layout.page_bytes() / 2,
                          .token_stride = layout.row_bytes() / 2,
                          .head_stride = layout.head_bytes() / 2};
  const Cudnn::Plan* plan = cudnn_->PlanOf(most);
  if (plan == nullptr) return false;

  const int64_t entries = most.keys / KvLayout::kSlots + kMorePages;
  const int64_t operand = Aligned(most.rows * most.heads * most.dim * 2);
  const int64_t copied =
      s.kv.host_rows ? RoundUp(PagesOf(s.rows.position + s.rows.count), kCopiedPages) : 0;
  const int64_t sizes[] = {operand,
                           operand,
                           Aligned(most.rows * most.heads * 4),
                           Aligned(entries * 4),
                           Aligned(Cudnn::WorkspaceBytes(*plan)),
                           Aligned(copied * layout.page_bytes()),
                           Aligned(copied * 4)};
  int64_t all = 0;
  for (const int64_t size : sizes) all += size;
  std::byte* at[std::size(sizes)] = {scratch.TryGet<std::byte>(Scratch::kPartial, all)};
  if (at[0] == nullptr) return false;
  for (size_t i = 1; i < std::size(sizes); ++i) at[i] = at[i - 1] + sizes[i - 1];
  auto* const q = reinterpret_cast<__nv_bfloat16*>(at[0]);
  auto* const o = reinterpret_cast<__nv_bfloat16*>(at[1]);
  auto* const lse = reinterpret_cast<float*>(at[2]);
  auto* const pages = reinterpret_cast<int32_t*>(at[3]);

  Sequence sequence{.rows = static_cast<int32_t>(s.rows.count),
                    .keys = static_cast<int32_t>(s.rows.position + s.rows.count),
                    .pages = s.kv.pages,
                    .stored = std::max(s.kv.length, s.kv.stored)};
  const auto put = [&] { return recorder.Table(std::span<const Sequence>(&sequence, 1)); };
  std::byte* arena = s.kv.arena;
  if (copied > 0) {
    auto* const table = reinterpret_cast<int32_t*>(at[6]);
    recorder.Launch(CopyPages, static_cast<unsigned>(copied), kThreads, 0, put(), arena,
                    layout.page_bytes(), at[5], table);
    arena = at[5];
    sequence.pages = table;
  }
  std::byte* const values = arena + layout.value_offset();
  for (int64_t row = 0; row < s.rows.count; row += kMostRows) {
    const int64_t rows = std::min(kMostRows, s.rows.count - row);
    sequence.rows = static_cast<int32_t>(rows);
    sequence.keys = static_cast<int32_t>(s.rows.position + row + rows);
    const Sequence* const on_device = put();
    const int64_t first = (s.rows.first + row) * most.heads;
    const int64_t fours = rows * most.heads * most.dim / 4;
    const auto blocks = static_cast<unsigned>((fours + kThreads - 1) / kThreads);
    recorder.Launch(PrepareLibraryAttention, blocks, kThreads, 0, p.q.data() + first * most.dim, q,
                    fours, on_device, values,
                    KvStrides{layout.page_bytes(), layout.row_bytes(), layout.value_offset()},
                    pages, entries);
    const Cudnn::Call call{.q = q,
                           .k = arena,
                           .v = values,
                           .pages = pages,
                           .len_q = &on_device->rows,
                           .len_kv = &on_device->keys,
                           .scale = p.scale,
                           .unused = 0,
                           .o = o,
                           .lse = lse,
                           .workspace = at[4],
                           .plan = plan};
    recorder.Add(std::as_bytes(std::span(&call, 1)),
                 [this, call](cudaStream_t) { cudnn_->Run(call); });
    recorder.Launch(FinishLibraryAttention, blocks, kThreads, 0, o, p.o.data() + first * most.dim,
                    fours, lse, most.rows, p.lse.empty() ? nullptr : p.lse.data() + first,
                    static_cast<int32_t>(rows), static_cast<int32_t>(most.heads));
  }
  return true;
}

}  // namespace baton::cuda
