// How many processors this process may use.
#pragma once

#include <string>

namespace baton {

// The number of processors in its affinity mask, limited to its CPU quota (cgroup v1
// cpu.cfs_quota_us or v2 cpu.max, the smallest of its own group and the enclosing ones), rounded
// down. At least 1.
int UsableProcessors();

// The quota alone, in processors; infinity if there is none. `root` is where the file system begins
// ("" except in tests).
double CpuQuota(const std::string& root = "");

}  // namespace baton
