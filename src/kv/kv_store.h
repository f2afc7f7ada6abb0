// The KV cache. A cache has a layout and a lifetime, whatever reads it: one layer, many layers, an
// indexer. The store has per cache an arena of pages, one of their low-bit copies and a pool of
// page ids; a sequence has per cache a page table and a length.
//
// Sequences that begin alike may share pages, with each other and with a prefix tree
// (kv/prefix_tree.h). A shared page is not written: who would append to one gets a copy first.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/buffer.h"
#include "baton/error.h"
#include "kv/page.h"
#include "kv/page_pool.h"

namespace baton {

class KvSequence;
class ThreadPool;

struct KvCacheSpec {
  KvLayout layout;
  // Lifetime. recent = 0 keeps every token. Otherwise the cache is a ring: the row at position m
  // reads positions n <= m with n < sink or n > m - recent (arXiv 2604.07394), the rest is dropped.
  int64_t sink = 0;
  int64_t recent = 0;
  // Tokens by which a sequence may be cut back after Evict; a ring holds that many more.
  int64_t rollback = 0;
  // The pages lie in the device's host_memory(); low-bit copies stay in its own.
  bool host_rows = false;
};

// Bytes of one token: K, V (where the layout has them), int8 scales and low-bit copy.
int64_t KvTokenBytes(const KvLayout& layout);

struct KvStoreOptions {
  // Caches share arenas: at least one, and no more than fit into this many bytes, so that a write
  // to one cache changes others. Only for timing shapes whose caches would not fit; the outputs
  // mean nothing. Needs equal layouts. 0: every cache has its own.
  int64_t alias_bytes = 0;
  // The device whose memory holds the caches and the page tables of views.
  Device* device = &Device::Host();
};

class KvStore {
 public:
  // Reserves address space for `max_tokens` (rounded up to pages) of every cache; memory is used by
  // the pages that were handed out. Errors: no caches, a layout without heads or with a head size
  // that is not a positive multiple of 16 (of 32 with a low-bit copy), a dtype other than F32, BF16
  // and I8, a lifetime out of range, max_tokens < 1, layouts that differ under alias_bytes, address
  // space.
  static Result<std::unique_ptr<KvStore>> Create(std::vector<KvCacheSpec> caches,
                                                 int64_t max_tokens, KvStoreOptions options = {});
  ~KvStore();  // every sequence must be gone
  KvStore(const KvStore&) = delete;

  // An empty sequence. The store must outlive it.
  KvSequence NewSequence();

  Device& device() const { return device_; }
  int caches() const { return static_cast<int>(specs_.size()); }
  // Cache c is in arena c % arenas().
  int arenas() const { return static_cast<int>(arenas_.size()); }
  bool aliased() const { return arenas() < caches(); }
  const KvCacheSpec& spec(int cache) const { return specs_[static_cast<size_t>(cache)]; }
  const KvLayout& layout(int cache) const { return spec(cache).layout; }
  int64_t max_tokens() const { return pools_[0].max_pages() * KvLayout::kSlots; }
  // The number of tokens that still fit into every cache.
  int64_t free_tokens() const;
  // Memory of the pages that sequences hold, all caches; a shared arena counts its fullest cache.
  int64_t bytes_in_use() const;
  // Memory that one token takes while all caches keep it, low-bit copies included; shared arenas
  // count once.
  double bytes_per_token() const { return static_cast<double>(page_bytes_) / KvLayout::kSlots; }

  // Pages held beside the sequences. Hold: a taken page has one holder more. Take: an unused page
  // for a holder that fills it, -1 if the cache is full. Drop: one holder less.
  void Hold(int cache, int32_t page) { pool(cache).Share(page); }
  int32_t Take(int cache);
  void Drop(int cache, int32_t page);
  int holders(int cache, int32_t page) const { return pool(cache).holders(page); }
  int64_t free_pages(int cache) const { return pool(cache).free_pages(); }
  // A page's bytes in the device's memory: rows and scales, then its low-bit copy (may be empty).
  std::array<std::span<std::byte>, 2> PageBytes(int cache, int32_t page);
  // Called when a cache has fewer free pages than are wanted; it may drop some.
  std::function<void(int cache, int64_t pages)> on_full;

