// The text that Git leaves in place of a large file whose content was not fetched.
#pragma once

#include <string_view>

#include "baton/error.h"

namespace baton {

// Corrupt if `text` is such a pointer. `expected`: what the file should be, with its article.
inline Status RefuseLfsPointer(std::string_view text, std::string_view expected) {
  if (!text.starts_with("version https://git-lfs")) return Status::Ok();
  return Error::Corrupt("expected {}, got a Git LFS pointer to one", expected)
      .Hint("fetch the content with: git lfs pull");
}

}  // namespace baton
