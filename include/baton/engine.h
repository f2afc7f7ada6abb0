// Load a model, generate text under an attention plan, stream it, read what it cost.
//
//   BATON_ASSIGN(auto engine, baton::Engine::Load("model.gguf", {}));
//   baton::Request request;
//   request.prompt = "The capital of France is";
//   BATON_ASSIGN(auto result, engine->Generate(request, [](std::string_view text) { std::cout <<
//   text; return true; }));
//
// Many requests at once, which may arrive from any thread while others run:
//
//   BATON_ASSIGN(auto id, engine->Submit(request, {.on_text = Print, .on_done = Keep}));
//   while (engine->Step()) {}
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "baton/constraint.h"
#include "baton/error.h"
#include "baton/plan.h"

namespace baton {

enum class Backend { kReference, kCpu, kCuda };
enum class KvType { kF32, kBF16, kInt8 };

struct EngineOptions {
  Backend backend = Backend::kCpu;
  bool portable = false;  // CPU kernels in single precision that any x86-64 runs
  int threads = 0;        // 0: one per processor
  KvType kv = KvType::kBF16;
  // Caches that decode reads only through index sets (reuse, scan, models with lists) lie in pinned
  // host memory, all of kv_tokens from the first request on; their 4-bit copies stay on the GPU.
  // Caches may then exceed the GPU's memory; layers that read all keys stay on it. Backend kCuda.
  bool kv_host = false;
  int64_t context = 0;  // longest sequence; 0: the model's own
  // Most tokens of cache, all requests together; 0: kv_contexts full contexts.
  int64_t kv_tokens = 0, kv_contexts = 1;
  int64_t prompt_chunk = 0;  // prompt tokens per forward pass; 0: 512, on a GPU 2,048
  // Of the time, what prompts get while other requests decode, above 0: below a half, tokens take
  // less than twice as long; 1: whole passes, which do the most work in the least time.
  double prompt_share = 1;
  // Prompts that begin like an earlier one go on from its cache, bit for bit as without it. Most
  // tokens that it holds beside requests, within kv_tokens; 0: off, negative: a quarter of memory.
  // Chats of Engine::Generate have their own way.
  int64_t prefix_cache_tokens = 0;
  // A folder that keeps it across restarts, of at most as many bytes. CPU backends.
  std::string cache_dir;
  int64_t cache_dir_bytes = int64_t{16} << 30;
  // Layer routers: a router file, or the model's own path where a published checkpoint holds them.
  // Empty: none. `router_flavour` must say "flux" for published checkpoints.
  std::string router, router_flavour;
  std::string chat_template;  // Jinja source in place of the model's own; empty: the model's
  bool weights = true;  // false: the model can be described and text turned into tokens, no more
};

// What a layer's attention is by the model's own design.
struct LayerInfo {
  std::string kind;       // full, window, cross index, ...
  std::string branches;   // "own window 512", "layer 12 list of 25 + recent 128", ...
  std::string cache;      // "all", "ring 128", "none"
  std::string publishes;  // "tokens 1024", "blocks 1024 of 64", or empty
  bool rope = true, gated = false, sink_logits = false;
  bool operator==(const LayerInfo&) const = default;
};

struct ModelInfo {
  std::string path, name, architecture, fingerprint,
      weight_types;  // weight_types: "210 x Q4_1, 1 x Q8_0, 61 x F32"
  int layers = 0, heads = 0, kv_heads = 0;
  int64_t head_dim = 0, width = 0, ffn_width = 0, vocab = 0, context = 0;
  int64_t parameters = 0, weight_bytes = 0, kv_bytes_per_token = 0;
  std::vector<int64_t> window;  // [layers], 0 = whole context
  // Bytes of cache at some lengths: what a decode step reads and a sequence holds, beside a dense
  // model of this shape with a full cache in every layer.
  struct CacheBytes {
    int64_t tokens = 0, read = 0, held = 0, dense = 0;
  };
  std::vector<CacheBytes> cache_bytes;
  std::vector<LayerInfo> layer;  // [layers]
  bool trained_sparse = false;   // some layer borrows, shares, gates or publishes by design
  // Of prompts: from this layer on only rows whose logits are wanted run (-1: all rows everywhere),
  // and, where windows alone lie before it, at the layers below as many rows as these (-1: all).
  int exit_layer = -1;
  int64_t suffix_rows = -1;
  std::string router;  // "64 + 64 rows, sink 128, window 2048"; empty: none
  bool has_tokenizer = true, has_chat_template = false;
  std::vector<std::string> ignored_keys;  // of the file's settings, those that nothing read
  std::vector<std::string> notes;         // what the user should know of the files, a line each
  std::string backend;                    // "cpu (avx512)", "ref", ...
  int64_t decode_rows = 0;                // of a decode pass: sequences that advance together
  int threads = 0;
  double load_seconds = 0;
};

struct LogitBias {
  int32_t token = 0;
  float bias = 0;  // added to its logit before anything else
};

struct Sampling {
  float temperature = 0;  // 0: greedy
  int top_k = 0;          // 0: off
  float top_p = 1;        // 1: off
  float min_p = 0;        // 0: off
  float repetition_penalty = 1;
  float presence_penalty = 0;   // subtracted from the logit of each token that occurred
  float frequency_penalty = 0;  // subtracted once per occurrence
  int64_t penalty_window = 64;  // latest tokens that the penalties look at
  std::vector<LogitBias> logit_bias;
  uint64_t seed = 0;
};

// Watches a planned request: every `interval` steps each reuse layer measures how much of its
// attention its borrowed set captures; below `threshold` it attends fully for the rest of the
// request.
struct WatchOptions {
  int interval = 64;  // 0: off
  double threshold = 0.8;
};

struct ChatTurn {
  std::string role, content;
  // More members of the message for the chat template, a JSON object: tool_calls, tool_call_id,
  // reasoning_content, ... Empty: none.
  std::string members;
};

// What the chat template sees besides the turns.
struct ChatOptions {
  std::string tools;      // JSON array of function descriptions; empty: none
  std::string variables;  // JSON object, such as {"enable_thinking": false}; empty: none
};

// A conversation as its model gets it.
struct ChatPrompt {
  std::string text;             // what the template wrote, BOS included where it did
  std::vector<int32_t> tokens;  // with one BOS; control tokens inside messages are text
};

// How layers of role route are decided (arXiv 2604.07394). A window layer frees the rest of its
// cache for good.
struct RouteOptions {
  enum class Mode {
    kExact,    // layer by layer on the whole prompt; windows hold for the prompt's rows too
    kProbe,    // from the first and last rows of the prompt alone: approximate, then in chunks
    kTwoPass,  // exact decisions first, then the prompt again in chunks
    kDense,    // decided as in kExact, but the prompt attends fully; saves cache, not prompt time
  } mode = Mode::kExact;
  double margin = 0;  // a layer becomes a window only if z0 - z1 >= margin
  // Forced decisions: "full", "sparse" for all routed layers, or one letter a layer, F, S, or ? for
  // the router. Empty: the router decides.
  std::string mask;
};

struct RoutingReport {
  std::string bitmap;                        // [layers] F full, S sparse
  std::vector<std::array<float, 2>> logits;  // [layers] sparse, full; 0, 0 where none ran
  // exact, probe, two_pass, dense, forced; plan: windows that evict; cached: kept from the chat
  // turn that decided
  std::string source;
  int64_t rows_pooled = 0;                      // prompt rows that each decision saw
  std::vector<int64_t> held_token_equivalents;  // [layers] tokens of cache held at the end
  int64_t dense_token_equivalents = 0;          // what all layers full would hold
};

// Answers that are dense decoding's own, bit for bit, at the speed of a draft: tokens that a plan
// or the text so far proposes are checked by one dense pass over their rows (docs/exact.md).
struct ExactOptions {
  bool plan = true;         // the request's plan drafts
  bool lookup = false;      // first: what followed the newest three tokens where they stood before
  int64_t most_drafts = 7;  // per verification, 1 to 15
  bool adaptive = true;     // as many as pay, by acceptance and times seen; else most_drafts
};

struct ExactReport {
  int64_t drafted = 0, looked_up = 0;  // tokens proposed by the plan, and found in the text
  int64_t accepted = 0, verifications = 0;
  std::vector<int64_t> drafted_at, accepted_at;  // [most_drafts] by position in the draft
  double draft_seconds = 0, verify_seconds = 0;
  double dense_pass_seconds = 0;  // of one row, as last seen; 0: there was none
};

struct Request {
  // One of the three: text, tokens, or turns rendered with the model's chat template.
  std::string prompt;
  std::vector<int32_t> tokens;
  std::vector<ChatTurn> chat;
  ChatOptions chat_options;
  int64_t max_tokens = 256;
  Sampling sampling;
  // Texts that end the answer and are not part of it; they may hold control tokens ("<|user|>").
  std::vector<std::string> stop;
  int logprobs = -1;  // likeliest tokens to report for each token of the answer; -1: no report
  // The same for each token of the prompt but the first, which nothing precedes. Then max_tokens 0
  // scores the prompt alone.
  int prompt_logprobs = -1;
  bool ignore_end = false;   // keep generating past the end-of-generation token
  bool prefix_cache = true;  // its prompt may be found there, and is kept there
  std::optional<Plan> plan;  // none: dense
  WatchOptions watch;
  // Routed layers; without a plan that names them: every layer that sees the whole context.
  std::optional<RouteOptions> route;
  std::optional<ExactOptions> exact;
  std::shared_ptr<const Constraint> constraint;  // that its tokens obey; none: all may come
};

// What the prefix cache had of a prompt.
struct PrefixReport {
  int64_t tokens = 0;     // that were not processed again
  int64_t from_disk = 0;  // of these
  int64_t common = 0;     // tokens that agree with a cached prompt
  std::string miss;       // why it was not more; empty: nothing to explain, or no prefix cache
};

struct LayerWatch {
  int layer = 0;
  double captured = 0;  // smallest mean share of attention mass seen
  bool promoted = false;
};

struct RequestStats {
  int64_t prompt_tokens = 0, generated_tokens = 0;
  int64_t reused_tokens = 0;  // prompt tokens whose cache was still there
  double prompt_seconds = 0, decode_seconds = 0;
  double constraint_seconds = 0;  // of decode_seconds: asking what may come next
  // Means over decode steps: read, and what a dense step reads (of models trained for sparse
  // attention: a model of the same shape with a full cache in every layer).
  double kv_bytes_per_token = 0, kv_bytes_per_token_dense = 0;
  int64_t kv_bytes_held = 0;  // of cache at the end: tokens that later rows could still read
  std::string logits_hash;    // of the last step's logits
  std::optional<RoutingReport> routing;
  std::optional<ExactReport> exact;
  std::vector<LayerWatch> watched;
  PrefixReport prefix;
};

// Of the model's own distribution: at temperature 1, before penalties and cuts.
struct TokenLogprob {
  int32_t token = 0;
  double logprob = 0;  // nats
};

struct Generation {
  std::string text;
  std::vector<int32_t> tokens;
  struct Logprobs {
    TokenLogprob chosen;
    std::vector<TokenLogprob> top;  // likeliest first
  };
  std::vector<Logprobs> logprobs;         // [tokens], or empty where nobody asked
  std::vector<Logprobs> prompt_logprobs;  // [prompt tokens - 1], likewise
  enum class Stop { kEndOfText, kStopString, kLength, kContext, kCancelled } stop = Stop::kLength;
  RequestStats stats;
};

struct OpTime {
  std::string name;
  int64_t calls = 0;
  double seconds = 0, bytes = 0, flops = 0;
};

// What requests in progress take of the cache.
struct CacheUse {
  int64_t requests = 0;        // that have a cache
  int64_t claimed_tokens = 0;  // set aside for them, of `most_tokens`
  int64_t most_tokens = 0;
  int64_t held_bytes = 0;  // of pages that their tokens fill
};

// The prefix cache. Tokens, unless a name says otherwise.
struct PrefixCacheUse {
  int64_t held = 0, most = 0;                         // held: beside running requests and by them
  int64_t queries = 0, hits = 0, hits_from_disk = 0;  // of prompts, since the start
  int64_t dropped = 0;
  int64_t disk_bytes = 0, disk_most_bytes = 0, disk_files = 0;
  int64_t disk_written_bytes = 0, disk_read_bytes = 0;
  int64_t disk_damaged = 0;  // files that were dropped
  int64_t disk_skipped = 0;  // prompts that were not written: the disk was too slow, or full
};

struct MemoryUse {
  int64_t huge_bytes = 0, anonymous_bytes = 0;  // of the process; huge: on huge pages
  bool huge_pages_allowed = false;
};

// Called with each piece of text; returning false stops the request.
using OnText = std::function<bool(std::string_view)>;

using RequestId = int64_t;

// All may be empty. They run on the thread that steps, between forward passes, and may submit and
// cancel requests (also their own), but not step or call Generate.
struct RequestCallbacks {
  OnText on_text;
  // Each token of the answer, before its text; without Request::logprobs its logprob is 0.
  std::function<void(const Generation::Logprobs&)> on_token;
  // Once per request, after its cache was freed: what it generated, or the error that ended it.
  // Text that was generated before an error has gone to on_text.
  std::function<void(Result<Generation>)> on_done;
  // After each pass of the prompt: prompt tokens processed so far, reused ones included, of all.
  std::function<void(int64_t done, int64_t total)> on_prompt;
};

class Session;  // engine/session.h: the token-level interface that eval, profile and bench are
                // built on

class Engine {
 public:
  static Result<std::unique_ptr<Engine>> Load(const std::string& path,
                                              const EngineOptions& options);
  ~Engine();

