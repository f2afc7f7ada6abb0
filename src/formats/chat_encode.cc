#include <algorithm>
#include <string_view>

#include "formats/chat.h"

namespace baton {

std::vector<int32_t> EncodeChat(const Tokenizer& tokenizer, const ChatText& chat, bool bos) {
  const std::string_view text = chat.text;
  std::vector<int32_t> tokens;
  size_t done = 0;
  const auto encode = [&](size_t end, bool special) {
    const std::vector<int32_t> more =
        tokenizer.Encode(text.substr(done, end - done), {.bos = bos, .special = special});
    tokens.insert(tokens.end(), more.begin(), more.end());
    done = end, bos = false;
  };
  // A token may cross the edge of a range, so the text is cut only where necessary.
  for (const TextRange& range : chat.plain) {
    const std::string_view plain = text.substr(range.begin, range.end - range.begin);
    const auto parsed = tokenizer.Encode(plain, {.bos = false, .special = true});
    const auto is_control = [&](int32_t id) {
      return tokenizer.IsControl(id) && id != tokenizer.unknown();
    };
    if (std::ranges::none_of(parsed, is_control)) continue;
    if (range.begin > 0 || bos) encode(range.begin, /*special=*/true);
    encode(range.end, /*special=*/false);
  }
  encode(text.size(), /*special=*/true);
  return tokens;
}

}  // namespace baton
