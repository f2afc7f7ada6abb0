#include "kernels/cpu/cpu_ops.h"

#include <fmt/format.h>

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace baton {
namespace {

// Linux permits the tile registers (8 KiB of state per thread) only to a process that requests
// them.
bool MayUseTiles() {
#if defined(__x86_64__) && defined(__linux__) && defined(SYS_arch_prctl)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

constexpr const char* kNames[] = {"portable", "avx2", "avx512", "amx"};
constexpr const char* kNeeds[] = {"x86-64", "AVX2, FMA, F16C, BMI2 and LZCNT",
                                  "AVX-512 with F, BW, VL, DQ, CD, VBMI, VBMI2, VNNI and BF16",
                                  "AMX with TILE and BF16"};

}  // namespace

CpuIsa DetectCpuIsa() {
#if defined(__x86_64__)
#if defined(BATON_EMULATE_AVX512)
  return CpuIsa::kAvx512;
#endif
  // The compiler's run-time check also reads XCR0: an instruction set counts only if the system
  // saves its registers.
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512vbmi") &&
                      __builtin_cpu_supports("avx512vbmi2") &&
                      __builtin_cpu_supports("avx512vnni") &&
                      __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("bmi2") &&
                      __builtin_cpu_supports("fma");
  if (avx512) return MayUseTiles() ? CpuIsa::kAmx : CpuIsa::kAvx512;
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("lzcnt");
  if (avx2) return CpuIsa::kAvx2;
#endif
  return CpuIsa::kPortable;
}

Result<std::unique_ptr<Ops>> MakeCpuOps(ThreadPool& threads, CpuIsa isa) {
  if (isa > DetectCpuIsa()) {
    return Error::Unsupported("the {} kernels need {}, which this machine lacks",
                              kNames[static_cast<int>(isa)], kNeeds[static_cast<int>(isa)])
        .Hint("use the portable kernels");
  }
  std::unique_ptr<Ops> ops = std::make_unique<cpu::CpuOps>(threads, isa);
  return ops;
}

namespace cpu {

CpuOps::CpuOps(ThreadPool& threads, CpuIsa isa) : Ops(threads), isa_(isa) {}

CpuOps::~CpuOps() = default;

std::string CpuOps::name() const { return fmt::format("cpu ({})", kNames[static_cast<int>(isa_)]); }

}  // namespace cpu
}  // namespace baton
