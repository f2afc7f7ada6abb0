// Products of packed weights with x in single precision, for any x86-64 machine. Weights of a panel
// are expanded 64 columns at a time into 16 KiB, which stay in the first-level cache while they are
// multiplied with all tokens; x is not quantised.
//
// A sum is one chain of FMAs over the columns, interrupted only by exact stores, so it does not
// depend on how many tokens or rows are computed together. This path does not call a BLAS for
// prompts for the same reason: the sums of a row in a batch and of the row alone would differ.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/linear_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/portable/linear.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
// After highway.h.
#include "hwy/contrib/math/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace baton::cpu::portable {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

constexpr int kPanelColumns = 64;  // expanded at once

// At most the 16 rows of a group per vector.
using F = hn::CappedTag<float, 16>;
using V = hn::Vec<F>;
using U = hn::RebindToUnsigned<F>;
constexpr F kF;
constexpr U kU;

V LoadHalves(const std::byte* p) {
  const hn::Rebind<hwy::float16_t, F> dh;
  return hn::PromoteTo(kF, hn::LoadU(dh, reinterpret_cast<const hwy::float16_t*>(p)));
}

// w[column * 64 + row] of one group and block, for a quantised layout.
void ExpandQuants(const PackedMatrix& m, const std::byte* group, int64_t block,
                  float* HWY_RESTRICT w) {
  const int quant_bytes = QuantBytesPerBlock(m.layout);
  const std::byte* q = group + block * quant_bytes;
  const bool two_scales = m.layout == PackLayout::kSym8x2;
  const bool has_min = m.layout == PackLayout::kMin4 || m.layout == PackLayout::kMin8;
  const std::byte* scales = group + m.blocks * quant_bytes + block * (two_scales ? 64 : 32);
  const std::byte* mins = group + m.blocks * (quant_bytes + 32) + block * 32;
  const float offset = m.layout == PackLayout::kSym4   ? -8.0f
                       : m.layout == PackLayout::kSym8 ? -128.0f
                                                       : -32.0f;
  for (size_t r = 0; r < kGroupRows; r += hn::Lanes(kF)) {
    const V d0 = LoadHalves(scales + r * 2);
    const V d1 = two_scales ? LoadHalves(scales + 32 + r * 2) : d0;
    // d (q - offset) as an FMA: the product of a scale and a power of two is exact.
    const V m0 = has_min ? LoadHalves(mins + r * 2) : hn::Mul(d0, hn::Set(kF, offset));
    const V m1 = two_scales ? hn::Mul(d1, hn::Set(kF, offset)) : m0;
    const hn::RebindToSigned<F> di;
    for (int v = 0; v < quant_bytes / 64; ++v) {
      auto bytes = hn::LoadU(kU, reinterpret_cast<const uint32_t*>(q + v * 64 + r * 4));
      float* out = w + v * 4 * kPanelRows + r;
      if (quant_bytes == 256) {
        const auto mask = hn::Set(kU, 15u);
        for (int i = 0; i < 4; ++i) {
          const V low = hn::ConvertTo(kF, hn::BitCast(di, hn::And(bytes, mask)));
          const V high =
              hn::ConvertTo(kF, hn::BitCast(di, hn::And(hn::ShiftRight<4>(bytes), mask)));
          hn::Store(hn::MulAdd(low, d0, m0), kF, out + i * kPanelRows);
          hn::Store(hn::MulAdd(high, d0, m0), kF, out + (16 + i) * kPanelRows);
          bytes = hn::ShiftRight<8>(bytes);
        }
      } else {
        const auto mask = hn::Set(kU, 255u);
        for (int i = 0; i < 4; ++i) {
          const V value = hn::ConvertTo(kF, hn::BitCast(di, hn::And(bytes, mask)));
          hn::Store(v < 4 ? hn::MulAdd(value, d0, m0) : hn::MulAdd(value, d1, m1), kF,
                    out + i * kPanelRows);
          bytes = hn::ShiftRight<8>(bytes);
        }
      }
    }
  }
}

void ExpandBf16(const std::byte* group, int64_t block, float* HWY_RESTRICT w) {
  const std::byte* p = group + block * 1024;
  for (int c = 0; c < kBlockColumns / 2; ++c) {
    for (size_t r = 0; r < kGroupRows; r += hn::Lanes(kF)) {
      const auto pair = hn::LoadU(kU, reinterpret_cast<const uint32_t*>(p + c * 64 + r * 4));
      hn::Store(hn::BitCast(kF, hn::ShiftLeft<16>(pair)), kF, w + 2 * c * kPanelRows + r);
      hn::Store(hn::BitCast(kF, hn::And(pair, hn::Set(kU, 0xffff0000u))), kF,
                w + (2 * c + 1) * kPanelRows + r);
    }
  }
}

