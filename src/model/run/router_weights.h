// A router file's layers in a device's memory.
#pragma once

#include <vector>

#include "base/buffer.h"
#include "model/spec/router.h"
#include "ops/params.h"

namespace baton {

struct Router {
  RouterSettings settings;
  std::vector<RouterWeights> layers;  // [layers], into `storage`
  std::vector<Array<float>> storage;

  static Router Load(const RouterFile& file, Device& device);
};

}  // namespace baton
