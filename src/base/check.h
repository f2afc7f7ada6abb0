// Checks for bugs: they abort with place and message. Bad input must return an Error instead.
#pragma once

#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>

namespace baton::internal {
[[noreturn]] inline void CheckFailed(const char* file, int line, const std::string& what) {
  fmt::print(stderr, "{}:{}: check failed: {}\n", file, line, what);
  std::abort();
}
}  // namespace baton::internal

#define BATON_CHECK(cond)                                        \
  do {                                                           \
    if (!(cond)) [[unlikely]]                                    \
      ::baton::internal::CheckFailed(__FILE__, __LINE__, #cond); \
  } while (0)
#define BATON_CHECK_OP_(a, op, b)                                                             \
  do {                                                                                        \
    const auto _a = (a);                                                                      \
    const auto _b = (b);                                                                      \
    if (!(_a op _b)) [[unlikely]]                                                             \
      ::baton::internal::CheckFailed(__FILE__, __LINE__,                                      \
                                     fmt::format("{} {} {}: {} vs {}", #a, #op, #b, _a, _b)); \
  } while (0)
#define BATON_CHECK_EQ(a, b) BATON_CHECK_OP_(a, ==, b)
#define BATON_CHECK_LE(a, b) BATON_CHECK_OP_(a, <=, b)
#define BATON_CHECK_LT(a, b) BATON_CHECK_OP_(a, <, b)
#define BATON_CHECK_GE(a, b) BATON_CHECK_OP_(a, >=, b)
#define BATON_CHECK_GT(a, b) BATON_CHECK_OP_(a, >, b)
