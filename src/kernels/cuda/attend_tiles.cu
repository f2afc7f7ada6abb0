#include "kernels/cuda/attend_kernels.h"
#include "kernels/cuda/attend_tiles.cuh"

namespace baton::cuda {
namespace {

// Calls f(TileShape) for the shape of a cache; false where there is none.
template <typename F>
bool WithShape(DType cache, int64_t head_dim, F&& f) {
  if (cache == DType::kBF16) {
    switch (head_dim) {
      case 64:
        return f(TileShape<64, false>());
      case 96:
        return f(TileShape<96, false>());
      case 128:
        return f(TileShape<128, false>());
      case 256:
        return f(TileShape<256, false>());
      default:
        return false;
    }
  }
  if (cache == DType::kI8) {
    switch (head_dim) {
      case 64:
        return f(TileShape<64, true>());
      case 128:
        return f(TileShape<128, true>());
      case 256:
        return f(TileShape<256, true>());
      default:
        return false;
    }
  }
  return false;
}

}  // namespace

int TileRows(DType cache, int64_t head_dim) {
  int rows = 0;
  WithShape(cache, head_dim, [&](auto shape) {
    using Shape = decltype(shape);
    static const bool kAllowed =
        AllowShared(reinterpret_cast<const void*>(AttendTilesKernel<Shape>), Shape::kSharedBytes);
    if (kAllowed) rows = Shape::kRows;
    return true;
  });
  return rows;
}

void LaunchTiles(Recorder& recorder, const AttendCall& call, DType cache, AttendWork work) {
  BATON_CHECK(WithShape(cache, call.dim, [&](auto shape) {
    using Shape = decltype(shape);
    const int per_head = call.heads / call.kv_heads, heads = std::min(per_head, Shape::kRows);
    const int64_t blocks = int64_t{work.count} * call.kv_heads * ((per_head + heads - 1) / heads);
    recorder.Launch(AttendTilesKernel<Shape>, dim3(static_cast<unsigned>(blocks)),
                    dim3(Shape::kThreads), Shape::kSharedBytes, call, work);
    return true;
  }));
}

}  // namespace baton::cuda
