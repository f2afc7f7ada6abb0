// What the server counts, written as Prometheus reads it: own names, and those of vLLM that routers
// look at.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "baton/engine.h"

namespace baton::server {

class Histogram {
 public:
  void Add(double seconds);
  void Write(std::string_view name, std::string_view labels, std::string& out) const;

 private:
  static constexpr std::array kBounds = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,  0.25,
                                         0.5,   1.0,    2.5,   5.0,  10.0,  30.0, 60.0, 300.0};
  std::array<int64_t, kBounds.size() + 1> counts_{};
  double sum_ = 0;
};

struct Metrics {
  std::map<int, int64_t> replies;                        // by HTTP status; 200 as a stream begins
  std::map<std::string, int64_t, std::less<>> finished;  // answers by "stop", "length", "abort"
  int64_t connections_opened = 0, connections_refused = 0;
  int64_t slow_readers = 0;  // streams that were ended because nobody read them
  int64_t disconnects = 0;   // clients that left before their answer ended
  int64_t prompt_tokens = 0, generated_tokens = 0;
  int64_t streamed_tokens = 0;                       // the same, counted as they come
  double kv_bytes_read = 0, kv_bytes_dense = 0;      // by decode steps; what dense steps would read
  int64_t promotions = 0;                            // layers that a watch made full
  int64_t routed_sparse = 0, routed_full = 0;        // layers that a router decided
  Histogram first_token, inter_token, whole_answer;  // seconds

  // By plan ("": routed), of the latest answer that was watched, or routed.
  struct PlanSeen {
    std::vector<LayerWatch> watched;
    std::string routed;  // [layers] F full, S sparse
  };
  std::map<std::string, PlanSeen, std::less<>> plans;

  // `plan`: the one that it ran under.
  void CountAnswer(const Generation& g, const std::string& plan);
};

struct Gauges {
  int64_t connections = 0, running = 0, waiting = 0;
  CacheUse cache;
  PrefixCacheUse prefix;
};

std::string WriteMetrics(const Metrics& metrics, const Gauges& gauges, const std::string& model);

}  // namespace baton::server
