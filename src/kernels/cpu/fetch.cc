#include "kernels/cpu/fetch.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace baton::cpu {
namespace {

bool IsZen5OrLater() {
#if defined(__x86_64__)
  constexpr unsigned kAuth = 0x68747541, kFamily = 0x1a;  // of "AuthenticAMD"
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(0, &a, &b, &c, &d) || b != kAuth) return false;
  return __get_cpuid(1, &a, &b, &c, &d) && ((a >> 8) & 15) + ((a >> 20) & 255) >= kFamily;
#else
  return false;
#endif
}

}  // namespace

const bool kFetchesNear = IsZen5OrLater();

}  // namespace baton::cpu
