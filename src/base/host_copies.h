// A device whose memory the host reaches: its copies are the host's own, done when they return.
#pragma once

#include <cstring>

#include "base/device.h"

namespace baton {

class HostCopies : public Device {
 public:
  void Upload(std::byte* to, const void* from, int64_t bytes) override { Move(to, from, bytes); }
  void Download(void* to, const std::byte* from, int64_t bytes) override { Move(to, from, bytes); }
  void Copy(std::byte* to, const std::byte* from, int64_t bytes) override { Move(to, from, bytes); }
  void Zero(std::byte* at, int64_t bytes) override {
    std::memset(at, 0, static_cast<size_t>(bytes));
  }

 private:
  static void Move(void* to, const void* from, int64_t bytes) {
    if (bytes > 0) std::memmove(to, from, static_cast<size_t>(bytes));
  }
};

}  // namespace baton
