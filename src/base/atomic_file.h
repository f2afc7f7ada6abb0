// Writing a file so that a reader sees the old content or the whole new one.
#pragma once

#include <string>

#include "baton/error.h"

namespace baton {

// Writes a temporary file beside `path`, forces it to the disk and renames it. A full disk is an
// error and leaves what was there.
Status WriteFileAtomically(const std::string& path, const std::string& text);

}  // namespace baton
