#include <algorithm>
#include <array>

#include "kernels/cuda/recorder.h"

namespace baton::cuda {
namespace {

constexpr size_t kGenerations = 4;
constexpr size_t kFirstTableBytes = size_t{1} << 20;
// Launching shorter runs one by one is as fast.
constexpr size_t kGraphActions = 8;
constexpr size_t kMaxGraphs = 256;
// Of a longer pass, this many actions start while the host records the next ones; the first ones
// sooner, so that the device has little to wait.
constexpr size_t kFirstActions = 16, kActionsAhead = 96;
constexpr size_t kDefaultShared = 48 << 10;

constexpr size_t RoundUp(size_t n, size_t to) { return (n + to - 1) / to * to; }

uint64_t Hash(std::span<const std::byte> bytes) {
  uint64_t h = 0xcbf29ce484222325u;
  for (size_t i = 0; i + 8 <= bytes.size(); i += 8) {  // sizes are multiples of 16
    uint64_t word;
    std::memcpy(&word, bytes.data() + i, 8);
    h = (h ^ word) * 0x9e3779b97f4a7c15u;
    h ^= h >> 29;
  }
  return h;
}

}  // namespace

void Check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  fmt::print(stderr, "cuda: {}: {} ({})\n", what, cudaGetErrorString(error),
             cudaGetErrorName(error));
  std::abort();
}

struct Recorder::Chunk {
  size_t capacity = 0, used = 0, uploaded = 0;
  std::byte* device = nullptr;
  std::array<std::byte*, kGenerations> host = {};
  std::array<cudaEvent_t, kGenerations> copied = {};

  explicit Chunk(size_t bytes) : capacity(bytes) {
    BATON_CUDA(cudaMalloc(reinterpret_cast<void**>(&device), capacity));
    for (size_t g = 0; g < kGenerations; ++g) {
      BATON_CUDA(cudaHostAlloc(reinterpret_cast<void**>(&host[g]), capacity, 0));
      BATON_CUDA(cudaEventCreateWithFlags(&copied[g], cudaEventDisableTiming));
    }
  }
  ~Chunk() {
    for (size_t g = 0; g < kGenerations; ++g) {
      cudaEventDestroy(copied[g]);
      cudaFreeHost(host[g]);
    }
    cudaFree(device);
  }
};

// The header of an action in bytes_. After it come a launch's argument offsets (uint64_t, from the
// action's start) and arguments, or the key of a function. All begin at multiples of 16.
struct Recorder::Action {
  enum Kind : uint64_t { kLaunch, kFunction, kCopy, kZero } kind;
  const void* function;  // kernel, or source of a copy
  void* to;
  uint64_t count;  // arguments, index into functions_, or bytes
  uint32_t grid[3], block[3];
  uint64_t shared_bytes;
  uint32_t cluster, overlapped;
  uint64_t unused;
};

struct Recorder::Graph {
  uint64_t hash = 0;
  std::vector<std::byte> key;
  cudaGraphExec_t exec = nullptr;  // null until seen twice
  int64_t last_pass = 0;
  ~Graph() {
    if (exec) cudaGraphExecDestroy(exec);
  }
};

Recorder::Recorder(cudaStream_t stream, Options options) : stream_(stream), options_(options) {
  static_assert(sizeof(Action) % 16 == 0);
  int device = 0, major = 0;
  BATON_CUDA(cudaGetDevice(&device));
  BATON_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  clusters_ = major >= 9;
  chunks_.push_back(std::make_unique<Chunk>(kFirstTableBytes));
}

Recorder::~Recorder() { cudaStreamSynchronize(stream_); }

void Recorder::BeginPass() {
  BATON_CHECK(!in_pass_ && depth_ == 0);
  in_pass_ = true;
  pieces_ = 0;
  ++counts_.passes;
  BeginTables();
}

void Recorder::EndPass() {
  BATON_CHECK(in_pass_ && depth_ == 0);
  Flush();
  in_pass_ = false;
  EndTables();
}

void Recorder::Enter() {
  if (depth_++ == 0 && !in_pass_) BeginTables();
}

void Recorder::Leave() {
  if (--depth_ > 0) return;
  if (in_pass_) {
    if (actions_.size() >= std::min(kActionsAhead, kFirstActions << pieces_)) {
      Flush();
      pieces_ = std::min(pieces_ + 1, 8);
    }
    return;
  }
  Flush();
  EndTables();
}

