// Prompts that begin like an earlier one go on from its cache, with the bits of a run without it.
//
// A prompt's K and V at a position depend on the tokens up to it, the model, what the plan or the
// router changes in prompts, and how passes cut rows into tiles. The first is the path in the tree,
// the others are the key of its root, and the last decides where a prompt may go on: at multiples
// of `unit`, where passes can be cut without changing a bit. Answers do not enter: a decoded row
// has other bits than a prompt's.
//
// Of a ring a block has pages only where a snapshot was taken: at the prompt's end, at distances
// before it that double, and where an earlier prompt went another way. So of a prompt that differs
// in its last n tokens about 2 n are processed again.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "baton/engine.h"
#include "engine/prompt/prefix_disk.h"
#include "kv/prefix_tree.h"
#include "plan/prefill_schedule.h"
#include "plan/resolved.h"

namespace baton {

// What decides the pages of a prompt.
struct PrefixKey {
  std::string caches;  // the store: which caches, how long their tokens live
  std::string prompt;  // what a plan or a router changes in prompts; empty: nothing
  bool operator==(const PrefixKey&) const = default;
};
std::string CachesKey(const std::vector<CacheSpec>& caches, int64_t rollback);
// Of a plan whose layers are decided.
std::string PromptKey(const ResolvedPlan& plan);

class PrefixCache {
 public:
  // `identity`: the model and all else that one process does not change. `unit` as above.
  static Result<std::unique_ptr<PrefixCache>> Create(const EngineOptions& options,
                                                     std::string identity);
  ~PrefixCache();

  // One request's part in the cache, until its prompt is done.
  class Use {
   public:
    Use() = default;
    Use(Use&&) = default;
    Use& operator=(Use&&) = default;
    bool loading() const { return next_load_ < loads_.size(); }
    void Miss(std::string why) { report_.miss = std::move(why); }
    int64_t hit() const { return hit_; }
    // Tokens whose pages Keep has passed in every cache.
    int64_t kept() const;
    // A ring's pages are kept there too, if Keep comes to that place.
    void KeepRingsAt(int64_t tokens);
    const PrefixReport& report() const { return report_; }

   private:
    friend class PrefixCache;
    struct Load {
      int64_t block = 0;
      std::vector<int> caches;
    };
    std::string key_;
    int64_t unit_ = 0, least_ = 0, limit_ = 0, prompt_tokens_ = 0;
    std::vector<bool> whole_;  // [caches] see WholeCaches
    PrefixPath path_;
    int64_t hit_ = 0;
    std::vector<Load> loads_;
    size_t next_load_ = 0;
    std::vector<std::string> hashes_;  // by block, of as many as were looked up on disk
    std::vector<int64_t> seen_;        // [caches] tokens that Keep has passed
    std::vector<int64_t> snapshots_;   // of rings: tokens, ascending
    PrefixReport report_;
  };
  struct Query {
    PrefixKey key;
    const std::shared_ptr<KvStore>* store = nullptr;
    const KvSequence* kv = nullptr;  // empty, with the lifetimes that the prompt runs under
    std::span<const int32_t> tokens;
    const ModelShape* shape = nullptr;
    PrefillRequest prefill;  // of the whole prompt
    // Tokens that go on from the cache: no more than `most`, and none if fewer than `least`.
    int64_t least = 0, most = int64_t{1} << 60;
    int64_t unit = 0;
  };
  // The longest beginning that is cached. What is on disk is read by Load, step by step, while
  // loading(); then Adopt gives the sequence its pages.
  Use Find(const Query& query);
  void Load(Use& use, std::span<const int32_t> tokens, const KvSequence& kv, int64_t most_tokens,
            ThreadPool& threads);
  void Adopt(Use& use, KvSequence& kv);
  // The tokens that `use` could go on from, once another prompt of the same key has kept them.
  static int64_t Common(const Use& use, std::span<const int32_t> tokens, const Use& other,
                        std::span<const int32_t> other_tokens);
  // After a pass of the prompt, before its rings drop anything: takes part in the pages that are
  // complete.
  void Keep(Use& use, std::span<const int32_t> tokens, const KvSequence& kv);
  // For prompts whose key is known at their end alone. Nearest: of the keys that begin with this,
  // the one with the longest beginning, and the state that Settle put at the block; an empty prompt
  // key: none. Settle moves what was kept to the key, and puts the state there.
  struct Routed {
    std::string prompt;
    std::shared_ptr<const void> state;
  };
  Routed Nearest(const PrefixKey& begins, std::span<const int32_t> tokens, int64_t block);
  // Forget drops what a prompt kept that never came to its end.
  void Forget(Use& use) { tree_.Forget(std::move(use.path_)); }
  void Settle(Use& use, const PrefixKey& key, int64_t block, std::shared_ptr<const void> state);
  // After the prompt: writes to disk what is not there.
  void Save(Use& use);
  void Count(const Use& use);

  // Drops what was used least recently until no more than `tokens` are held beside running
  // requests; lets go of what has been written to disk.
  void Trim(int64_t tokens);
  void Clear();

  std::shared_ptr<KvStore> StoreOf(const std::string& caches_key) const;
  PrefixCacheUse use() const;  // from any thread, as the latest Trim left it

 private:
  PrefixCache() = default;
  std::string RootKey(const PrefixKey& key) const;
  // The most tokens, up to `limit`, whose pages `has(block, cache)` has, of `blocks` blocks.
  template <typename F>
  static int64_t Usable(const Use& use, const KvSequence& kv, int64_t blocks, F&& has);
  static int64_t InMemory(const Use& use, const KvSequence& kv);
  void MakeRoom(KvStore& store, int cache, int64_t pages);

  std::string identity_;
  int64_t most_tokens_ = 0;
  PrefixTree tree_;
  std::unique_ptr<PrefixDisk> disk_;
  std::vector<std::weak_ptr<KvStore>> stores_;  // whose on_full is ours
  mutable std::mutex mutex_;                    // guards use_
  PrefixCacheUse use_;
};

}  // namespace baton
