// The k heaviest units of a set, exactly, in steps that several threads can share: a bound from a
// sample, the keys at or above it with their positions, the heaviest of those. One implementation
// (portable/, Highway) serves all instruction sets: Highway selects its own AVX-512 target where
// there is one, and the code needs only compares, counts and compress.
//
// A key is a mass as an integer of the same order, -0.0 as +0.0.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

namespace baton::cpu {

inline constexpr int32_t kEveryKey = std::numeric_limits<int32_t>::min();
inline constexpr int32_t kNoKey = std::numeric_limits<int32_t>::max();  // only a NaN reaches it
inline constexpr int64_t kSample = 512;
inline constexpr int64_t kKeysAtOnce = 16;  // outputs need room for this many past their end

struct Masses {
  const float* mass = nullptr;  // [n]
  int64_t n = 0;
  int64_t first = 0;  // position of mass[0]
};
struct Candidates {
  const int32_t* keys = nullptr;       // [n]
  const int32_t* positions = nullptr;  // [n], ascending
  int64_t n = 0;
};

namespace portable {

// A bound that very likely at least `need` of n keys reach, from kSample of their masses taken at
// even steps; kEveryKey where the sample gives none.
int32_t LikelyBound(const float* sample, int64_t need, int64_t n, std::vector<int32_t>& scratch);

// Writes the keys at or above `bound` and their positions, ascending, and returns how many there
// are; -1 if a mass is NaN.
int64_t KeysAbove(const Masses& m, int32_t bound, int32_t* keys, int32_t* positions);

// Writes the positions of the `need` largest keys, ascending, the lower position on equal keys; all
// of them where there are fewer. Returns how many.
int64_t TakeLargest(const Candidates& c, int64_t need, int32_t* out, std::vector<int32_t>& scratch);

}  // namespace portable
}  // namespace baton::cpu
