#include "kernels/cuda/attend_kernels.h"
#include "kernels/cuda/attend_rows.cuh"

namespace baton::cuda {
namespace {

template <typename Tile, int kGroups, bool kValues>
bool Launch(Recorder& recorder, const AttendCall& call, AttendWork work) {
  const auto kernel = AttendRowsKernel<Tile, kGroups, kValues>;
  constexpr int kShared = kRowSharedBytes<Tile>;
  static const bool kAllowed = AllowShared(reinterpret_cast<const void*>(kernel), kShared);
  if (!kAllowed) return false;
  const int per_head = call.heads / call.kv_heads, heads = kGroups * kGroupHeads;
  const int64_t units = int64_t{work.count} * call.kv_heads * ((per_head + heads - 1) / heads);
  recorder.Launch(kernel,
                  {.grid = dim3(static_cast<unsigned>((units + kRowWarps - 1) / kRowWarps)),
                   .block = dim3(kRowWarps * 32),
                   .shared_bytes = kShared,
                   .overlapped = true},
                  call, work);
  return true;
}

// Two groups of 8 heads share loads if their accumulators fit into registers.
template <typename Tile>
bool LaunchTile(Recorder& recorder, const AttendCall& call, AttendWork work, bool values) {
  if constexpr (Tile::kDim <= 128) {
    if (call.heads / call.kv_heads > kGroupHeads) {
      return values ? Launch<Tile, 2, true>(recorder, call, work)
                    : Launch<Tile, 2, false>(recorder, call, work);
    }
  }
  return values ? Launch<Tile, 1, true>(recorder, call, work)
                : Launch<Tile, 1, false>(recorder, call, work);
}

}  // namespace

bool LaunchTensorRows(Recorder& recorder, const AttendCall& call, DType cache, AttendWork work,
                      bool values) {
  if (cache == DType::kBF16) {
    switch (call.dim) {
      case 64:
        return LaunchTile<Bf16Tile<64>>(recorder, call, work, values);
      case 96:
        return LaunchTile<Bf16Tile<96>>(recorder, call, work, values);
      case 128:
        return LaunchTile<Bf16Tile<128>>(recorder, call, work, values);
      case 256:
        return LaunchTile<Bf16Tile<256>>(recorder, call, work, values);
      default:
        return false;
    }
  }
  if (cache == DType::kI8) {
    switch (call.dim) {
      case 64:
        return LaunchTile<Int8Tile<64>>(recorder, call, work, values);
      case 128:
        return LaunchTile<Int8Tile<128>>(recorder, call, work, values);
      case 256:
        return LaunchTile<Int8Tile<256>>(recorder, call, work, values);
      default:
        return false;
    }
  }
  return false;
}

}  // namespace baton::cuda
