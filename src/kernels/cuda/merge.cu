// Merge: the branches of a layer with sinks and gates.
#include "kernels/cuda/attention_kernels.h"

namespace baton::cuda {
namespace {

constexpr int kThreads = 128;

struct Part {
  const float* o = nullptr;
  const float* lse = nullptr;
  const float* sink = nullptr;
  const float* gate = nullptr;
  int64_t o_row = 0, o_head = 0, lse_row = 0, gate_row = 0;  // strides
  int64_t gate_per_channel = 0;                              // 0: one logit a head
};

struct MergeCall {
  Part parts[MergeParams::kMaxParts];
  float* out = nullptr;
  int64_t out_row = 0, out_head = 0;
  int32_t heads = 0, dim = 0, count = 0, gated_sum = 0;
};

__device__ float Sigmoid(float x) { return 1 / (1 + expf(-x)); }

// The weight of part `i`, before its gate: 0 where it attended to nothing.
__device__ float Share(const MergeCall& call, int i, int64_t t, int head) {
  const Part& part = call.parts[i];
  const float lse = part.lse[t * part.lse_row + head];
  if (lse == -INFINITY) return 0;
  double total = 0;  // the softmax's denominator, divided by e^lse
  for (int j = 0; j < call.count; ++j) {
    const Part& other = call.parts[j];
    if (call.gated_sum && j != i) continue;
    total += exp(static_cast<double>(other.lse[t * other.lse_row + head]) - lse);
    if (other.sink) total += exp(static_cast<double>(other.sink[head]) - lse);
  }
  return static_cast<float>(1 / total);
}

// One block per row and head. `out` may be the o of a part: a channel is read and written by one
// thread.
__global__ void __launch_bounds__(kThreads) MergeKernel(const __grid_constant__ MergeCall call) {
  __shared__ float shares[MergeParams::kMaxParts];
  const int head = blockIdx.x;
  const int64_t t = blockIdx.y;
  if (threadIdx.x < call.count) shares[threadIdx.x] = Share(call, threadIdx.x, t, head);
  __syncthreads();
  for (int d = threadIdx.x; d < call.dim; d += kThreads) {
    float sum = 0;
    for (int i = 0; i < call.count; ++i) {
      if (shares[i] == 0) continue;
      const Part& part = call.parts[i];
      float x = shares[i] * part.o[t * part.o_row + head * part.o_head + d];
      if (call.gated_sum && part.gate) {
        x *= Sigmoid(part.gate[t * part.gate_row +
                               (part.gate_per_channel ? int64_t{head} * call.dim + d : head)]);
      }
      sum += x;
    }
    const Part& first = call.parts[0];
    if (!call.gated_sum && first.gate) {
      sum *= Sigmoid(first.gate[t * first.gate_row +
                                (first.gate_per_channel ? int64_t{head} * call.dim + d : head)]);
    }
    call.out[t * call.out_row + head * call.out_head + d] = sum;
  }
}

}  // namespace

void Merge(Recorder& recorder, Scratch&, const MergeParams& p) {
  MergeCall call{.out = p.out.data(),
                 .out_row = p.out.stride(0),
                 .out_head = p.out.stride(1),
                 .heads = static_cast<int32_t>(p.out.dim(1)),
                 .dim = static_cast<int32_t>(p.out.dim(2)),
                 .count = static_cast<int32_t>(p.parts.size()),
                 .gated_sum = p.gated_sum};
  for (size_t i = 0; i < p.parts.size(); ++i) {
    const MergeParams::Part& part = p.parts[i];
    Part& to = call.parts[i];
    to = {.o = part.o.data(),
          .lse = part.lse.data(),
          .sink = part.sink_logit,
          .o_row = part.o.stride(0),
          .o_head = part.o.stride(1),
          .lse_row = part.lse.stride(0)};
    if (part.gate.empty()) continue;
    to.gate = part.gate.data(), to.gate_row = part.gate.stride(0);
    to.gate_per_channel = part.gate.dim(1) != p.out.dim(1);
  }
  constexpr int64_t kMostRows = 65535;  // of a grid
  for (int64_t row = 0; row < p.out.dim(0); row += kMostRows) {
    MergeCall rows = call;
    rows.out += row * call.out_row;
    for (Part& part : rows.parts) {
      if (!part.o) continue;
      part.o += row * part.o_row, part.lse += row * part.lse_row;
      if (part.gate) part.gate += row * part.gate_row;
    }
    const int64_t count = std::min(kMostRows, p.out.dim(0) - row);
    recorder.Launch(MergeKernel,
                    dim3(static_cast<unsigned>(call.heads), static_cast<unsigned>(count)),
                    dim3(kThreads), 0, rows);
  }
}

}  // namespace baton::cuda
