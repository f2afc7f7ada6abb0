#include "engine/prompt/prefix_cache.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "base/check.h"
#include "base/thread_pool.h"

namespace baton {
namespace {

constexpr int64_t kBlock = KvLayout::kSlots;

int64_t Down(int64_t n, int64_t unit) { return n / unit * unit; }

// Where a ring's pages are kept: as the class's comment says.
std::vector<int64_t> Snapshots(int64_t begin, int64_t end, int64_t fork, int64_t unit) {
  std::vector<int64_t> at = {Down(end, unit), Down(fork, unit)};
  for (int64_t before = unit; before < end; before *= 2) at.push_back(Down(end - before, unit));
  std::erase_if(at, [&](int64_t tokens) { return tokens <= begin; });
  std::sort(at.begin(), at.end());
  at.erase(std::unique(at.begin(), at.end()), at.end());
  return at;
}

std::span<const int32_t> BlockOf(std::span<const int32_t> tokens, int64_t block) {
  return tokens.subspan(static_cast<size_t>(block * kBlock), static_cast<size_t>(kBlock));
}

}  // namespace

std::string CachesKey(const std::vector<CacheSpec>& caches, int64_t rollback) {
  std::string key = fmt::format("rollback {};", rollback);
  for (const CacheSpec& c : caches)
    key += fmt::format("{},{},{},{},{},{},{},{}{};", c.owner, c.kv_input, c.kv_heads, c.head_dim,
                       c.values, c.low_bit, c.sink, c.recent, c.host_rows ? ",host" : "");
  return key;
}

std::string PromptKey(const ResolvedPlan& plan) {
  if (!plan.changes_layers) return "";
  std::string key;
  for (size_t l = 0; l < plan.layers.size(); ++l) {
    const LayerPlan& layer = plan.layers[l];
    if (layer.role == Role::kWindow && layer.in_prompts && layer.at_any_length)
      key += fmt::format("{}:{},{};", l, layer.branches[0].set.sink, layer.branches[0].set.recent);
  }
  // Index sets depend on all of the plan.
  return plan.prefill.sparse ? plan.hash + ";" + key : key;
}

Result<std::unique_ptr<PrefixCache>> PrefixCache::Create(const EngineOptions& options,
                                                         std::string identity) {
  std::unique_ptr<PrefixCache> cache(new PrefixCache());
  cache->identity_ = std::move(identity);
  cache->most_tokens_ = std::min(options.prefix_cache_tokens, options.kv_tokens);
  if (!options.cache_dir.empty()) {
    if (options.backend == Backend::kCuda)
      return Error::Unsupported("a prefix cache on disk needs a backend on the CPU")
          .Hint("leave out --cache-dir");
    BATON_ASSIGN(cache->disk_, PrefixDisk::Open(options.cache_dir, options.cache_dir_bytes));
  }
  cache->Trim(cache->most_tokens_);
  return cache;
}

PrefixCache::~PrefixCache() {
  Clear();
  for (const std::weak_ptr<KvStore>& weak : stores_) {
    if (const auto store = weak.lock()) store->on_full = nullptr;
  }
}

void PrefixCache::Clear() {
  if (disk_) disk_->Written(/*wait=*/true);
  while (tree_.DropOldest()) {
  }
}

std::string PrefixCache::RootKey(const PrefixKey& key) const {
  return key.caches + "|" + key.prompt + "|";
}

std::shared_ptr<KvStore> PrefixCache::StoreOf(const std::string& caches_key) const {
  return tree_.StoreOf(caches_key + "|");
}

void PrefixCache::MakeRoom(KvStore& store, int cache, int64_t pages) {
  const auto drop = [&] {
    while (store.free_pages(cache) < pages && tree_.DropOldest(&store)) {
    }
    tree_.DropPages(store, cache, pages);
  };
  drop();
  if (store.free_pages(cache) >= pages || !disk_) return;
  disk_->Written(/*wait=*/true);  // what is left is being written
  drop();
}

template <typename F>
int64_t PrefixCache::Usable(const Use& use, const KvSequence& kv, int64_t blocks, F&& has) {
  const auto caches = static_cast<int>(use.whole_.size());
  const auto all = [&](int cache, int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      if (!has(b, cache)) return b;
    return end;
  };
  for (int c = 0; c < caches; ++c) {
    if (use.whole_[static_cast<size_t>(c)] && kv.recent(c) == 0) blocks = all(c, 0, blocks);
  }
  for (int64_t tokens = Down(std::min(blocks * kBlock, use.limit_), use.unit_); tokens > 0;
       tokens -= use.unit_) {
    if (tokens < use.least_) return 0;
    bool held = true;
    for (int c = 0; c < caches && held; ++c) {
      if (!use.whole_[static_cast<size_t>(c)] || kv.recent(c) == 0) continue;
      const PageRange dead = kv.Dead(c, tokens);
      const int64_t size = tokens / kBlock;
      held = dead.empty() ? all(c, 0, size) == size
                          : all(c, 0, dead.begin) == dead.begin && all(c, dead.end, size) == size;
    }
    if (held) return tokens;
  }
  return 0;
}

int64_t PrefixCache::InMemory(const Use& use, const KvSequence& kv) {
  return Usable(use, kv, use.path_.size(), [&](int64_t block, int cache) {
    return use.path_[block].pages[static_cast<size_t>(cache)] >= 0;
  });
}

PrefixCache::Use PrefixCache::Find(const Query& q) {
  Use use;
  use.key_ = RootKey(q.key);
  use.unit_ = q.unit;
  use.prompt_tokens_ = std::ssize(q.tokens);
  use.least_ = q.least;
  use.limit_ = std::max<int64_t>(0, Down(std::min(q.most, MostDone(*q.shape, q.prefill)), q.unit));
  use.whole_ = WholeCaches(*q.shape, q.prefill);
  use.seen_.assign(use.whole_.size(), 0);
  PrefixReport& report = use.report_;
  use.path_ = tree_.Find(use.key_, q.tokens, &report.common);
  const int64_t in_tree = use.path_.size();
  if (!use.path_) use.path_ = tree_.Open(use.key_, *q.store);
  // A root of a store that this request does not use: none of its pages are of use.
  if (!use.path_ || &use.path_.store() != q.store->get()) {
    use.path_ = {};
    report.miss = "its caches lie elsewhere";
    return use;
  }
  tree_.HoldPages(use.path_, true);  // until Adopt
  KvStore& store = use.path_.store();
  if (!store.on_full) {
    store.on_full = [this, s = &store](int cache, int64_t pages) { MakeRoom(*s, cache, pages); };
    std::erase_if(stores_, [](const auto& weak) { return weak.expired(); });
    stores_.push_back(*q.store);
  }
  use.hit_ = InMemory(use, *q.kv);
  if (disk_ && use.hit_ < use.limit_) {
    std::string hash = PrefixHash(identity_ + use.key_);
    for (int64_t b = 0; b < use.limit_ / kBlock; ++b) {
      hash = PrefixHash(hash, BlockOf(q.tokens, b));
      if (b >= in_tree && !disk_->Has(hash)) break;
      use.hashes_.push_back(hash);
    }
    const auto in_memory = [&](int64_t block, int cache) {
      return block < in_tree && use.path_[block].pages[static_cast<size_t>(cache)] >= 0;
    };
    const auto blocks = std::ssize(use.hashes_);
    const int64_t tokens = Usable(use, *q.kv, blocks, [&](int64_t block, int cache) {
      return in_memory(block, cache) || disk_->Has(use.hashes_[static_cast<size_t>(block)], cache);
    });
    report.common = std::max(report.common, blocks * kBlock);
    for (int64_t b = 0; b < tokens / kBlock && tokens > use.hit_; ++b) {
      if (b >= in_tree) tree_.Extend(use.path_, BlockOf(q.tokens, b));
      Use::Load load{.block = b, .caches = {}};
      for (int c = 0; c < store.caches(); ++c) {
        const PageRange dead = q.kv->Dead(c, tokens);
        const bool wanted = use.whole_[static_cast<size_t>(c)] && (b < dead.begin || b >= dead.end);
        if (wanted && !in_memory(b, c)) load.caches.push_back(c);
      }
      if (!load.caches.empty()) use.loads_.push_back(std::move(load));
    }
  }
  if (use.limit_ == 0) {
    report.miss =
        fmt::format("fewer than {} tokens before the first whose logits are wanted", q.unit);
  } else if (report.common >= use.limit_) {
    report.miss = "the layers' windows at that place are gone";  // if it was a miss: see Adopt
  } else if (const int64_t most = tree_.MostCommon(q.tokens); most >= report.common + kBlock) {
    report.miss = fmt::format("{} tokens are cached for another plan or router", most);
  } else if (report.common > 0) {
    report.miss = fmt::format("tokens differ, or are new, at {}", report.common);
  } else {
    report.miss = tree_.blocks() > 0 ? "no cached prompt begins like it" : "nothing is cached";
  }
  return use;
}

void PrefixCache::Load(Use& use, std::span<const int32_t> tokens, const KvSequence& kv,
                       int64_t most_tokens, ThreadPool& threads) {
  KvStore& store = use.path_.store();
  struct Read {
    const Use::Load* load = nullptr;
    std::vector<PrefixDisk::Page> wanted;  // [caches]
    std::vector<int32_t> pages;
    std::vector<bool> read;
  };
  std::vector<Read> reads;
  for (int64_t n = 0; n < std::max(most_tokens, kBlock) && use.loading(); n += kBlock) {
    Read r{.load = &use.loads_[use.next_load_++], .wanted = {}, .pages = {}, .read = {}};
    r.wanted.resize(static_cast<size_t>(store.caches()));
    r.pages.assign(r.wanted.size(), -1);
    for (const int c : r.load->caches) {
      const auto i = static_cast<size_t>(c);
      r.pages[i] = store.Take(c);
      if (r.pages[i] >= 0) r.wanted[i] = store.PageBytes(c, r.pages[i]);
    }
    reads.push_back(std::move(r));
  }
  threads.For(std::ssize(reads), [&](int64_t i, int) {
    Read& r = reads[static_cast<size_t>(i)];
    disk_->Read(use.hashes_[static_cast<size_t>(r.load->block)], BlockOf(tokens, r.load->block),
                r.wanted, &r.read);
  });
  bool whole = true;
  for (const Read& r : reads) {
    PrefixBlock& block = use.path_[r.load->block];
    for (const int c : r.load->caches) {
      const auto i = static_cast<size_t>(c);
      whole = whole && r.read[i];
      if (r.pages[i] < 0) continue;
      if (!r.read[i]) {
        store.Drop(c, r.pages[i]);
        continue;
      }
      tree_.Own(block, c, r.pages[i]);
      block.saved[i] = true;
    }
  }
  if (!whole) {
    use.loads_.clear();  // it goes on from what is there
    use.next_load_ = 0;
    use.report_.miss = "its file is damaged or gone";
  }
  if (use.loading()) return;
  const int64_t before = use.hit_;
  use.hit_ = InMemory(use, kv);
  use.report_.from_disk = use.hit_ - before;
}

int64_t PrefixCache::Use::kept() const {
  int64_t least = Down(prompt_tokens_, std::max<int64_t>(1, unit_));
  for (size_t c = 0; c < seen_.size(); ++c)
    if (whole_[c]) least = std::min(least, seen_[c]);
  return least;
}

void PrefixCache::Use::KeepRingsAt(int64_t tokens) {
  const auto at = std::lower_bound(snapshots_.begin(), snapshots_.end(), tokens);
  if (at == snapshots_.end() || *at != tokens) snapshots_.insert(at, tokens);
}

int64_t PrefixCache::Common(const Use& use, std::span<const int32_t> tokens, const Use& other,
                            std::span<const int32_t> other_tokens) {
  if (!use.path_ || !other.path_ || use.key_ != other.key_ || use.unit_ < 1) return 0;
  const int64_t most = std::min({use.limit_, std::ssize(tokens), std::ssize(other_tokens),
                                 Down(other.prompt_tokens_, std::max<int64_t>(1, other.unit_))});
  const auto differ =
      std::mismatch(tokens.begin(), tokens.begin() + most, other_tokens.begin()).first;
  return Down(differ - tokens.begin(), use.unit_);
}

void PrefixCache::Adopt(Use& use, KvSequence& kv) {
  tree_.HoldPages(use.path_, false);
  use.report_.tokens = use.hit_;
  if (use.hit_ >= use.limit_ && use.limit_ > 0) use.report_.miss.clear();
  const std::vector<int64_t> asked = std::exchange(
      use.snapshots_,
      Snapshots(use.hit_, use.prompt_tokens_, use.report_.common, std::max<int64_t>(1, use.unit_)));
  for (const int64_t tokens : asked)
    if (tokens > use.hit_) use.KeepRingsAt(tokens);
  std::fill(use.seen_.begin(), use.seen_.end(), use.hit_);
  if (use.hit_ == 0) return;
  std::vector<std::vector<int32_t>> pages(use.whole_.size());
  const int64_t blocks = use.hit_ / kBlock;
  for (size_t c = 0; c < pages.size(); ++c) {
    if (!use.whole_[c]) continue;
    const PageRange dead = kv.Dead(static_cast<int>(c), use.hit_);
    for (int64_t b = 0; b < blocks; ++b)
      pages[c].push_back(b >= dead.begin && b < dead.end ? -1 : use.path_[b].pages[c]);
  }
  kv.Adopt(use.hit_, pages);
}

void PrefixCache::Keep(Use& use, std::span<const int32_t> tokens, const KvSequence& kv) {
  if (!use.path_) return;
  const int64_t last = Down(use.prompt_tokens_, use.unit_);
  for (size_t i = 0; i < use.whole_.size(); ++i) {
    const int c = static_cast<int>(i);
    const int64_t begin = use.seen_[i], end = Down(std::min(kv.length(c), last), kBlock);
    if (!use.whole_[i] || end <= begin) continue;
    use.seen_[i] = end;
    while (use.path_.size() < end / kBlock)
      tree_.Extend(use.path_, BlockOf(tokens, use.path_.size()));
    const KvView view = kv.HostView(c);
    const auto share = [&](int64_t from, int64_t to) {
      for (int64_t b = from; b < to; ++b)
        if (view.pages[b] >= 0) tree_.Share(use.path_[b], c, view.pages[b]);
    };
    if (kv.recent(c) == 0) {
      share(begin / kBlock, end / kBlock);
      continue;
    }
    for (const int64_t at : use.snapshots_) {
      if (at <= begin || at > end) continue;
      const PageRange dead = kv.Dead(c, at);
      share(0, dead.empty() ? 0 : dead.begin);
      share(dead.empty() ? 0 : dead.end, at / kBlock);
    }
  }
}

PrefixCache::Routed PrefixCache::Nearest(const PrefixKey& begins, std::span<const int32_t> tokens,
                                         int64_t block) {
  const std::string key = tree_.Nearest(begins.caches + "|" + begins.prompt, tokens);
  if (key.empty()) return {};
  const PrefixPath path = tree_.Find(key, tokens, nullptr);
  if (path.size() <= block) return {};
  const auto at = static_cast<int64_t>(begins.caches.size()) + 1;
  return {std::string(key.begin() + at, key.end() - 1), path[block].state};
}

void PrefixCache::Settle(Use& use, const PrefixKey& key, int64_t block,
                         std::shared_ptr<const void> state) {
  if (!use.path_) return;
  const std::string to = RootKey(key);
  if (to != use.key_) tree_.Move(use.path_, to);
  use.key_ = to;
  if (use.path_.size() > block) use.path_[block].state = std::move(state);
}

void PrefixCache::Save(Use& use) {
  if (!disk_ || !use.path_) return;
  KvStore& store = use.path_.store();
  PrefixDisk::Job job;
  std::string before = PrefixHash(identity_ + use.key_);
  for (int64_t b = 0; b < use.path_.size(); ++b) {
    PrefixBlock& block = use.path_[b];
    PrefixFileBlock out{.tokens = block.tokens,
                        .has = std::vector<uint8_t>(static_cast<size_t>(store.caches())),
                        .checksums = {}};
    std::vector<PrefixDisk::Page> pages;
    const std::string hash = PrefixHash(before, block.tokens);
    for (int c = 0; c < store.caches(); ++c) {
      const auto i = static_cast<size_t>(c);
      if (block.pages[i] < 0 || block.saved[i] || disk_->Has(hash, c)) continue;
      out.has[i] = 1;
      pages.push_back(store.PageBytes(c, block.pages[i]));
    }
    if (pages.empty() && job.pages.empty()) {  // it is there already
      before = hash;
      job.header.first_block = b + 1;
      continue;
    }
    if (job.pages.empty()) job.header.before = before;
    before = hash;
    job.header.blocks.push_back(std::move(out));
    job.pages.push_back(std::move(pages));
    job.hashes.push_back(hash);
  }
  if (job.pages.empty()) return;
  job.header.key = identity_ + use.key_;
  for (int c = 0; c < store.caches(); ++c)
    job.header.page_bytes.push_back(store.layout(c).arena_bytes(1));
  job.path = use.path_.Copy();
  tree_.HoldPages(job.path, true);
  if (!disk_->Save(std::move(job))) return;
  for (int64_t b = 0; b < use.path_.size(); ++b) {
    PrefixBlock& block = use.path_[b];
    for (size_t c = 0; c < block.saved.size(); ++c) block.saved[c] = block.pages[c] >= 0;
  }
}

void PrefixCache::Count(const Use& use) {
  const std::lock_guard lock(mutex_);
  use_.queries += use.prompt_tokens_;
  use_.hits += use.report_.tokens;
  use_.hits_from_disk += use.report_.from_disk;
}

void PrefixCache::Trim(int64_t tokens) {
  if (disk_) disk_->Written(/*wait=*/false);
  const int64_t before = tree_.blocks();
  while (tree_.unpinned() * kBlock > std::min(tokens, most_tokens_) && tree_.DropOldest()) {
  }
  const PrefixDisk::Counts disk = disk_ ? disk_->counts() : PrefixDisk::Counts{};
  const std::lock_guard lock(mutex_);
  use_.held = tree_.blocks() * kBlock;
  use_.most = most_tokens_;
  use_.dropped += (before - tree_.blocks()) * kBlock;
  use_.disk_bytes = disk.bytes;
  use_.disk_most_bytes = disk.most_bytes;
  use_.disk_files = disk.files;
  use_.disk_written_bytes = disk.written_bytes;
  use_.disk_read_bytes = disk.read_bytes;
  use_.disk_damaged = disk.damaged;
  use_.disk_skipped = disk.skipped;
}

PrefixCacheUse PrefixCache::use() const {
  const std::lock_guard lock(mutex_);
  return use_;
}

}  // namespace baton