 private:
  friend class KvSequence;
  struct Arena {
    Buffer pages, low_bits;
  };
  KvStore(std::vector<KvCacheSpec> specs, std::vector<Arena> arenas, int64_t pages, Device& device);

  Arena& arena(int cache) { return arenas_[static_cast<size_t>(cache % arenas())]; }

  const PagePool& pool(int cache) const { return pools_[static_cast<size_t>(cache)]; }
  PagePool& pool(int cache) { return pools_[static_cast<size_t>(cache)]; }
  // Gives memory to the pages that a cache hands out next. Errors: Resource.
  Status Commit(int cache, int64_t pages);
  // Returns free 2 MiB stretches of a cache's arena to the system if enough pages are idle.
  void ReturnIdle(int cache);
  bool MakeRoom(int cache, int64_t pages);

  Device& device_;
  std::vector<KvCacheSpec> specs_;
  std::vector<Arena> arenas_;    // one per cache, or fewer
  std::vector<PagePool> pools_;  // one per cache
  int64_t page_bytes_ = 0;       // of one page id, summed over the arenas
};

// The caches of one sequence. Its length() is the positions that the caller has announced with
// Reserve(tokens); every cache has room for those. A cache's own length runs ahead of it while a
// prompt is processed cache by cache. Movable; releases its pages when destroyed.
//
// A sequence begins with the lifetimes of the specs. Pages are held whole: 64 positions from a
// multiple of 64.
class KvSequence {
 public:
  KvSequence() = default;  // of no store: only to be assigned to
  KvSequence(KvSequence&& o) noexcept;
  KvSequence& operator=(KvSequence&& o) noexcept;
  KvSequence(const KvSequence&) = delete;
  ~KvSequence();

  // Makes room for the positions up to `tokens` in every cache and sets length() to at least that.
  // Error::Resource when a cache is full or the device's memory is, and then nothing has changed in
  // any. Rings drop nothing
  // before Evict, so that all rows of a pass find their windows. Invalidates views made before.
  Status Reserve(int64_t tokens);
  // Makes room for positions [begin, end) of one cache and sets length(cache) to at least `end`;
  // length() stays. Errors as above.
  //
  // `begin` past length(cache) starts a ring inside the sequence: the positions between are not
  // allocated, except those that rows from `begin` on read (the recent - 1 below it, and sinks),
  // which are zero bytes. Results of rows that attend to them are not what the model defines, and
  // the caller discards them. Only for rings.
  Status Reserve(int cache, int64_t begin, int64_t end);
  // For a ring that started inside the sequence: its tokens below `end`, at most length(cache),
  // were computed from a truncated window. No Truncate may make later rows read them.
  void MarkInexact(int cache, int64_t end);

  // Fills an empty sequence with pages that others hold too, and becomes one more holder: the first
  // `tokens` positions, a multiple of 64. pages[cache]: [tokens / 64], -1 where a ring holds none
  // (one stretch, within Dead(cache, tokens)); empty for a cache that stays empty.
  void Adopt(int64_t tokens, std::span<const std::vector<int32_t>> pages);
  // The pages that a sequence of `length` tokens need not hold under its present lifetimes.
  PageRange Dead(int cache, int64_t length) const;

  // From now on this sequence's cache has a narrower lifetime (the next Evict drops what it no
  // longer keeps). A wider one is a bug once tokens are gone. recent = 0: every token.
  void Keep(int cache, int64_t sink, int64_t recent);
  // Releases the pages that hold no position < sink and none among the last `recent` (and as many
  // more as the spec's rollback): no row from length(cache) on reads those. For after a forward
  // pass, when all readers of the cache are done. O(pages released), or O(caches) when there are
  // none. Invalidates views made before.
  void Evict(int cache);
  void Evict();

