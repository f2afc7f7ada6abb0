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
    const View<float> lse = Scratch(watch_lse_, {q.dim(0), shape_.heads});
    const Branch& model = shape_.plan[static_cast<size_t>(layer)].branches[0];
    AttendParams::Segment segment{
        .rows = p.rows, .kv = CacheOf(p, model.cache), .keys = Keys(layer, p, model.set)};
    ops_.Attend({.q = q,
                 .scale = scale_,
                 .segments = std::span(&segment, 1),
                 .o = Scratch(watch_o_, {q.dim(0), q.dim(1), q.dim(2)}),
                 .lse = lse});
    double captured = 0;
    for (int64_t t = p.rows.first; t < p.rows.first + p.rows.count; ++t) {
      for (int h = 0; h < shape_.heads; ++h) {
        captured +=
            std::exp(static_cast<double>(lse_[0][static_cast<size_t>(t * shape_.heads + h)]) -
                     lse.row(t)[h]);
      }
    }
    captured /= static_cast<double>(p.rows.count * shape_.heads);
    Watch::Layer& state = watch->layers[static_cast<size_t>(layer)];
    state.sampled = true;
    state.smallest = std::min(state.smallest, captured);
    if (captured < watch->threshold) state.promoted = true;
  }
}

}  // namespace baton
