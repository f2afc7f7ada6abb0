#include "kernels/cuda/cudnn_plan.h"

#if __has_include(<cudnn_version.h>)
#include <cudnn_version.h>
#endif
// Earlier headers lack paged attention.
#if defined(CUDNN_VERSION) && CUDNN_VERSION >= 91000
#include <cudnn.h>
#include <fmt/format.h>

#include <array>
#include <cmath>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "kernels/cuda/open_library.h"
#include "kv/page.h"

namespace baton::cuda {
namespace {

// From this version on masked scores may be -inf, and padded paged attention knows diagonals that
// end at the last key.
constexpr size_t kLeastVersion = 91000;
constexpr int64_t kAlignment = 16;  // bytes, of every tensor
// More than an arena has: the page table alone says which ones are read.
constexpr int64_t kMostPages = int64_t{1} << 22;

// The functions of the library that are used.
struct Functions {
  decltype(&cudnnGetVersion) version;
  decltype(&cudnnCreate) create;
  decltype(&cudnnDestroy) destroy;
  decltype(&cudnnSetStream) set_stream;
  decltype(&cudnnGetLastErrorString) last_error;
  decltype(&cudnnBackendCreateDescriptor) new_descriptor;
  decltype(&cudnnBackendDestroyDescriptor) delete_descriptor;
  decltype(&cudnnBackendSetAttribute) set;
  decltype(&cudnnBackendGetAttribute) get;
  decltype(&cudnnBackendFinalize) finalize;
  decltype(&cudnnBackendExecute) execute;

  bool Find(void* library) {
    const auto find = [&](auto& function, const char* name) {
      return FindFunction(library, name, function);
    };
    return find(version, "cudnnGetVersion") && find(create, "cudnnCreate") &&
           find(destroy, "cudnnDestroy") && find(set_stream, "cudnnSetStream") &&
           find(last_error, "cudnnGetLastErrorString") &&
           find(new_descriptor, "cudnnBackendCreateDescriptor") &&
           find(delete_descriptor, "cudnnBackendDestroyDescriptor") &&
           find(set, "cudnnBackendSetAttribute") && find(get, "cudnnBackendGetAttribute") &&
           find(finalize, "cudnnBackendFinalize") && find(execute, "cudnnBackendExecute");
  }
};

using Descriptor = cudnnBackendDescriptor_t;

template <typename T>
constexpr cudnnBackendAttributeType_t kTypeOf = CUDNN_TYPE_BACKEND_DESCRIPTOR;
template <>
constexpr cudnnBackendAttributeType_t kTypeOf<bool> = CUDNN_TYPE_BOOLEAN;
template <>
constexpr cudnnBackendAttributeType_t kTypeOf<int64_t> = CUDNN_TYPE_INT64;
template <>
constexpr cudnnBackendAttributeType_t kTypeOf<double> = CUDNN_TYPE_DOUBLE;
template <>
constexpr cudnnBackendAttributeType_t kTypeOf<cudnnHandle_t> = CUDNN_TYPE_HANDLE;
template <>
constexpr cudnnBackendAttributeType_t kTypeOf<cudnnDataType_t> = CUDNN_TYPE_DATA_TYPE;
template <>
constexpr cudnnBackendAttributeType_t kTypeOf<cudnnBackendHeurMode_t> = CUDNN_TYPE_HEUR_MODE;
template <>
constexpr cudnnBackendAttributeType_t kTypeOf<cudnnPointwiseMode_t> = CUDNN_TYPE_POINTWISE_MODE;
template <>
constexpr cudnnBackendAttributeType_t kTypeOf<cudnnReduceTensorOp_t> =
    CUDNN_TYPE_REDUCTION_OPERATOR_TYPE;

// Descriptors that live as long as this. After a failure, kept in status(), the others are null.
class Descriptors {
 public:
  explicit Descriptors(const Functions& f) : f_(f) {}
  ~Descriptors() {
    for (Descriptor d : owned_) f_.delete_descriptor(d);
  }
  Descriptors(const Descriptors&) = delete;

  cudnnStatus_t status() const { return status_; }
  void Note(cudnnStatus_t status) {
    if (status_ == CUDNN_STATUS_SUCCESS) status_ = status;
  }

