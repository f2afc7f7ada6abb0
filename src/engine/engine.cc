#include "baton/engine.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <numeric>

#include "base/buffer.h"
#include "base/clock.h"
#include "engine/engine_impl.h"
#if BATON_WITH_CPU
#include "kernels/cpu/cpu_ops.h"
#endif
#if BATON_WITH_CUDA
#include "kernels/cuda/cuda_ops.h"
#endif

namespace baton {
namespace {

DType CacheType(KvType t) {
  return t == KvType::kF32 ? DType::kF32 : t == KvType::kBF16 ? DType::kBF16 : DType::kI8;
}

Result<std::unique_ptr<Ops>> MakeOps(const EngineOptions& options, ThreadPool& pool) {
  if (options.backend == Backend::kReference) return MakeReferenceOps(pool);
  if (options.backend == Backend::kCuda) {
#if BATON_WITH_CUDA
    return MakeCudaOps(pool);
#else
    return Error::Unsupported("this build has no cuda backend")
        .Hint("use --backend cpu, or configure with BATON_CUDA=ON");
#endif
  }
#if BATON_WITH_CPU
  return MakeCpuOps(pool, options.portable ? CpuIsa::kPortable : DetectCpuIsa());
#else
  return Error::Unsupported("this build has no cpu backend")
      .Hint("use --backend ref, or configure with BATON_SIMD=ON");
#endif
}

void CountWeights(const Checkpoint& c, ModelInfo& info) {
  std::map<std::string, int> types;
  std::vector<const TensorInfo*> all;
  const auto add = [&](const TensorSet& set) {
    for (size_t i = 0; i < kTensorRoles; ++i) {
      const auto role = static_cast<TensorRole>(i);
      const bool tied = role == TensorRole::kOutput && set[role] == set[TensorRole::kEmbedding];
      if (!tied && role != TensorRole::kRopeDivisors) all.push_back(set[role]);
    }
  };
  add(c.model);
  for (const TensorSet& l : c.layers) add(l);
  for (const TensorInfo* t : all) {
    if (t == nullptr) continue;
    types[std::string(Info(t->dtype).name)]++;
    info.parameters += t->elements();
    info.weight_bytes += t->bytes;
  }
  for (const auto& [name, count] : types) {
    info.weight_types +=
        fmt::format("{}{} x {}", info.weight_types.empty() ? "" : ", ", count, name);
  }
}

int64_t PhysicalBytes() {
  return std::max<int64_t>(0, int64_t{::sysconf(_SC_PHYS_PAGES)} * ::sysconf(_SC_PAGESIZE));
}

// A model of token ids alone has none; a tokenizer that cannot be read is an error.
Result<Tokenizer> TokenizerOf(const Checkpoint& c) {
  Result<Tokenizer> tokenizer = c.LoadTokenizer();
  if (!tokenizer.ok() && tokenizer.error().code() == Error::Code::kNotFound)
    return Tokenizer::None();
  return tokenizer;
}

// The routers of a file, or those that lie in a published checkpoint.
Result<std::optional<Router>> RouterOf(const Checkpoint& c, const EngineOptions& options,
                                       Device& device) {
  if (options.router.empty() && !c.router) return std::optional<Router>();
  if (options.router.empty() || (options.router == c.path && c.router))
    return std::optional(Router::Load(*c.router, device));
  BATON_ASSIGN(const RouterFile file, LoadRouter(options.router, c.config));
  return std::optional(Router::Load(file, device));
}

}  // namespace

std::string HashText(uint32_t hash) { return fmt::format("{:08x}", hash); }

// On the host, tiles of prompts begin at multiples of sizes that divide a page. Estimates of sparse
// prompts, and other devices, know only where a pass begins.
int64_t Engine::Impl::PromptUnit(const ResolvedPlan& plan) const {
  const bool pages = ops->device().host() && !plan.prefill.sparse;
  const int64_t chunk = options.prompt_chunk;
  return pages && chunk % KvLayout::kSlots == 0 ? KvLayout::kSlots
                                                : std::lcm(chunk, int64_t{KvLayout::kSlots});
}

ResolvedPlan Engine::Impl::Placed(ResolvedPlan plan) const {
  for (size_t c = 0; c < plan.caches.size() && options.kv_host; ++c)
    plan.caches[c].host_rows = plan.ReadsListsOf(static_cast<int>(c));
  return plan;
}

Result<ResolvedPlan> Engine::Impl::ResolvePlan(const Plan& plan,
                                               std::vector<std::string>* warnings) const {
  BATON_ASSIGN(ResolvedPlan resolved, Resolve(plan, shape(), warnings));
  return Placed(std::move(resolved));
}

KvElement Engine::Impl::cache_element() const {
  return options.kv == KvType::kF32    ? kFloatCache
         : options.kv == KvType::kBF16 ? kBf16Cache
                                       : kInt8Cache;
}

KvLayout Engine::Impl::LayoutOf(const CacheSpec& cache) const {
  return {.dtype = CacheType(options.kv),
          .kv_heads = cache.kv_heads,
          .head_dim = cache.head_dim,
          .low_bit = cache.low_bit,
          .values = cache.values};
}

Result<std::shared_ptr<KvStore>> Engine::Impl::NewStore(const std::vector<CacheSpec>& caches,
                                                        int64_t tokens, KvStoreOptions options,
                                                        int64_t rollback) const {
  std::vector<KvCacheSpec> specs;
  options.device = &ops->device();
  for (const CacheSpec& c : caches) {
    KvCacheSpec spec{.layout = LayoutOf(c), .host_rows = c.host_rows};
    // Also where nothing is dropped: a prompt's suffix starts inside rings alone.
    if (c.ring()) {
      spec.sink = c.sink;
      spec.recent = c.recent;
      spec.rollback = rollback < 0 ? tokens : rollback;
    }
    specs.push_back(spec);
  }
  BATON_ASSIGN(std::unique_ptr<KvStore> store,
               KvStore::Create(std::move(specs), tokens + KvLayout::kSlots, options));
  return std::shared_ptr<KvStore>(std::move(store));
}

Result<std::shared_ptr<KvStore>> Engine::Impl::Store(const std::vector<CacheSpec>& caches,
                                                     int64_t tokens, int64_t rollback) {
  const bool same = store_ && store_caches_ == caches && store_rollback_ == rollback;
  if (same && store_->free_tokens() >= tokens) return store_;
  BATON_ASSIGN(store_, NewStore(caches, std::max(tokens, options.kv_tokens), {}, rollback));
  store_caches_ = caches;
  store_rollback_ = rollback;
  return store_;
}

Result<std::unique_ptr<Engine>> Engine::Load(const std::string& path,
                                             const EngineOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  if (options.prompt_chunk < 0) {
    return Error::InvalidArgument("prompt chunk must be at least 0 tokens, got {}",
                                  options.prompt_chunk);
  }
  if (!(options.prompt_share > 0 && options.prompt_share <= 1)) {
    return Error::InvalidArgument("prompt share must be above 0 and at most 1, got {}",
                                  options.prompt_share);
  }
  if (options.threads < 0 || options.threads > 1024) {
    return Error::InvalidArgument("threads must be between 0 (all processors) and 1024, got {}",
                                  options.threads);
  }
  constexpr int64_t kMostTokens = int64_t{1} << 40;  // sums of counts stay far from overflow
  for (const auto& [name, tokens] :
       {std::pair("context", options.context), std::pair("kv_tokens", options.kv_tokens)}) {
    if (tokens > kMostTokens)
      return Error::InvalidArgument("{} must be at most {} tokens, got {}", name, kMostTokens,
                                    tokens);
  }
  if (options.kv_host && options.backend != Backend::kCuda) {
    return Error::Unsupported(
               "caches in host memory are for the cuda backend; others have no other")
        .Hint("leave out --kv-host");
  }
  auto impl = std::make_unique<Impl>(options.threads);
  BATON_ASSIGN(impl->checkpoint, Checkpoint::Open(path, options.router_flavour));
  BATON_ASSIGN(impl->ops, MakeOps(options, impl->pool));
  BATON_ASSIGN(impl->router, RouterOf(impl->checkpoint, options, impl->ops->device()));
  BATON_ASSIGN(Tokenizer tokenizer, TokenizerOf(impl->checkpoint));
  impl->tokenizer = std::make_unique<Tokenizer>(std::move(tokenizer));
  Weights weights;
  weights.layers.resize(static_cast<size_t>(impl->checkpoint.config.layers));
  if (options.weights) {
    BATON_ASSIGN(weights, Weights::Load(impl->checkpoint, *impl->ops));
  }

  const ModelConfig& c = impl->checkpoint.config;
  impl->options = options;
  // A GPU expands the weights once a pass, and fills its cores better with more rows.
  if (impl->options.prompt_chunk == 0)
    impl->options.prompt_chunk = impl->ops->device().host() ? 512 : 2048;
  if (impl->options.context <= 0) impl->options.context = c.context;
  if (impl->options.kv_tokens <= 0)
    impl->options.kv_tokens = impl->options.context * std::max<int64_t>(1, options.kv_contexts);
  impl->options.threads = impl->pool.threads();

  ModelInfo& info = impl->info;
  info.path = path;
  info.name = c.name;
  info.architecture = c.architecture;
  info.fingerprint = impl->checkpoint.fingerprint;
  info.layers = c.layers;
  info.heads = c.heads;
  info.kv_heads = c.kv_heads;
  info.head_dim = c.head_dim;
  info.width = c.width;
  info.ffn_width = c.ffn_width;
  info.vocab = c.vocab;
  info.context = c.context;
  CountWeights(impl->checkpoint, info);
  for (const LayerConfig& l : c.layer) info.window.push_back(l.window);
  info.ignored_keys = c.ignored_keys;
  info.notes = impl->tokenizer->notes();
  info.has_tokenizer = impl->tokenizer->vocab_size() > 0;
  BATON_ASSIGN(impl->chat, impl->checkpoint.LoadChatSource());
  if (!options.chat_template.empty()) impl->chat.by_name = {{"default", options.chat_template}};
  info.has_chat_template = impl->chat.Choose(/*tools=*/false) != nullptr;
  impl->grammars = std::make_unique<GrammarCompiler>(*impl->tokenizer, c.vocab);
  info.backend = impl->ops->name();
  info.decode_rows = impl->ops->most_decode_rows();
  info.threads = impl->pool.threads();
  impl->model = std::make_unique<Transformer>(c, std::move(weights), *impl->ops,
                                              ShapeOf(c, impl->checkpoint.fingerprint));
  impl->model_plan = impl->Placed(ModelPlan(impl->model->shape()));
  DescribeLayers(*impl, info);
  int64_t& cached = impl->options.prefix_cache_tokens;
  if (cached < 0) cached = PhysicalBytes() / 4 / std::max<int64_t>(1, info.kv_bytes_per_token);
  if (cached == 0 && !options.cache_dir.empty())
    return Error::InvalidArgument("cache_dir {}: there is no prefix cache to keep",
                                  options.cache_dir);
  if (cached > 0 && options.weights) {
    BATON_ASSIGN(impl->prefix,
                 PrefixCache::Create(
                     impl->options,
                     fmt::format("{};{};{};chunk {};", info.fingerprint, info.backend,
                                 Info(CacheType(options.kv)).name, impl->options.prompt_chunk)));
  }
  info.load_seconds = SecondsSince(start);
  return std::unique_ptr<Engine>(new Engine(std::move(impl)));
}

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Engine::~Engine() = default;
const ModelInfo& Engine::info() const { return impl_->info; }
const EngineOptions& Engine::options() const { return impl_->options; }
PrefixCacheUse Engine::prefix_cache_use() const {
  return impl_->prefix ? impl_->prefix->use() : PrefixCacheUse{};
}
void Engine::ClearPrefixCache() {
  if (impl_->prefix) impl_->prefix->Clear();
}

std::vector<int32_t> Engine::Tokenize(std::string_view text, bool bos, bool special) const {
  return impl_->tokenizer->Encode(text, {.bos = bos, .special = special});
}
std::string Engine::Detokenize(std::span<const int32_t> tokens, bool special) const {
  return impl_->tokenizer->Decode(tokens, special);
}
std::string Engine::TokenBytes(int32_t token) const {
  return impl_->tokenizer->Bytes(token, /*special=*/true);
}
bool Engine::IsEndOfGeneration(int32_t token) const {
  return impl_->tokenizer->IsEndOfGeneration(token);
}

Status Engine::CheckPlan(const Plan& plan, std::vector<std::string>* warnings) const {
  BATON_ASSIGN([[maybe_unused]] ResolvedPlan resolved, impl_->ResolvePlan(plan, warnings));
  return Status::Ok();
}

Result<ResolvedPlan> Engine::Impl::ResolveUnrouted(const Plan& plan) const {
  BATON_ASSIGN(ResolvedPlan resolved, ResolvePlan(plan, nullptr));
  if (resolved.Routes())
    return Error::InvalidArgument("the plan routes layers, and there is nothing to decide them by")
        .Hint(
            "`baton run` takes a router (--router FILE) or a mask (--route-mask); elsewhere make "
            "these layers full or window");
  return resolved;
}

Result<double> Engine::KvBytesShare(const Plan& plan, int64_t visible) const {
  BATON_ASSIGN(ResolvedPlan resolved, impl_->ResolvePlan(plan, nullptr));
  const KvElement element = impl_->cache_element();
  return static_cast<double>(KvBytesPerToken(resolved, impl_->shape(), visible, element)) /
         static_cast<double>(DenseKvBytesPerToken(impl_->shape(), visible, element));
}

Result<double> Engine::KvHeldShare(const Plan& plan, int64_t tokens) const {
  BATON_ASSIGN(ResolvedPlan resolved, impl_->ResolvePlan(plan, nullptr));
  const KvElement element = impl_->cache_element();
  return static_cast<double>(KvBytesHeld(resolved.AfterPrompt().caches, tokens, element)) /
         static_cast<double>(KvBytesHeld(impl_->model_plan.caches, tokens, element));
}

void Engine::Cancel() { impl_->cancelled.store(true, std::memory_order_relaxed); }
void Engine::ResetCancel() { impl_->cancelled.store(false, std::memory_order_relaxed); }

void Engine::SetTracing(bool on) {
  impl_->ops->trace().enabled = on;
  impl_->ops->trace().Reset();
}

std::vector<OpTime> Engine::OpTimes() const {
  std::vector<OpTime> times;
  for (int i = 0; i < static_cast<int>(OpKind::kCount); ++i) {
    const Trace::Entry& e = impl_->ops->trace()[static_cast<OpKind>(i)];
    if (e.calls > 0)
      times.push_back(
          {std::string(Name(static_cast<OpKind>(i))), e.calls, e.seconds, e.bytes, e.flops});
  }
  return times;
}

MemoryUse Engine::Memory() {
  const HugePageUse use = MeasureHugePages();
  return {use.huge_bytes, use.total_bytes, use.advised};
}

}  // namespace baton
