// The operations a forward pass is made of: one params struct each, one interface, one slow
// reference (reference.h) and one fast backend per device. Checks, timing and byte counts live
// here, above the backends.
//
// Letters: T rows of the batch, N visible keys, C model width, Hq/Hkv heads, R = Hq/Hkv, D head
// size, K selected tokens. Results never depend on the number of threads, nor on which other rows
// or segments share a call.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "base/thread_pool.h"
#include "base/view.h"
#include "baton/error.h"
#include "baton/plan.h"
#include "kv/page.h"
#include "ops/trace.h"

namespace baton {

// A weight matrix in the layout a backend wants. Made by Ops::Pack, used only with the Ops that
// made it.
class Matrix {
 public:
  virtual ~Matrix() = default;
  int64_t rows = 0, cols = 0;  // [out, in]
  int64_t bytes = 0;           // what one use of the whole matrix reads
};

// A weight matrix as a file holds it.
struct RawMatrix {
  DType dtype = DType::kF32;
  const std::byte* data = nullptr;
  int64_t rows = 0, cols = 0;
};

// y = (norm(x)) W^T (+ bias) for several matrices that share x; norm(x) = x / rms(x) * norm_weight.
struct LinearParams {
  View<const float> x;                 // [T, in]
  const float* norm_weight = nullptr;  // [in]; null: no norm
  float norm_eps = 0;
  struct Out {
    const Matrix* w = nullptr;    // [out, in]
    const float* bias = nullptr;  // [out] or null
    View<float> y;                // [T, out]
  };
  std::span<const Out> outs;
  bool accumulate = false;  // y += instead of y =
  // What the next product multiplies with (all its outs, or gate): a hint, its first weights may be
  // fetched while threads wait for each other.
  std::span<const Matrix* const> then;
  // A backend that quantises x keeps 16 bits of it instead of 8. Decode asks for it: its products
  // wait for the weights, and its distributions are what plans are judged by.
  bool fine = false;
};

enum class GluActivation { kSilu, kGeluTanh };

// y = act(norm(x) gate^T) * (norm(x) up^T)
struct GluParams {
  View<const float> x;  // [T, in]
  const float* norm_weight = nullptr;
  float norm_eps = 0;
  const Matrix* gate = nullptr;  // [out, in]
  const Matrix* up = nullptr;    // [out, in]
  GluActivation activation = GluActivation::kSilu;
  View<float> y;                        // [T, out]
  std::span<const Matrix* const> then;  // see LinearParams
  bool fine = false;                    // see LinearParams
};

// y (+)= x / rms(x) * weight, row by row.
struct NormParams {
  View<const float> x;  // [T, C]
  const float* weight = nullptr;
  float eps = 0;
  View<float> y;  // [T, C]; may be x when not accumulating
  bool accumulate = false;
};

// Rows of one sequence in a batch: `rows` consecutive positions from `position` on, at row `first`
// of the batch tensors.
struct Rows {
  int64_t first = 0;
  int64_t count = 0;
  int64_t position = 0;
};

// Per head: optional RMS norm, rotation; then K and V are written to the cache (and the 4-bit copy
// of K, where the layout has one). q is changed in place.
struct StoreParams {
  View<float> q;                  // [T, Hq, D]
  View<float> k;                  // [T, Hkv, D]; changed in place
  View<const float> v;            // [T, Hkv, D]
  const float* q_norm = nullptr;  // [D] or null
  const float* k_norm = nullptr;
  float norm_eps = 0;
  View<const float> cos, sin;  // [T, D/2]
  bool interleaved = false;    // pairs (2i, 2i+1), else (i, i + D/2)
  struct Segment {
    Rows rows;
    KvView kv;  // length covers the rows
  };
  std::span<const Segment> segments;
};

// Lists of key positions, ascending: [sets][groups], each with room for `capacity`.
struct IndexSets {
  int64_t sets = 0, groups = 0, capacity = 0;
  std::vector<int32_t> positions;  // [sets, groups, capacity]
  std::vector<int32_t> counts;     // [sets, groups]
  void Reset(int64_t s, int64_t g, int64_t c) {
    sets = s, groups = g, capacity = c;
    positions.resize(static_cast<size_t>(s * g * c));
    counts.assign(static_cast<size_t>(s * g), 0);
  }
  int32_t* list(int64_t set, int64_t group) {
    return positions.data() + (set * groups + group) * capacity;
  }
  const int32_t* list(int64_t set, int64_t group) const {
    return positions.data() + (set * groups + group) * capacity;
  }
  int32_t& count(int64_t set, int64_t group) {
    return counts[static_cast<size_t>(set * groups + group)];
  }
  int32_t count(int64_t set, int64_t group) const {
    return counts[static_cast<size_t>(set * groups + group)];
  }
};

// Which of the keys at or before a query's position it attends to.
struct KeySet {
  enum class Kind { kAll, kWindow, kIndex } kind = Kind::kAll;
  int64_t sink = 0, recent = 0;  // kWindow: position < sink or position > query - recent
  const IndexSets* index =
      nullptr;  // kIndex: row t uses set t / rows_per_set; positions after the query are masked
  int64_t rows_per_set = 1;
  const int* head_map = nullptr;  // kIndex with groups > 1: KV head -> group; null = identity
};

// o = softmax(scale q K^T) V over each row's keys, and its log-sum-exp.
struct AttendParams {
  struct Segment {
    Rows rows;
    KvView kv;
    KeySet keys;
    float* scores = nullptr;   // optional, kAll only: scaled q.k, [rows, Hq, score_stride]
    int64_t score_stride = 0;  // >= position + count
  };
  View<const float> q;  // [T, Hq, D]
  float scale = 0;      // > 0
  std::span<const Segment> segments;
  View<float> o;    // [T, Hq, D]; zero where a row has no key
  View<float> lse;  // [T, Hq] natural log, or empty; -inf where a row has no key
};

// Which heads share a set: one per layer, per KV head, or per query head (profiling only).
enum class MassScope { kAll, kGroup, kHead };

// mass[s, g, n] = attention probability of key n, pooled over the query heads of scope g (sum or
// max) and summed over the rows of set s. Keys a row cannot see count as 0. The probabilities are
// the exact ones (from K and the given lse, or from stored scores) or those of the 4-bit copy of K
// (their own softmax). Segments share no row.
struct MassParams {
  enum class Source { kExact, kScores, kLowBit } source = Source::kExact;
  struct Segment {
    Rows rows;
    KvView kv;
    const float* scores = nullptr;  // kScores: as written by Attend
    int64_t score_stride = 0;
    int64_t rows_per_set = 1;
    float* mass = nullptr;    // [sets = ceil(rows / rows_per_set), groups, mass_stride]
    int64_t mass_stride = 0;  // >= position + count
  };
  View<const float> q;  // [T, Hq, D]
  float scale = 0;
  View<const float> lse;  // [T, Hq]: kExact and kScores
  MassScope scope = MassScope::kAll;
  Pool pool = Pool::kSum;
  std::span<const Segment> segments;
};

// The k heaviest keys of each set: the first `sink` and last `recent` visible keys first, then by
// mass; equal mass: the lower position. With block > 1, blocks of consecutive tokens are ranked by
// the sum of their mass and k / block blocks are taken (a block that holds a forced token is
// forced).
struct SelectParams {
  struct Segment {
    const float* mass = nullptr;  // [sets, groups, mass_stride]
    int64_t mass_stride = 0;
    int64_t sets = 0;
    std::span<const int64_t> visible;  // [sets] keys that the set may name: [0, visible)
    std::span<const int64_t> k;        // [sets] budget, counted in tokens
    std::span<const int64_t> recent;   // [sets] forced recent keys
    IndexSets* out =
        nullptr;  // reset by the caller to [sets, groups, >= max k rounded up to blocks]
  };
  int64_t groups = 1;
  int64_t sink = 0;
  int64_t block = 1;
  std::span<const Segment> segments;
};

class Ops {
 public:
  virtual ~Ops() = default;
  virtual std::string name() const = 0;  // "ref", "cpu (avx512)", ...

