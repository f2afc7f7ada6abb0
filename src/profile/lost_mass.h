// Watches a dense run and sums, for every pair of layers, how much of layer j's attention mass
// layer i's top-k set misses.
#pragma once

#include <cstdint>
#include <vector>

#include "baton/profile.h"
#include "profile/calibration.h"

namespace baton {

class LostMass final : public CalibrationContext::Observer {
 public:
  LostMass(Ops& ops, const ProfileOptions& options, const ModelInfo& info, float scale,
           size_t kinds);

  // The text rows that follow are of this kind.
  void BeginContext(size_t kind) { kind_ = kind; }

  void BeginRows(bool answer, int64_t first, int64_t count) override;
  void OnLayer(const Tap& tap) override;

  // Sums divided by what they were summed over, into the profile's tables; those of text are means
  // over the kinds, whose own are in profile.kinds.
  Status Finish(Profile& profile) const;

 private:
  struct Table {  // [budget][L * L] and [budget][L]
    std::vector<std::vector<double>> lost, worst, scan;
    double rows = 0;
  };
  bool Eligible(int layer) const { return info_.window[static_cast<size_t>(layer)] == 0; }
  Status Rank(const Tap& tap, MassParams::Source source, std::vector<IndexSets>& sets);
  void Accumulate(Table& table, int i, int j, const std::vector<IndexSets>& sets,
                  std::vector<std::vector<double>>& lost, bool worst);
  void AddOverlap(int i, int j);

  Ops& ops_;
  const ProfileOptions& options_;
  const ModelInfo& info_;
  float scale_;
  int64_t groups_ = 1;
  bool answer_ = false;
  int64_t first_ = 0, count_ = 0;
  size_t kind_ = 0;
  std::vector<Table> text_;  // [kinds]
  Table answers_;
  // [layer][budget] of the current rows, on the host.
  std::vector<std::vector<IndexSets>> published_;
  Array<float> pooled_, mass_;  // on the device
  std::span<const float> head_mass_;
  std::vector<float> copy_;
  int64_t stride_ = 0;
  std::vector<double> overlap_, overlap_unforced_;
  double overlap_rows_ = 0;
  Status status_;
};

}  // namespace baton
