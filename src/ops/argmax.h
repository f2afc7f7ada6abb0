#pragma once

#include <cstdint>
#include <span>

namespace baton {

// The first of the largest; of what are not numbers only if there is nothing else.
int32_t Largest(std::span<const float> x);

}  // namespace baton