  // Copies a weight matrix into this backend's layout, on huge pages.
  virtual Result<std::unique_ptr<Matrix>> Pack(const RawMatrix& raw) = 0;

  void Linear(const LinearParams& p);
  void Glu(const GluParams& p);
  void Norm(const NormParams& p);
  void Store(const StoreParams& p);
  void Attend(const AttendParams& p);
  void Mass(const MassParams& p);
  // An error if a mass is NaN; it names the position.
  Status Select(const SelectParams& p);

  Trace& trace() { return trace_; }
  ThreadPool& threads() { return threads_; }

 protected:
  explicit Ops(ThreadPool& threads) : threads_(threads) {}
  virtual void DoLinear(const LinearParams& p) = 0;
  virtual void DoGlu(const GluParams& p) = 0;
  virtual void DoNorm(const NormParams& p) = 0;
  virtual void DoStore(const StoreParams& p) = 0;
  virtual void DoAttend(const AttendParams& p) = 0;
  virtual void DoMass(const MassParams& p) = 0;
  virtual Status DoSelect(const SelectParams& p) = 0;

  ThreadPool& threads_;
  Trace trace_;
};

// The obvious implementation, single precision throughout, no SIMD: the oracle of every other
// backend.
std::unique_ptr<Ops> MakeReferenceOps(ThreadPool& threads);

}  // namespace baton
