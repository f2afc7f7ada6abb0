// Blocks of a prefix tree in a file:
//
//   magic, version, size and checksum of the header
//   header   key; the hash of the blocks before; how many those are; bytes of a page in each cache;
//            per block: 64 tokens, which caches' pages follow, a checksum of each
//   payload  from a multiple of 64 on: per block the pages of its caches, in ascending order
//
// Numbers are little-endian. A file is for the machine that wrote it or one like it: the key names
// all that decides what bytes a prompt leaves.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "baton/error.h"
#include "kv/page.h"

namespace baton {

struct PrefixFileBlock {
  std::array<int32_t, KvLayout::kSlots> tokens = {};
  std::vector<uint8_t> has;         // [caches] 0 or 1
  std::vector<uint64_t> checksums;  // [caches] of the page's bytes, then of its low-bit copy's
};

struct PrefixFileHeader {
  std::string key;
  std::string
      before;  // PrefixHash of the blocks before the first; at the start the hash of the key
  int64_t first_block = 0;
  std::vector<int64_t> page_bytes;  // [caches] with low-bit copies
  std::vector<PrefixFileBlock> blocks;

  int64_t PayloadBytes(size_t block) const;
  int64_t PayloadBytes() const;  // of all blocks
};

constexpr int64_t kPrefixFileStart = 32;  // bytes before the header

// What begins a file, up to the payload.
std::vector<std::byte> EncodePrefixFile(const PrefixFileHeader& header);
// Of the first kPrefixFileStart bytes: where the payload begins. Errors: Corrupt, Unsupported.
Result<int64_t> PrefixFilePayload(std::span<const std::byte> start);
// Of all bytes before the payload; every length is checked. Errors: Corrupt, Unsupported.
Result<PrefixFileHeader> ParsePrefixFile(std::span<const std::byte> bytes);

// The hash of a path: of the key alone, and one block further.
std::string PrefixHash(const std::string& key);
std::string PrefixHash(const std::string& before, std::span<const int32_t> tokens);

}  // namespace baton
