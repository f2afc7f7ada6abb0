// An error ends a bench program.
#pragma once

#include <errno.h>

#include <cstdio>
#include <cstdlib>
#include <utility>

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

}  // namespace baton