void Recorder::BeginTables() {
  generation_ = (generation_ + 1) % kGenerations;
  for (const auto& chunk : chunks_) BATON_CUDA(cudaEventSynchronize(chunk->copied[generation_]));
}

void Recorder::EndTables() {
  if (options_.synchronous) BATON_CUDA(cudaStreamSynchronize(stream_));
  for (const auto& chunk : chunks_) chunk->used = chunk->uploaded = 0;
  if (chunks_.size() == 1) return;
  size_t capacity = 0;
  for (const auto& chunk : chunks_) capacity += chunk->capacity;
  BATON_CUDA(cudaStreamSynchronize(stream_));
  chunks_.clear();
  chunks_.push_back(std::make_unique<Chunk>(capacity));
}

std::pair<std::byte*, std::byte*> Recorder::Put(size_t bytes) {
  BATON_CHECK(in_pass_ || depth_ > 0);
  bytes = RoundUp(std::max<size_t>(bytes, 1), kTableAlignment);
  // Earlier tables must keep their addresses, so tables that do not fit go to another chunk. The
  // chunks are merged into one when the pass ends.
  if (chunks_.back()->used + bytes > chunks_.back()->capacity)
    chunks_.push_back(std::make_unique<Chunk>(std::max(2 * chunks_.back()->capacity, bytes)));
  Chunk& chunk = *chunks_.back();
  const size_t at = chunk.used;
  chunk.used += bytes;
  return {chunk.host[generation_] + at, chunk.device + at};
}

void Recorder::UploadTables() {
  for (const auto& chunk : chunks_) {
    if (chunk->used == chunk->uploaded) continue;
    BATON_CUDA(cudaMemcpyAsync(chunk->device + chunk->uploaded,
                               chunk->host[generation_] + chunk->uploaded,
                               chunk->used - chunk->uploaded, cudaMemcpyHostToDevice, stream_));
    BATON_CUDA(cudaEventRecord(chunk->copied[generation_], stream_));
    chunk->uploaded = chunk->used;
  }
}

std::byte* Recorder::AppendBytes(size_t bytes) {
  const size_t at = bytes_.size();
  bytes_.resize(at + RoundUp(bytes, 16));
  return bytes_.data() + at;
}

void Recorder::BeginLaunch(const void* function, const Shape& shape, size_t arguments) {
  BATON_CHECK(in_pass_ || depth_ > 0);
  if (shape.shared_bytes > kDefaultShared) {
    const auto known =
        std::find_if(shared_.begin(), shared_.end(), [&](auto& s) { return s.first == function; });
    if (known == shared_.end() || known->second < shape.shared_bytes) {
      BATON_CUDA(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(shape.shared_bytes)));
      if (known == shared_.end()) {
        shared_.emplace_back(function, shape.shared_bytes);
      } else {
        known->second = shape.shared_bytes;
      }
    }
  }
  actions_.push_back(bytes_.size());
  const Action action{.kind = Action::kLaunch,
                      .function = function,
                      .to = nullptr,
                      .count = arguments,
                      .grid = {shape.grid.x, shape.grid.y, shape.grid.z},
                      .block = {shape.block.x, shape.block.y, shape.block.z},
                      .shared_bytes = shape.shared_bytes,
                      .cluster = shape.cluster,
                      .overlapped = shape.overlapped};
  std::memcpy(AppendBytes(sizeof(Action)), &action, sizeof(Action));
  next_argument_ = bytes_.size();
  AppendBytes(arguments * sizeof(uint64_t));
}

std::byte* Recorder::AppendArgument(size_t bytes) {
  const uint64_t offset = bytes_.size() - actions_.back();
  std::byte* const at = AppendBytes(bytes);
  std::memcpy(bytes_.data() + next_argument_, &offset, sizeof(offset));
  next_argument_ += sizeof(offset);
  return at;
}

void Recorder::Add(std::span<const std::byte> key, std::function<void(cudaStream_t)> run) {
  BATON_CHECK(in_pass_ || depth_ > 0);
  actions_.push_back(bytes_.size());
  const Action action{.kind = Action::kFunction, .count = functions_.size()};
  std::memcpy(AppendBytes(sizeof(Action)), &action, sizeof(Action));
  std::memcpy(AppendBytes(key.size()), key.data(), key.size());
  functions_.push_back(std::move(run));
}

void Recorder::Copy(void* to, const void* from, int64_t bytes) {
  if (bytes == 0) return;
  BATON_CHECK(in_pass_ || depth_ > 0);
  actions_.push_back(bytes_.size());
  const Action action{
      .kind = Action::kCopy, .function = from, .to = to, .count = static_cast<uint64_t>(bytes)};
  std::memcpy(AppendBytes(sizeof(Action)), &action, sizeof(Action));
}

