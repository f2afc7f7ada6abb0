// The share of attention mass that a borrowed set captures, sampled while a request runs.
#include <algorithm>
#include <cmath>

#include "attention/part.h"

namespace baton {

void Attention::SampleWatch(int layer, const View<float>& q) {
  for (const Part& p : parts_) {
    Watch* watch = p.segment->watch;
    if (!p.planned || p.segment->prompt || !watch || watch->interval == 0 ||
        watch->steps % watch->interval != 0)
      continue;
    if (p.layer(layer).role != Role::kReuse) continue;
    const View<float> lse = Shaped(watch_lse_, {q.dim(0), shape_.heads});
    const Branch& model = shape_.plan[static_cast<size_t>(layer)].branches[0];
    AttendParams::Segment segment{
        .rows = p.rows, .kv = CacheOf(p, model.cache), .keys = Keys(layer, p, model.set)};
    ops_.Attend({.q = q,
                 .scale = scale_,
                 .segments = std::span(&segment, 1),
                 .o = Shaped(watch_o_, {q.dim(0), q.dim(1), q.dim(2)}),
                 .lse = lse});
    const int64_t count = p.rows.count * shape_.heads, first = p.rows.first * shape_.heads;
    std::vector<float> set(static_cast<size_t>(count)), all(set.size());
    lse_[0].Download(set, first);
    watch_lse_.Download(all, first);
    double captured = 0;
    for (size_t i = 0; i < set.size(); ++i)
      captured += std::exp(static_cast<double>(set[i]) - all[i]);
    captured /= static_cast<double>(count);
    Watch::Layer& state = watch->layers[static_cast<size_t>(layer)];
    state.sampled = true;
    state.smallest = std::min(state.smallest, captured);
    if (captured < watch->threshold) state.promoted = true;
  }
}

}  // namespace baton