  const ModelInfo& info() const;
  const EngineOptions& options() const;

  // Text to ids; `bos` adds BOS where the model does, `special` parses control tokens.
  std::vector<int32_t> Tokenize(std::string_view text, bool bos, bool special) const;
  std::string Detokenize(std::span<const int32_t> tokens, bool special = false) const;
  bool IsEndOfGeneration(int32_t token) const;
  // The bytes of one token, control tokens included; they need not be whole characters.
  std::string TokenBytes(int32_t token) const;
  // The chat template's text for Tokenize(bos = true, special = true): without BOS where Tokenize
  // puts it. Errors: no template, or one that cannot be run or refuses the turns.
  Result<std::string> RenderChat(const std::vector<ChatTurn>& chat) const;
  // Text and tokens of a chat request's prompt.
  Result<ChatPrompt> MakeChatPrompt(const std::vector<ChatTurn>& chat,
                                    const ChatOptions& options = {}) const;

  // For Request::constraint. Errors: a schema that is none, or cannot be enforced. Safe from any
  // thread.
  Result<std::shared_ptr<const Constraint>> CompileGrammar(const GrammarSpec& spec) const;

  // Checks that a plan fits this model; `warnings` may be null.
  Status CheckPlan(const Plan& plan, std::vector<std::string>* warnings) const;
  // Bytes of KV that one decode step reads with `visible` keys: under the plan, and dense.
  Result<double> KvBytesShare(const Plan& plan, int64_t visible) const;
  // Bytes of KV that a sequence of `tokens` tokens holds after its prompt, low-bit copies included:
  // under the plan, and as the model's own caches. Layers that are routed count as full.
  Result<double> KvHeldShare(const Plan& plan, int64_t tokens) const;
  // Bytes of cache under a plan: what that step reads, what a sequence of as many tokens holds.
  Result<ModelInfo::CacheBytes> CacheBytes(const Plan& plan, int64_t visible) const;

