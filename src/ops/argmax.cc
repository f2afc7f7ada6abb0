#include "ops/argmax.h"

#include <algorithm>
#include <cstddef>
#include <limits>

namespace baton {
namespace {

constexpr size_t kBlock = 256, kLanes = 16;  // what the loops are written in for the compiler

}  // namespace

int32_t Largest(std::span<const float> x) {
  float largest = -std::numeric_limits<float>::infinity();
  size_t block = 0;
  for (size_t begin = 0; begin < x.size(); begin += kBlock) {
    const size_t end = std::min(begin + kBlock, x.size());
    float lanes[kLanes];
    std::fill_n(lanes, kLanes, -std::numeric_limits<float>::infinity());
    size_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      for (size_t l = 0; l < kLanes; ++l) lanes[l] = x[i + l] > lanes[l] ? x[i + l] : lanes[l];
    }
    for (; i < end; ++i) lanes[0] = x[i] > lanes[0] ? x[i] : lanes[0];
    const float here = *std::max_element(lanes, lanes + kLanes);
    if (here > largest) largest = here, block = begin;
  }
  for (size_t i = block; i < x.size(); ++i) {
    if (x[i] == largest) return static_cast<int32_t>(i);
  }
  return 0;
}

}  // namespace baton
