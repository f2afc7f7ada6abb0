// The k heaviest units of a set, exactly. One implementation (portable/, Highway) serves both
// instruction sets: Highway picks its own AVX-512 target where there is one, and nothing here needs
// more than compares, counts and compress.
#pragma once

#include <cstdint>
#include <vector>

namespace baton::cpu {

struct SelectScratch {
  std::vector<float> unit_mass;     // block mode: [units]
  std::vector<int32_t> keys;        // [units] masses as integers of the same order
  std::vector<int32_t> candidates;  // keys that may be the threshold
  std::vector<int32_t> units;       // the answer, with room for one vector past it
};

namespace portable {

// Chooses `take` of `mass[0, n)`: units below forced_low and from forced_high on first (in
// ascending order when they are more than `take`), then the heaviest, the lower position on equal
// mass; -0.0 equals +0.0. Writes them in ascending order to scratch.units and returns how many
// there are, min(take, n), or -1 if a mass is NaN.
int64_t SelectTop(const float* mass, int64_t n, int64_t take, int64_t forced_low,
                  int64_t forced_high, SelectScratch& scratch);

}  // namespace portable
}  // namespace baton::cpu