  using OnText = baton::OnText;

  // Requests of many callers, step by step. A request that arrives joins the others at the next
  // step, and results equal those of each request alone, bit by bit. Requests that do not fit into
  // kv_tokens beside those in progress wait in order of arrival: a request sets aside as many
  // tokens as its prompt and max_tokens may need, at most all. One that would need more than
  // kv_tokens runs until the cache is full and then ends with an error. A request's failure ends no
  // other.
  //
  // Submit checks and tokenizes; an error means that the request does not exist and nobody will be
  // called. Errors: a bad request, a prompt longer than the context or kv_tokens. Safe from any
  // thread, as is CancelRequest.
  Result<RequestId> Submit(Request request, RequestCallbacks callbacks = {});
  // The error that Submit would return. Safe from any thread.
  Status CheckRequest(const Request& request) const;
  // One forward pass: a part of one request's prompt, or one token of as many requests as a decode
  // pass holds (ModelInfo::decode_rows). False when no request is left. One thread at a time,
  // Generate and GenerateBatch included.
  bool Step();
  // Ends a request at the next step, with what it generated so far (Generation::Stop::kCancelled).
  // Requests that have ended are ignored.
  void CancelRequest(RequestId id);

  // Submits one request and steps until it has ended; submitted requests advance meanwhile. A chat
  // request continues in the cache of the chat before it where they agree.
  Result<Generation> Generate(const Request& request, const OnText& on_text = nullptr);
  // Several requests together. The error of the first that failed, if any did; a bad request is an
  // error before anything runs.
  Result<std::vector<Generation>> GenerateBatch(std::span<const Request> requests);
  // The same with the callbacks of each request, [requests] or empty. Results go to on_done; an
  // error only for bad requests, and then nothing runs and nobody is called.
  Status GenerateBatch(std::span<const Request> requests,
                       std::span<const RequestCallbacks> callbacks);

  // Stops work in progress, all requests included, as soon as the current step ends. Until
  // ResetCancel, so do requests that are submitted. Safe from signal handlers.
  void Cancel();
  void ResetCancel();

  CacheUse cache_use() const;               // as the latest step left it; safe from any thread
  PrefixCacheUse prefix_cache_use() const;  // likewise
  // Empties the prefix cache, but for what running requests use and what is on disk. On the thread
  // that steps.
  void ClearPrefixCache();

  void SetTracing(bool on);  // per-operation times, off by default
  std::vector<OpTime> OpTimes() const;
  static MemoryUse Memory();

  // For the library's own tools.
  struct Impl;
  Impl& impl() { return *impl_; }

 private:
  explicit Engine(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Progress of long work: fraction in [0, 1] and what is being done. May be empty.
using OnProgress = std::function<void(double fraction, std::string_view what)>;

}  // namespace baton