  // Whether all caches can be cut back to `tokens`: rings must still hold, as real tokens, the
  // position before the cut and what the row at the cut reads. True where there is nothing to cut.
  bool CanTruncate(int64_t tokens) const;
  // Shortens the sequence and all its caches to `tokens` (no effect on what is already shorter) and
  // releases the pages past it; CanTruncate must hold. What the released pages held is gone; the
  // kept positions are unchanged. Truncate(0) also returns to the lifetimes of the specs.
  void Truncate(int64_t tokens);

  // Token ids by position, for models whose embedding also reads the token before.
  void KeepTokens(int64_t position, std::span<const int32_t> tokens);
  // -1 at the start. Tokens of positions that were filled without any are 0.
  int32_t TokenBefore(int64_t position) const;

  int64_t length() const { return length_; }
  int64_t length(int cache) const { return at(cache).length; }
  int64_t sink(int cache) const { return at(cache).sink; }
  int64_t recent(int cache) const { return at(cache).recent; }

  // The number of tokens that the row at length(cache) - 1 reads: min(length, sink + recent) for
  // rings (arXiv 2604.07394), otherwise all. Zeros below a ring's start count.
  int64_t held_tokens(int cache) const;
  int64_t held_bytes() const;  // of held tokens, all caches
  // Bytes of held pages, all caches: after Evict at most two pages per ring more than the held
  // tokens need.
  int64_t allocated_bytes() const;

  // The first `length` positions of a cache, length <= length(cache). Table entries of pages that
  // are not held are -1. Valid until the next Reserve, Evict, Truncate or move; device operations
  // that were called by then are not affected.
  KvView View(int cache, int64_t length) const;
  KvView View(int cache) const { return View(cache, length(cache)); }
  // The whole cache, its page table on the host: what the host computes addresses from.
  KvView HostView(int cache) const;

 private:
  friend class KvStore;
  friend Status FillSynthetic(KvStore&, KvSequence&, int64_t, uint64_t, ThreadPool*);

  struct Cache {
    int64_t sink = 0, recent = 0;
    int64_t length = 0;
    std::vector<int32_t> pages;  // by position / 64
    Array<int32_t> table;        // a copy in the device's memory, where that is not the host's
    PageRange hole;              // entries that are -1; all others are held
    // Positions below a ring's start that no token was written to, or none that is exact.
    int64_t gap_begin = 0, gap_end = 0;

    int64_t size() const { return static_cast<int64_t>(pages.size()); }
    int64_t held_pages() const { return size() - hole.size(); }
  };

  explicit KvSequence(KvStore* store);
  Cache& at(int cache) { return caches_[static_cast<size_t>(cache)]; }
  const Cache& at(int cache) const { return caches_[static_cast<size_t>(cache)]; }
  static bool CanTruncate(const Cache& c, int64_t tokens);
  // Before positions from length(cache) on are written: they may lie in a page that others hold.
  // False if there is no page for the copy.
  bool CopyShared(int cache);
  Status FullError(int cache, int64_t tokens) const;
  // Holds the pages [0, size) except `hole`, which includes the present one. There must be room.
  void Reshape(int cache, PageRange hole, int64_t size);
  void UploadTable(int cache, PageRange changed);
  Status StartRing(int cache, int64_t begin, int64_t end);
  void Zero(int cache, int64_t begin, int64_t end, int64_t first_new_page);
  // Becomes `tokens` long under the present lifetimes, holding only what later rows read. Content
  // is undefined. Errors as Reserve's.
  Status Resize(int64_t tokens);

  KvStore* store_ = nullptr;
  std::vector<Cache> caches_;
  int64_t length_ = 0;
  std::vector<int32_t> tokens_;  // what KeepTokens was given; those past length() are of no use
};

// Makes the sequence `length` tokens long under its present lifetimes and fills K, V, int8 scales
// and low-bit copies of K of all held pages with repeatable, roughly normal values (deviation about
// 1), so that decode can be timed at any depth without a prefill. The values depend on seed, cache
// and position only. Of caches that share an arena the one with the most pages is filled. Runs on
// `threads` when given.
Status FillSynthetic(KvStore& store, KvSequence& sequence, int64_t length, uint64_t seed,
                     ThreadPool* threads = nullptr);

}  // namespace baton
