// How many processors this process may use.
#pragma once

#include <string>

namespace baton {

// The processors of its affinity mask, but no more than its CPU quota (cgroup v1 cpu.cfs_quota_us
// or v2 cpu.max, of its own group and those around it), rounded down. At least 1.
int UsableProcessors();

// The quota alone, in processors; infinity if there is none. `root` is where the file system begins
// ("" but in tests).
double CpuQuota(const std::string& root = "");

}  // namespace baton
