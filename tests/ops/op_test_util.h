// Helpers of the op tests: one body runs on every backend and is compared with the reference.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "base/thread_pool.h"
#include "ops/ops.h"
#ifdef BATON_WITH_CPU
#include "kernels/cpu/cpu_ops.h"
#endif
#ifdef BATON_WITH_CUDA
#include "kernels/cuda/cuda_ops.h"
#include "tests/ops/gpu_memory.h"
#endif

namespace baton::test {

// Names for INSTANTIATE_TEST_SUITE_P; also valid parts of test names.
inline std::vector<std::string> BackendNames() {
  return {
      "ref",
#ifdef BATON_WITH_CPU
      "portable", "avx2", "avx512", "amx",
#endif
#ifdef BATON_WITH_CUDA
      "cuda",
#endif
  };
}

// Null when the machine lacks the hardware: `if (!ops) GTEST_SKIP() << kNoBackend;`
inline constexpr const char* kNoBackend = "this machine lacks the instructions, or the GPU";

// Memory that every backend and the host can read and write: for caches, index sets and whatever
// else a test passes to an operation in a Buffer. After the first MakeBackend("cuda"), vectors are
// in such memory by themselves; variables on the stack are not.
inline Device& TestMemory() {
#ifdef BATON_WITH_CUDA
  return SharedMemory();
#else
  return Device::Host();
#endif
}

inline std::unique_ptr<Ops> MakeBackend(const std::string& name, ThreadPool& threads) {
  if (name == "ref") return MakeReferenceOps(threads);
#ifdef BATON_WITH_CUDA
  if (name == "cuda") {
    if (!ShareMemoryWithGpu()) return nullptr;
    auto ops = MakeCudaOps(threads, {.synchronous = true});
    return ops.ok() ? std::move(ops).value() : nullptr;
  }
#endif
#ifdef BATON_WITH_CPU
  const CpuIsa isa = name == "amx"      ? CpuIsa::kAmx
                     : name == "avx512" ? CpuIsa::kAvx512
                     : name == "avx2"   ? CpuIsa::kAvx2
                                        : CpuIsa::kPortable;
  if (isa > DetectCpuIsa()) return nullptr;
  auto ops = MakeCpuOps(threads, isa);
  if (ops.ok()) return std::move(ops).value();
  ADD_FAILURE() << ops.error().ToString();
#endif
  return nullptr;
}

// |got - want| <= absolute + relative * |want|. `absolute` is a share of the root mean square of
// `want` when scaled.
struct Tolerance {
  double relative = 0;
  double absolute = 0;
  double cosine = 1;  // at least
  bool scaled = true;
};

inline void ExpectClose(std::span<const float> got, std::span<const float> want,
                        const Tolerance& tol, const std::string& what = "") {
  ASSERT_EQ(got.size(), want.size()) << what;
  double gg = 0, ww = 0, gw = 0;
  int64_t finite = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const bool same_kind = std::isnan(got[i]) == std::isnan(want[i]) &&
                           std::isinf(got[i]) == std::isinf(want[i]) &&
                           (!std::isinf(want[i]) || got[i] == want[i]);
    ASSERT_TRUE(same_kind) << what << ": at " << i << " got " << got[i] << ", want " << want[i];
    if (!std::isfinite(want[i])) continue;
    ++finite;
    gg += static_cast<double>(got[i]) * got[i];
    ww += static_cast<double>(want[i]) * want[i];
    gw += static_cast<double>(got[i]) * want[i];
  }
  if (finite == 0) return;
  const double absolute =
      tol.absolute * (tol.scaled ? std::sqrt(ww / static_cast<double>(finite)) : 1.0);
  double worst = -1;
  size_t worst_index = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    if (!std::isfinite(want[i])) continue;
    const double error = std::fabs(static_cast<double>(got[i]) - want[i]);
    const double excess = error - (absolute + tol.relative * std::fabs(want[i]));
    if (excess > worst || worst_index == 0) worst = excess, worst_index = i;
  }
  EXPECT_LE(worst, 0) << what << ": worst at " << worst_index << " of " << want.size() << ": got "
                      << got[worst_index] << ", want " << want[worst_index];
  const double cosine = gg == 0 && ww == 0 ? 1.0 : gw / std::sqrt(std::max(gg * ww, 1e-300));
  EXPECT_GE(cosine, std::min(tol.cosine, 1 - 1e-12)) << what;
}

