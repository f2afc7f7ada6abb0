#include "base/processors.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>
#include <string_view>
#include <thread>
#include <vector>

namespace baton {
namespace {

constexpr double kNone = std::numeric_limits<double>::infinity();

std::vector<std::string> Split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, separator);) parts.push_back(part);
  return parts;
}

bool Lists(const std::string& comma_list, std::string_view word) {
  for (const std::string& part : Split(comma_list, ',')) {
    if (part == word) return true;
  }
  return false;
}

std::optional<double> ReadNumber(const std::string& path) {
  double value = 0;
  if (std::ifstream in(path); in >> value) return value;
  return std::nullopt;
}

// cpu.max is "QUOTA PERIOD" in microseconds; QUOTA may be "max".
double QuotaOfGroup2(const std::string& folder) {
  double quota = 0, period = 0;
  if (std::ifstream in(folder + "/cpu.max"); in >> quota >> period && quota > 0 && period > 0)
    return quota / period;
  return kNone;
}

double QuotaOfGroup1(const std::string& folder) {
  const auto quota = ReadNumber(folder + "/cpu.cfs_quota_us");  // -1: none
  const auto period = ReadNumber(folder + "/cpu.cfs_period_us");
  return quota && period && *quota > 0 && *period > 0 ? *quota / *period : kNone;
}

struct Mount {
  std::string root;  // the group that is mounted
  std::string at;
};

// Finds the hierarchy with the CPU controller: version 1 or version 2.
// Lines: id parent device root mount-point options [optional ...] - type source super-options.
std::optional<Mount> FindMount(const std::string& root, bool version1) {
  std::ifstream in(root + "/proc/self/mountinfo");
  for (std::string line; std::getline(in, line);) {
    const size_t dash = line.find(" - ");
    if (dash == std::string::npos) continue;
    const std::vector<std::string> head = Split(line.substr(0, dash), ' ');
    const std::vector<std::string> tail = Split(line.substr(dash + 3), ' ');
    if (head.size() < 5 || tail.size() < 3) continue;
    const bool fits =
        version1 ? tail[0] == "cgroup" && Lists(tail[2], "cpu") : tail[0] == "cgroup2";
    if (fits) return Mount{head[3], head[4]};
  }
  return std::nullopt;
}

// Lines: id:controllers:path; version 2 has no controllers.
std::string GroupOf(const std::string& root, bool version1) {
  std::ifstream in(root + "/proc/self/cgroup");
  for (std::string line; std::getline(in, line);) {
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (version1 ? Lists(controllers, "cpu") : controllers.empty()) return line.substr(second + 1);
  }
  return "/";
}

}  // namespace

double CpuQuota(const std::string& root) {
  double least = kNone;
  for (const bool version1 : {true, false}) {
    const std::optional<Mount> mount = FindMount(root, version1);
    if (!mount) continue;
    // In a container the path may be the host's; the mount then shows only the end of it.
    std::string group = GroupOf(root, version1);
    if (mount->root != "/" && group.starts_with(mount->root)) group.erase(0, mount->root.size());
    while (group.ends_with('/')) group.pop_back();
    for (;;) {
      const std::string folder = root + mount->at + group;
      least = std::min(least, version1 ? QuotaOfGroup1(folder) : QuotaOfGroup2(folder));
      if (group.empty()) break;
      group.erase(group.find_last_of('/') == std::string::npos ? 0 : group.find_last_of('/'));
    }
  }
  return least;
}

int UsableProcessors() {
  int processors = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) processors = std::max(1, CPU_COUNT(&set));
  const double quota = std::floor(CpuQuota());
  return quota < processors ? std::max(1, static_cast<int>(quota)) : processors;
}

}  // namespace baton