  Descriptor New(cudnnBackendDescriptorType_t type) {
    Descriptor d = nullptr;
    if (status_ == CUDNN_STATUS_SUCCESS) Note(f_.new_descriptor(type, &d));
    if (d) owned_.push_back(d);
    return d;
  }
  // A null descriptor is no attribute.
  template <typename T>
  void Set(Descriptor d, cudnnBackendAttributeName_t name, const T& value) {
    if constexpr (std::is_same_v<T, Descriptor>) {
      if (value == nullptr) return;
    }
    SetAll(d, name, &value, 1);
  }
  template <typename T>
  void SetAll(Descriptor d, cudnnBackendAttributeName_t name, const T* values, size_t n) {
    if (status_ == CUDNN_STATUS_SUCCESS)
      Note(f_.set(d, name, kTypeOf<T>, static_cast<int64_t>(n), values));
  }
  Descriptor Finish(Descriptor d) {
    if (status_ == CUDNN_STATUS_SUCCESS) Note(f_.finalize(d));
    return d;
  }
  // It outlives this.
  void Release(Descriptor d) { std::erase(owned_, d); }

 protected:
  const Functions& f_;

 private:
  std::vector<Descriptor> owned_;
  cudnnStatus_t status_ = CUDNN_STATUS_SUCCESS;
};

// Tensors of a call; others are numbered from kVirtual on and exist within the kernel only.
enum Tensor : int64_t {
  kQ = 1,
  kK,
  kV,
  kO,
  kLse,
  kPagesK,
  kPagesV,
  kLenQ,
  kLenKv,
  kScale,
  kMasked
};
constexpr int64_t kVirtual = 100;

using Dims = std::array<int64_t, 4>;

// softmax(scale q K^T) V as the operations that the library knows as attention.
class AttentionGraph : public Descriptors {
 public:
  AttentionGraph(const Functions& f, const Cudnn::Shape& shape) : Descriptors(f), s_(shape) {
    Build();
  }
  const std::vector<Descriptor>& operations() const { return operations_; }

 private:
  static constexpr auto kF32 = CUDNN_DATA_FLOAT;
  static constexpr auto kBf16 = CUDNN_DATA_BFLOAT16;
  static constexpr auto kI32 = CUDNN_DATA_INT32;
  static constexpr auto kBool = CUDNN_DATA_BOOLEAN;

