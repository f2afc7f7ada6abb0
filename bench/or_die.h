// What bench programs share: an error ends them, and runs are judged by their median.
#pragma once

#include <errno.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <utility>
#include <vector>

#include "baton/error.h"

namespace baton {

inline void OrDie(const Status& s) {
  if (s.ok()) return;
  std::fprintf(stderr, "%s: %s\n", program_invocation_short_name, s.error().ToString().c_str());
  std::exit(1);
}

template <typename T>
T OrDie(Result<T> r) {
  if (!r.ok()) OrDie(Status(r.error()));
  return std::move(r).value();
}

// 0 without values.
inline double Median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v.empty() ? 0 : v[v.size() / 2];
}

}  // namespace baton
