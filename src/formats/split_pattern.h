// Patterns of tokenizer.json are written for Oniguruma (Ruby's syntax), ours run on PCRE2.
#pragma once

#include <string>
#include <string_view>

#include "baton/error.h"

namespace baton {

// The same pattern for PCRE2 with UTF, UCP, MULTILINE and LF as its newline. Differences that it
// resolves: \h is a hexadecimal digit; \s, \w and \b go by Unicode's tables; classes nest and
// intersect (&&); {2,3}+ repeats instead of being possessive; \uHHHH; groups capture nothing.
// Unsupported: what has no counterpart (back references, absent groups, \G and others).
Result<std::string> ToPcre2(std::string_view pattern);

}  // namespace baton
