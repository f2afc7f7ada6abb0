// Collects everything that is wrong with a file into one error, so that it can be repaired at once.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "baton/error.h"

namespace baton {

class Problems {
 public:
  template <typename... A>
  void Add(fmt::format_string<A...> f, A&&... a) {
    list_.push_back(fmt::format(f, std::forward<A>(a)...));
  }
  // A well-formed value that Baton does not support. The error is kUnsupported where all problems
  // are of this kind.
  template <typename... A>
  void AddUnsupported(fmt::format_string<A...> f, A&&... a) {
    Add(f, std::forward<A>(a)...);
    ++unsupported_;
  }

  bool empty() const { return list_.empty(); }
  size_t count() const { return list_.size(); }

  // "3 keys do not fit a X model: ...; ...; ..." of what = "keys do not fit a X model".
  Error ToError(const std::string& what) const {
    constexpr size_t kListed = 20;
    std::string text;
    for (size_t i = 0; i < std::min(list_.size(), kListed); ++i)
      text += (i == 0 ? "" : "; ") + list_[i];
    if (list_.size() > kListed) text += fmt::format("; and {} more", list_.size() - kListed);
    const bool unsupported = unsupported_ == list_.size();
    return {unsupported ? Error::Code::kUnsupported : Error::Code::kCorrupt,
            fmt::format("{} {}: {}", list_.size(), what, text)};
  }

 private:
  std::vector<std::string> list_;
  size_t unsupported_ = 0;
};

}  // namespace baton
