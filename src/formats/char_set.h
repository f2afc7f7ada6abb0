// Sets of Unicode code points, for classes that PCRE2 cannot express: intersections and nested
// ones.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "baton/error.h"

namespace baton {

class CharSet {
 public:
  using Range = std::pair<char32_t, char32_t>;  // both ends are in

  // The code points that the inside of a PCRE2 class ("\p{Lu}a-z") matches. Unsupported: PCRE2 does
  // not know a name in it.
  static Result<CharSet> OfClass(std::string_view pcre2_class, bool caseless);

  // Whether PCRE2 accepts this text inside a class.
  static bool IsKnown(std::string_view pcre2_class);

  // The ranges ascend and do not touch.
  const std::vector<Range>& ranges() const { return ranges_; }
  CharSet Inverted() const;
  static CharSet Intersection(const CharSet& a, const CharSet& b);
  static CharSet Union(const CharSet& a, const CharSet& b);

  // "[\x{61}-\x{7a}]"; "(?!)" where the set is empty.
  std::string ToPcre2() const;

 private:
  std::vector<Range> ranges_;
};

}  // namespace baton