inline void ExpectSameBits(std::span<const float> got, std::span<const float> want,
                           const std::string& what = "") {
  ASSERT_EQ(got.size(), want.size()) << what;
  for (size_t i = 0; i < want.size(); ++i) {
    ASSERT_EQ(std::memcmp(&got[i], &want[i], 4), 0)
        << what << ": at " << i << " got " << got[i] << ", want " << want[i];
  }
}

using Rng = std::mt19937;

inline std::vector<float> RandomNormal(Rng& rng, int64_t n, float sigma = 1, float mean = 0) {
  std::normal_distribution<float> normal(mean, sigma);
  std::vector<float> v(static_cast<size_t>(n));
  for (float& x : v) x = normal(rng);
  return v;
}

inline constexpr DType kWeightTypes[] = {
    DType::kF32,  DType::kF16,    DType::kBF16,   DType::kQ4_0, DType::kQ4_1, DType::kQ5_0,
    DType::kQ5_1, DType::kQ8_0,   DType::kQ4_K,   DType::kQ5_K, DType::kQ6_K, DType::kQ2_K,
    DType::kQ3_K, DType::kIQ4_NL, DType::kIQ4_XS, DType::kMXFP4};

// Bytes of `elements` weights: random quants, scales such that the weights are of the order of 0.1.
inline std::vector<std::byte> RandomWeights(Rng& rng, DType dtype, int64_t elements) {
  std::vector<std::byte> data(static_cast<size_t>(BytesOf(dtype, elements)));
  std::normal_distribution<float> normal(0, 0.1f);
  if (Info(dtype).block_elements == 1) {
    for (int64_t i = 0; i < elements; ++i) {
      const float x = normal(rng);
      const uint16_t h = dtype == DType::kF16 ? FloatToHalf(x) : ToBf16(x).bits;
      if (dtype == DType::kF32) {
        std::memcpy(data.data() + i * 4, &x, 4);
      } else {
        std::memcpy(data.data() + i * 2, &h, 2);
      }
    }
    return data;
  }
  for (std::byte& b : data) b = static_cast<std::byte>(rng() & 255);
  // The position of a block's f16 scale and minimum, and their order of magnitude.
  struct Scales {
    DType dtype;
    int at;
    float scale;
    int min_at = -1;
    float min = 0;
  };
  constexpr Scales kScales[] = {{DType::kQ4_0, 0, 0.1f / 8},
                                {DType::kQ4_1, 0, 0.1f / 8, 2, -0.1f},
                                {DType::kQ5_0, 0, 0.1f / 16},
                                {DType::kQ5_1, 0, 0.1f / 16, 2, -0.1f},
                                {DType::kQ8_0, 0, 0.1f / 64},
                                {DType::kQ4_K, 0, 0.1f / (8 * 32), 2, 0.1f / 32},
                                {DType::kQ5_K, 0, 0.1f / (16 * 32), 2, 0.1f / 32},
                                {DType::kQ6_K, 208, 0.1f / (16 * 64)},
                                {DType::kQ2_K, 80, 0.1f / (8 * 2), 82, 0.1f / 8},
                                {DType::kQ3_K, 108, 0.1f / (16 * 2)},
                                {DType::kIQ4_NL, 0, 0.1f / 64},
                                {DType::kIQ4_XS, 0, 0.1f / (16 * 64)}};
  std::uniform_real_distribution<float> uniform(0.5f, 1.5f);
  for (int64_t b = 0; b < elements / Info(dtype).block_elements; ++b) {
    std::byte* block = data.data() + b * Info(dtype).block_bytes;
    if (dtype == DType::kMXFP4) block[0] = static_cast<std::byte>(121 + rng() % 3);
    for (const Scales& s : kScales) {
      if (s.dtype != dtype) continue;
      const float d = s.scale * uniform(rng);
      const uint16_t d16 = FloatToHalf(s.min_at >= 0 || rng() % 2 ? d : -d);
      std::memcpy(block + s.at, &d16, 2);
      if (s.min_at < 0) continue;
      const uint16_t m16 = FloatToHalf(s.min * uniform(rng));
      std::memcpy(block + s.min_at, &m16, 2);
    }
  }
  return data;
}

}  // namespace baton::test