void Recorder::Zero(void* at, int64_t bytes) {
  if (bytes == 0) return;
  BATON_CHECK(in_pass_ || depth_ > 0);
  actions_.push_back(bytes_.size());
  const Action action{.kind = Action::kZero, .to = at, .count = static_cast<uint64_t>(bytes)};
  std::memcpy(AppendBytes(sizeof(Action)), &action, sizeof(Action));
}

void Recorder::RunActions() {
  std::vector<void*> arguments;
  for (const size_t at : actions_) {
    Action action;
    std::memcpy(&action, bytes_.data() + at, sizeof(Action));
    switch (action.kind) {
      case Action::kFunction:
        functions_[action.count](stream_);
        break;
      case Action::kCopy:
        BATON_CUDA(
            cudaMemcpyAsync(action.to, action.function, action.count, cudaMemcpyDefault, stream_));
        break;
      case Action::kZero:
        BATON_CUDA(cudaMemsetAsync(action.to, 0, action.count, stream_));
        break;
      case Action::kLaunch: {
        arguments.assign(action.count + 1, nullptr);
        for (size_t i = 0; i < action.count; ++i) {
          uint64_t offset;
          std::memcpy(&offset, bytes_.data() + at + sizeof(Action) + i * sizeof(offset),
                      sizeof(offset));
          arguments[i] = bytes_.data() + at + offset;
        }
        cudaLaunchAttribute attributes[2] = {};
        cudaLaunchConfig_t config = {};
        config.gridDim = dim3(action.grid[0], action.grid[1], action.grid[2]);
        config.blockDim = dim3(action.block[0], action.block[1], action.block[2]);
        config.dynamicSmemBytes = action.shared_bytes;
        config.stream = stream_;
        config.attrs = attributes;
        if (action.cluster > 1) {
          attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
          attributes[config.numAttrs++].val.clusterDim = {action.cluster, 1, 1};
        }
        if (action.overlapped && clusters_) {
          attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
          attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
        }
        BATON_CUDA(cudaLaunchKernelExC(&config, action.function, arguments.data()));
        break;
      }
    }
  }
}

std::unique_ptr<Recorder::Graph> Recorder::Capture() {
  auto graph = std::make_unique<Graph>();
  cudaGraph_t captured;
  BATON_CUDA(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
  RunActions();
  BATON_CUDA(cudaStreamEndCapture(stream_, &captured));
  BATON_CUDA(cudaGraphInstantiate(&graph->exec, captured, 0));
  BATON_CUDA(cudaGraphDestroy(captured));
  ++counts_.captures;
  return graph;
}

void Recorder::Replay() {
  const uint64_t hash = Hash(bytes_);
  const auto known = std::find_if(graphs_.begin(), graphs_.end(), [&](const auto& g) {
    return g->hash == hash && g->key == bytes_;
  });
  if (known == graphs_.end()) {
    if (graphs_.size() == kMaxGraphs) {
      const auto oldest = std::min_element(
          graphs_.begin(), graphs_.end(),
          [](const auto& a, const auto& b) { return a->last_pass < b->last_pass; });
      // A graph may be running.
      BATON_CUDA(cudaStreamSynchronize(stream_));
      graphs_.erase(oldest);
    }
    auto graph = std::make_unique<Graph>();
    graph->hash = hash;
    graph->key = bytes_;
    graph->last_pass = counts_.passes;
    graphs_.push_back(std::move(graph));
    counts_.launches += static_cast<int64_t>(actions_.size());
    return RunActions();
  }
  Graph& graph = **known;
  graph.last_pass = counts_.passes;
  if (graph.exec == nullptr) std::swap(graph.exec, Capture()->exec);
  BATON_CUDA(cudaGraphLaunch(graph.exec, stream_));
  ++counts_.replays;
}

void Recorder::Flush() {
  UploadTables();
  if (actions_.empty()) return;
  if (in_pass_ && options_.graphs && actions_.size() >= kGraphActions) {
    Replay();
  } else {
    counts_.launches += static_cast<int64_t>(actions_.size());
    RunActions();
  }
  actions_.clear();
  bytes_.clear();
  functions_.clear();
}

void Recorder::Wait() {
  Flush();
  BATON_CUDA(cudaStreamSynchronize(stream_));
}

}  // namespace baton::cuda