// out[t][row] += sum over columns of w[column][row] * x[column][t], for VN vectors of rows and NT
// tokens.
template <int VN, int NT>
HWY_INLINE void Tile(const float* HWY_RESTRICT w, const float* HWY_RESTRICT x, int columns,
                     float* HWY_RESTRICT out) {
  const size_t lanes = hn::Lanes(kF);
  V acc[VN][NT];
  for (int v = 0; v < VN; ++v) {
    for (int t = 0; t < NT; ++t) acc[v][t] = hn::Load(kF, out + t * kPanelRows + v * lanes);
  }
  for (int c = 0; c < columns; ++c) {
    V a[VN];
    for (int v = 0; v < VN; ++v) a[v] = hn::Load(kF, w + c * kPanelRows + v * lanes);
    for (int t = 0; t < NT; ++t) {
      const V b = hn::Set(kF, x[c * kTileTokens + t]);
      for (int v = 0; v < VN; ++v) acc[v][t] = hn::MulAdd(a[v], b, acc[v][t]);
    }
  }
  for (int v = 0; v < VN; ++v) {
    for (int t = 0; t < NT; ++t) hn::Store(acc[v][t], kF, out + t * kPanelRows + v * lanes);
  }
}

// As many vectors of rows at once as fit, so that there are enough independent chains when tokens
// are few.
template <int VN, int NT>
void Rows(const float* w, const float* x, int columns, int rows, float* out) {
  constexpr int kStep = VN * static_cast<int>(hn::MaxLanes(F()));
  int r = 0;
  if constexpr (kStep <= kPanelRows) {
    for (; r + kStep <= rows; r += kStep) Tile<VN, NT>(w + r, x, columns, out + r);
  }
  if constexpr (VN > 1) {
    if (r < rows) Rows<VN / 2, NT>(w + r, x, columns, rows - r, out + r);
  }
}

void TileOfTokens(int64_t tokens, const float* w, const float* x, int columns, int rows,
                  float* out) {
  switch (tokens) {
    case 1:
      return Rows<8, 1>(w, x, columns, rows, out);
    case 2:
      return Rows<4, 2>(w, x, columns, rows, out);
    case 3:
      return Rows<4, 3>(w, x, columns, rows, out);
    case 4:
      return Rows<2, 4>(w, x, columns, rows, out);
    case 5:
      return Rows<2, 5>(w, x, columns, rows, out);
    default:
      return Rows<2, 6>(w, x, columns, rows, out);
  }
}

void MultiplyImpl(const PanelArgs& p) {
  const PackedMatrix& m = *p.w;
  alignas(64) float w[kPanelColumns * kPanelRows];
  std::memset(p.out, 0, static_cast<size_t>(p.tokens * kPanelRows) * sizeof(float));
  constexpr int kBlocks = kPanelColumns / kBlockColumns;
  for (int64_t b = 0; b < m.blocks; b += kBlocks) {
    const int blocks = static_cast<int>(std::min<int64_t>(kBlocks, m.blocks - b));
    for (int g = 0; g < p.groups; ++g) {
      const std::byte* group = m.group(p.group + g);
      for (int i = 0; i < blocks; ++i) {
        float* to = w + i * kBlockColumns * kPanelRows + g * kGroupRows;
        if (m.layout == PackLayout::kBf16) {
          ExpandBf16(group, b + i, to);
        } else {
          ExpandQuants(m, group, b + i, to);
        }
      }
    }
    for (int64_t t = 0, tile = 0; t < p.tokens; t += kTileTokens, ++tile) {
      const auto* x = reinterpret_cast<const float*>(p.x + tile * p.tile_bytes) +
                      b * kBlockColumns * kTileTokens;
      TileOfTokens(p.tokens - t, w, x, blocks * kBlockColumns, p.groups * kGroupRows,
                   p.out + t * kPanelRows);
    }
  }
}

