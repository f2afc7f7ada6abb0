// What a decode step pays for each role of each layer. Any unit will do (bytes of KV read, or
// measured microseconds) as long as one table uses one unit: the search only compares sums and
// shares.
#pragma once

#include <cstdint>
#include <vector>

#include "baton/error.h"
#include "plan/resolved.h"

namespace baton {

struct WindowOption {
  int64_t sink = 4, recent = 1020;
  bool operator==(const WindowOption&) const = default;
};

struct LayerCosts {
  std::vector<double>
      full;  // [layers] as the model defines the layer (its own window, if it has one)
  std::vector<double> select;  // [layers] full plus ranking; counted as at least `full`
  std::vector<std::vector<double>>
      scan;  // [budgets][layers] scoring the low-bit copy, ranking, own top k
  std::vector<std::vector<double>> reuse;   // [budgets][layers] gather and attend
  std::vector<std::vector<double>> window;  // [windows][layers]
};

// Bytes of K, V and low-bit copies that one layer reads in a decode step at `visible` keys, bf16
// cache. `publishes` is ignored: ranking reads nothing more than attention does, except a scan,
// which reads the low-bit copy instead.
int64_t RoleKvBytes(const ModelShape& model, int layer, const LayerRole& role, int64_t visible);

// The table of RoleKvBytes. Budgets in tokens, ascending.
LayerCosts ByteCosts(const ModelShape& model, const std::vector<int64_t>& budgets,
                     const std::vector<WindowOption>& windows, int64_t visible);

// Bytes of cache that one layer holds after a prompt of `tokens` tokens, bf16: all tokens, and the
// low-bit copy where it scans; a window its own, as plans that evict hold it.
int64_t RoleHeldBytes(const ModelShape& model, int layer, const LayerRole& role, int64_t tokens);
// Either of the two.
using RoleBytes = int64_t (*)(const ModelShape&, int layer, const LayerRole&, int64_t tokens);

// The table of RoleHeldBytes, as ByteCosts.
LayerCosts HeldCosts(const ModelShape& model, const std::vector<int64_t>& budgets,
                     const std::vector<WindowOption>& windows, int64_t tokens);

// Every table has the stated size, and every cost is finite and not negative.
Status CheckCosts(const LayerCosts& costs, int layers, int budgets, int windows);

}  // namespace baton
