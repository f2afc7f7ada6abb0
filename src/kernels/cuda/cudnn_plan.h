// Causal attention over paged keys as an execution plan of cuDNN, by its C backend API. The library
// is opened at run time. A head size's first plan takes about a second, in which its kernel is
// compiled, each further one 0.1 s.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>

namespace baton::cuda {

class Cudnn {
 public:
  // Null where the library is not installed or too old, or this build knows nothing of it. Its work
  // goes to `stream`.
  static std::unique_ptr<Cudnn> Load(cudaStream_t stream);
  ~Cudnn();

  // The most rows and keys of a call, powers of two, and what it depends on else.
  struct Shape {
    int64_t rows = 0, keys = 0;
    int64_t heads = 0, kv_heads = 0, dim = 0;
    int64_t page_stride = 0, token_stride = 0, head_stride = 0;  // of K and V, in elements
    auto operator<=>(const Shape&) const = default;
  };
  // Row i of len_q attends to the first len_kv - len_q + i + 1 keys. All but `scale` is on the
  // device. Rows of q, o and lse past len_q must exist; what becomes of them is undefined.
  struct Plan;
  struct Call {
    const void* q;         // [rows, Hq, D] bf16
    const void *k, *v;     // of page 0, bf16
    const int32_t* pages;  // [keys / 64]: all are valid, also where len_kv is less
    const int32_t *len_q, *len_kv;
    float scale;
    int32_t unused;  // no padding: calls are compared
    void* o;         // [rows, Hq, D] bf16
    float* lse;      // [Hq, rows] natural log
    void* workspace;
    const Plan* plan;
  };
  // Made when first asked for, and kept; null where the library has no kernel for it.
  const Plan* PlanOf(const Shape& shape);
  static int64_t WorkspaceBytes(const Plan& plan);
  // Starts the work, which may be captured.
  void Run(const Call& call);

 private:
  struct State;
  explicit Cudnn(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace baton::cuda