float InverseRms(const float* x, int64_t n, float eps) {
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(kF));
  V s0 = hn::Zero(kF), s1 = hn::Zero(kF);
  int64_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    const V a = hn::LoadU(kF, x + i), b = hn::LoadU(kF, x + i + lanes);
    s0 = hn::MulAdd(a, a, s0);
    s1 = hn::MulAdd(b, b, s1);
  }
  float sum = hn::GetLane(hn::SumOfLanes(kF, hn::Add(s0, s1)));
  for (; i < n; ++i) sum += x[i] * x[i];
  return 1.0f / std::sqrt(sum / static_cast<float>(n) + eps);
}

void PrepareImpl(const PrepareArgs& p) {
  auto* out = reinterpret_cast<float*>(p.plain);
  const int64_t padded = p.blocks * kBlockColumns;
  for (int t = 0; t < p.count; ++t) {
    const float* x = p.x + t * p.x_stride;
    if (p.norm_weight) {
      const float inverse = InverseRms(x, p.cols, p.norm_eps);
      for (int64_t c = 0; c < p.cols; ++c)
        out[c * kTileTokens + t] = x[c] * inverse * p.norm_weight[c];
    } else {
      for (int64_t c = 0; c < p.cols; ++c) out[c * kTileTokens + t] = x[c];
    }
    for (int64_t c = p.cols; c < padded; ++c) out[c * kTileTokens + t] = 0;
  }
}

void FinishLinearImpl(const FinishArgs& p) {
  for (int64_t t = 0; t < p.tokens; ++t) {
    const float* acc = p.acc + t * kPanelRows;
    float* y = p.y + t * p.y_stride;
    for (int r = 0; r < p.rows; ++r) {
      const float v = p.bias ? acc[r] + p.bias[r] : acc[r];
      y[r] = p.accumulate ? y[r] + v : v;
    }
  }
}

// Both activations are g * sigmoid(s): s = g for SiLU, s = 2 sqrt(2 / pi) (g + 0.044715 g^3) for
// tanh-GELU.
V Activate(V g, GluActivation a) {
  V s = g;
  if (a == GluActivation::kGeluTanh) {
    const V cubic = hn::MulAdd(hn::Mul(g, g), hn::Set(kF, 0.044715f), hn::Set(kF, 1.0f));
    s = hn::Mul(hn::Mul(g, cubic), hn::Set(kF, 1.5957691216f));
  }
  // The bounds keep the exponent in range: beyond them the sigmoid is 1, or g times it is 0 in
  // single precision.
  const V bounded = hn::Min(hn::Max(hn::Neg(s), hn::Set(kF, -87.0f)), hn::Set(kF, 88.0f));
  const V y = hn::Div(g, hn::Add(hn::Set(kF, 1.0f), hn::Exp(kF, bounded)));
  return hn::IfThenElse(hn::IsNaN(s), s, y);
}

void FinishGluImpl(const FinishArgs& p) {
  const int lanes = static_cast<int>(hn::Lanes(kF));
  alignas(64) float rest[hn::MaxLanes(F())];
  for (int64_t t = 0; t < p.tokens; ++t) {
    for (int r = 0; r < p.rows; r += lanes) {
      const V gate = hn::Load(kF, p.acc + t * kPanelRows + r);
      const V y = hn::Mul(Activate(gate, p.activation), hn::Load(kF, p.up + t * kPanelRows + r));
      float* to = p.y + t * p.y_stride + r;
      if (r + lanes <= p.rows) {
        hn::StoreU(y, kF, to);
      } else {
        hn::Store(y, kF, rest);
        std::copy_n(rest, p.rows - r, to);
      }
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace baton::cpu::portable
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace baton::cpu::portable {

HWY_EXPORT(MultiplyImpl);
HWY_EXPORT(PrepareImpl);
HWY_EXPORT(FinishLinearImpl);
HWY_EXPORT(FinishGluImpl);

LinearKernels GetLinearKernels() {
  return {.quantises_x = false,
          .plain_tile_bytes_per_block = kBlockColumns * kTileTokens * 4,
          .prepare =
              [](const PrepareArgs& p) {
                HWY_DYNAMIC_DISPATCH(PrepareImpl)
                (p);
              },
          .multiply =
              [](const PanelArgs& p) {
                HWY_DYNAMIC_DISPATCH(MultiplyImpl)
                (p);
              },
          .finish_linear =
              [](const FinishArgs& p) {
                HWY_DYNAMIC_DISPATCH(FinishLinearImpl)
                (p);
              },
          .finish_glu =
              [](const FinishArgs& p) {
                HWY_DYNAMIC_DISPATCH(FinishGluImpl)
                (p);
              }};
}

}  // namespace baton::cpu::portable
#endif