  Descriptor NewTensor(int64_t id, cudnnDataType_t type, const Dims& dims, const Dims& strides) {
    const Descriptor d = New(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    Set(d, CUDNN_ATTR_TENSOR_UNIQUE_ID, id);
    Set(d, CUDNN_ATTR_TENSOR_DATA_TYPE, type);
    SetAll(d, CUDNN_ATTR_TENSOR_DIMENSIONS, dims.data(), dims.size());
    SetAll(d, CUDNN_ATTR_TENSOR_STRIDES, strides.data(), strides.size());
    Set(d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, kAlignment);
    if (id >= kVirtual) Set(d, CUDNN_ATTR_TENSOR_IS_VIRTUAL, true);
    if (id == kScale || id == kMasked) Set(d, CUDNN_ATTR_TENSOR_IS_BY_VALUE, true);
    return Finish(d);
  }
  static Dims Packed(const Dims& d) { return {d[1] * d[2] * d[3], d[2] * d[3], d[3], 1}; }
  Descriptor NewPacked(int64_t id, cudnnDataType_t type, const Dims& dims) {
    return NewTensor(id, type, dims, Packed(dims));
  }
  Descriptor Scores(cudnnDataType_t type) {
    return NewPacked(next_++, type, {1, s_.heads, s_.rows, s_.keys});
  }
  Descriptor PerRow(int64_t id) { return NewPacked(id, kF32, {1, s_.heads, s_.rows, 1}); }

  // Returns y.
  Descriptor Pointwise(cudnnPointwiseMode_t mode, cudnnDataType_t precision, Descriptor x,
                       Descriptor b, Descriptor y, Descriptor choice = nullptr, int64_t axis = -1) {
    const Descriptor how = New(CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    Set(how, CUDNN_ATTR_POINTWISE_MODE, mode);
    Set(how, CUDNN_ATTR_POINTWISE_MATH_PREC, precision);
    if (axis >= 0) Set(how, CUDNN_ATTR_POINTWISE_AXIS, axis);
    Finish(how);
    const Descriptor op = New(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    Set(op, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how);
    Set(op, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x);
    Set(op, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b);
    Set(op, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, choice);
    Set(op, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
    operations_.push_back(Finish(op));
    return y;
  }
  Descriptor Reduce(cudnnReduceTensorOp_t mode, Descriptor x) {
    const Descriptor how = New(CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
    Set(how, CUDNN_ATTR_REDUCTION_OPERATOR, mode);
    Set(how, CUDNN_ATTR_REDUCTION_COMP_TYPE, kF32);
    Finish(how);
    const Descriptor op = New(CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR), y = PerRow(next_++);
    Set(op, CUDNN_ATTR_OPERATION_REDUCTION_DESC, how);
    Set(op, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x);
    Set(op, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y);
    operations_.push_back(Finish(op));
    return y;
  }
  // c = a b, of which the lengths of the call are in use: rows of a, columns of b, or what is
  // summed over.
  void Multiply(Descriptor a, Descriptor b, Descriptor c, Descriptor columns, Descriptor summed) {
    const Descriptor how = New(CUDNN_BACKEND_MATMUL_DESCRIPTOR);
    Set(how, CUDNN_ATTR_MATMUL_COMP_TYPE, kF32);
    if (columns) Set(how, CUDNN_ATTR_MATMUL_PADDING_VALUE, 0.0);
    Finish(how);
    const Descriptor op = New(CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
    Set(op, CUDNN_ATTR_OPERATION_MATMUL_DESC, how);
    Set(op, CUDNN_ATTR_OPERATION_MATMUL_ADESC, a);
    Set(op, CUDNN_ATTR_OPERATION_MATMUL_BDESC, b);
    Set(op, CUDNN_ATTR_OPERATION_MATMUL_CDESC, c);
    Set(op, CUDNN_ATTR_OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC, len_q_);
    Set(op, CUDNN_ATTR_OPERATION_MATMUL_GEMM_N_OVERRIDE_DESC, columns);
    Set(op, CUDNN_ATTR_OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC, summed);
    operations_.push_back(Finish(op));
  }
  // K, transposed, or V of the sequence.
  Descriptor Paged(int64_t id, int64_t pages_id) {
    constexpr int64_t kSlots = KvLayout::kSlots;
    const Descriptor arena = NewTensor(id, kBf16, {kMostPages, s_.kv_heads, kSlots, s_.dim},
                                       {s_.page_stride, s_.head_stride, s_.token_stride, 1});
    const Descriptor pages = NewPacked(pages_id, kI32, {1, 1, s_.keys / kSlots, 1});
    const Dims v = {1, s_.kv_heads, s_.keys, s_.dim}, packed = Packed(v);
    const Descriptor y = id == kK ? NewTensor(next_++, kBf16, {v[0], v[1], v[3], v[2]},
                                              {packed[0], packed[1], packed[3], packed[2]})
                                  : NewPacked(next_++, kBf16, v);
    const Descriptor op = New(CUDNN_BACKEND_OPERATION_PAGED_CACHE_LOAD_DESCRIPTOR);
    Set(op, CUDNN_ATTR_OPERATION_PAGED_CACHE_LOAD_CONTAINER_DESC, arena);
    Set(op, CUDNN_ATTR_OPERATION_PAGED_CACHE_LOAD_PAGE_TABLE_DESC, pages);
    Set(op, CUDNN_ATTR_OPERATION_PAGED_CACHE_LOAD_SEQUENCE_DESC, len_kv_);
    Set(op, CUDNN_ATTR_OPERATION_PAGED_CACHE_LOAD_YDESC, y);
    operations_.push_back(Finish(op));
    return y;
  }
  Descriptor Index(Descriptor x, int64_t axis) {
    return Pointwise(CUDNN_POINTWISE_GEN_INDEX, kI32, x, nullptr, Scores(kI32), nullptr, axis);
  }
  Descriptor Masked(Descriptor x, Descriptor seen) {
    return Pointwise(CUDNN_POINTWISE_BINARY_SELECT, kF32, x, masked_, Scores(kF32), seen);
  }

  // The library recognises these operations in this order.
  void Build() {
    const Dims of_rows = {1, s_.heads, s_.rows, s_.dim};
    const Dims by_row = {s_.rows * s_.heads * s_.dim, s_.dim, s_.heads * s_.dim, 1};
    const Descriptor q = NewTensor(kQ, kBf16, of_rows, by_row);
    const Descriptor o = NewTensor(kO, kBf16, of_rows, by_row);
    len_q_ = NewPacked(kLenQ, kI32, {1, 1, 1, 1});
    len_kv_ = NewPacked(kLenKv, kI32, {1, 1, 1, 1});
    masked_ = NewPacked(kMasked, kF32, {1, 1, 1, 1});
    const Descriptor scale = NewPacked(kScale, kF32, {1, 1, 1, 1});

    const Descriptor k = Paged(kK, kPagesK), products = Scores(kF32);
    Multiply(q, k, products, len_kv_, nullptr);
    Descriptor x = Pointwise(CUDNN_POINTWISE_MUL, kF32, products, scale, Scores(kF32));

    const Descriptor row = Index(x, 2), key = Index(x, 3);
    const Descriptor is_row = Pointwise(CUDNN_POINTWISE_CMP_LT, kBool, row, len_q_, Scores(kBool));
    const Descriptor is_key = Pointwise(CUDNN_POINTWISE_CMP_LT, kBool, key, len_kv_, Scores(kBool));
    x = Masked(x, Pointwise(CUDNN_POINTWISE_LOGICAL_AND, kBool, is_row, is_key, Scores(kBool)));

    const Descriptor from_first = Index(x, 2), other = Index(x, 3);
    const Descriptor shifted =
        Pointwise(CUDNN_POINTWISE_ADD, kI32, from_first, len_kv_, Scores(kI32));
    const Descriptor last = Pointwise(CUDNN_POINTWISE_SUB, kI32, shifted, len_q_, Scores(kI32));
    x = Masked(x, Pointwise(CUDNN_POINTWISE_CMP_GE, kBool, last, other, Scores(kBool)));

    const Descriptor max = Reduce(CUDNN_REDUCE_TENSOR_MAX, x);
    const Descriptor below = Pointwise(CUDNN_POINTWISE_SUB, kF32, x, max, Scores(kF32));
    const Descriptor weights = Pointwise(CUDNN_POINTWISE_EXP, kF32, below, nullptr, Scores(kF32));
    const Descriptor sum = Reduce(CUDNN_REDUCE_TENSOR_ADD, weights);
    const Descriptor log = Pointwise(CUDNN_POINTWISE_LOG, kF32, sum, nullptr, PerRow(next_++));
    Pointwise(CUDNN_POINTWISE_ADD, kF32, max, log, PerRow(kLse));
    const Descriptor shares = Pointwise(CUDNN_POINTWISE_DIV, kF32, weights, sum, Scores(kBf16));
    Multiply(shares, Paged(kV, kPagesV), o, nullptr, len_kv_);
  }

  Cudnn::Shape s_;
  int64_t next_ = kVirtual;
  std::vector<Descriptor> operations_;
  Descriptor len_q_ = nullptr, len_kv_ = nullptr, masked_ = nullptr;
};

}  // namespace

struct Cudnn::Plan {
  Descriptor descriptor = nullptr;  // null: no kernel for the shape
  int64_t workspace_bytes = 0;
};

struct Cudnn::State {
  Functions f = {};
  cudnnHandle_t handle = nullptr;
  std::map<Shape, Plan> plans;

  Plan MakePlan(const Shape& shape);
};

// The library's cache of kernels for several shapes (dynamic shapes, 9.19) is not used: it launches
// as many blocks as the first shape needs, whatever the shape.
Cudnn::Plan Cudnn::State::MakePlan(const Shape& shape) {
  AttentionGraph d(f, shape);
  const Descriptor graph = d.New(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  d.Set(graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, handle);
  d.SetAll(graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, d.operations().data(), d.operations().size());
  d.Finish(graph);

  const Descriptor heuristic = d.New(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  d.Set(heuristic, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
  d.Set(heuristic, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_HEUR_MODE_A);
  d.Finish(heuristic);
  Descriptor best = d.New(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
  int64_t found = 0;
  if (d.status() != CUDNN_STATUS_SUCCESS) return {};
  d.Note(f.get(heuristic, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &found,
               &best));
  if (found == 0) return {};
  const Descriptor plan = d.New(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
  d.Set(plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, handle);
  d.Set(plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, best);
  d.Finish(plan);
  Plan made;
  if (d.status() == CUDNN_STATUS_SUCCESS)
    d.Note(f.get(plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &found,
                 &made.workspace_bytes));
  if (d.status() != CUDNN_STATUS_SUCCESS) return {};
  d.Release(made.descriptor = plan);
  return made;
}

Cudnn::Cudnn(std::unique_ptr<State> state) : state_(std::move(state)) {}

// The library stays loaded until the process ends: closing it at exit is not safe.
Cudnn::~Cudnn() {
  for (const auto& [shape, plan] : state_->plans)
    if (plan.descriptor) state_->f.delete_descriptor(plan.descriptor);
  state_->f.destroy(state_->handle);
}

std::unique_ptr<Cudnn> Cudnn::Load(cudaStream_t stream) {
  auto state = std::make_unique<State>();
  void* library = OpenLibrary("libcudnn.so.9");
  if (library == nullptr || !state->f.Find(library)) return nullptr;
  if (state->f.version() < kLeastVersion) return nullptr;
  if (state->f.create(&state->handle) != CUDNN_STATUS_SUCCESS) return nullptr;
  std::unique_ptr<Cudnn> loaded(new Cudnn(std::move(state)));
  const State& s = *loaded->state_;
  return s.f.set_stream(s.handle, stream) == CUDNN_STATUS_SUCCESS ? std::move(loaded) : nullptr;
}

const Cudnn::Plan* Cudnn::PlanOf(const Shape& shape) {
  const auto [at, is_new] = state_->plans.try_emplace(shape);
  if (is_new) at->second = state_->MakePlan(shape);
  return at->second.descriptor ? &at->second : nullptr;
}

int64_t Cudnn::WorkspaceBytes(const Plan& plan) { return plan.workspace_bytes; }

void Cudnn::Run(const Call& call) {
  const float masked = -INFINITY;
  const std::pair<int64_t, const void*> tensors[] = {
      {kQ, call.q},          {kK, call.k},          {kV, call.v},          {kO, call.o},
      {kLse, call.lse},      {kPagesK, call.pages}, {kPagesV, call.pages}, {kLenQ, call.len_q},
      {kLenKv, call.len_kv}, {kScale, &call.scale}, {kMasked, &masked}};
  std::vector<int64_t> ids;
  std::vector<void*> pointers;
  for (const auto& [id, at] : tensors) ids.push_back(id), pointers.push_back(const_cast<void*>(at));
  const Functions& f = state_->f;
  Descriptors d(f);
  const Descriptor pack = d.New(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  const auto set = [&](cudnnBackendAttributeName_t name, const auto* values, size_t n) {
    d.Note(f.set(pack, name, CUDNN_TYPE_VOID_PTR, static_cast<int64_t>(n), values));
  };
  d.SetAll(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, ids.data(), ids.size());
  set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, pointers.data(), pointers.size());
  set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, &call.workspace, 1);
  d.Finish(pack);
  d.Note(f.execute(state_->handle, call.plan->descriptor, pack));
  if (d.status() == CUDNN_STATUS_SUCCESS) return;
  std::array<char, 1024> text = {};
  f.last_error(text.data(), text.size());
  fmt::print(stderr, "cuda: cuDNN: attention: status {} ({})\n", static_cast<int>(d.status()),
             text.data());
  std::abort();
}

}  // namespace baton::cuda

#else  // built without its headers

namespace baton::cuda {
struct Cudnn::State {};
struct Cudnn::Plan {};
Cudnn::~Cudnn() = default;
std::unique_ptr<Cudnn> Cudnn::Load(cudaStream_t) { return nullptr; }
const Cudnn::Plan* Cudnn::PlanOf(const Shape&) { return nullptr; }
int64_t Cudnn::WorkspaceBytes(const Plan&) { return 0; }
void Cudnn::Run(const Call&) {}
}  // namespace baton::cuda

#endif
