// A fast checksum against damaged files. Not against forgery.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace baton {

// Continues from `seed`, so that pieces may be summed one after the other; the sum depends on how
// the bytes are divided.
inline uint64_t Checksum(std::span<const std::byte> bytes, uint64_t seed = 0) {
  constexpr uint64_t kPrime = 0x9e3779b185ebca87u;
  const auto mix = [](uint64_t h, uint64_t word) { return std::rotl(h ^ word, 29) * kPrime; };
  // Four lanes, since a multiplication takes longer than loading the next word.
  uint64_t lanes[4] = {seed + 1, seed + 2, seed + 3, seed + 4};
  const std::byte* at = bytes.data();
  size_t left = bytes.size();
  for (; left >= 32; at += 32, left -= 32) {
    uint64_t words[4];
    std::memcpy(words, at, 32);
    for (int i = 0; i < 4; ++i) lanes[i] = mix(lanes[i], words[i]);
  }
  uint64_t h = mix(seed, bytes.size());
  for (; left > 0; ++at, --left) h = mix(h, static_cast<uint64_t>(*at));
  for (const uint64_t lane : lanes) h = mix(h, lane);
  return h ^ (h >> 31);
}

}  // namespace baton
