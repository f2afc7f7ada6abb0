// The KV cache: one arena per layer (its pages, then their low-bit copies), one page table per
// sequence. A page id means the same page number in the arena of every layer, so all layers of a
// sequence share one table (a single kv_group).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/buffer.h"
#include "baton/error.h"
#include "kv/page.h"
#include "kv/page_pool.h"

namespace baton {

class KvSequence;
class ThreadPool;

struct KvStoreOptions {
  // Layers share arenas, no more of them than hold this many bytes (at least one): what one layer
  // writes others see. Only for timing shapes whose cache would not fit; the outputs mean nothing.
  // Needs equal layouts. 0: every layer has its own.
  int64_t alias_bytes = 0;
};

class KvStore {
 public:
  // Reserves address space for `max_tokens` (rounded up to pages) of every layer; memory is used
  // when first touched. Errors: no layers, a layout without heads or with a head size that is not a
  // positive multiple of 16 (of 32 with a low-bit copy), a dtype other than F32, BF16 and I8,
  // max_tokens < 1, layers that differ under alias_bytes, address space.
  static Result<std::unique_ptr<KvStore>> Create(std::vector<KvLayout> per_layer,
                                                 int64_t max_tokens, KvStoreOptions options = {});
  ~KvStore();  // every sequence must be gone
  KvStore(const KvStore&) = delete;

  // An empty sequence. The store must outlive it.
  KvSequence NewSequence();

  int layers() const { return static_cast<int>(layouts_.size()); }
  // Layer l lies in arena l % arenas().
  int arenas() const { return static_cast<int>(arenas_.size()); }
  bool aliased() const { return arenas() < layers(); }
  const KvLayout& layout(int layer) const { return layouts_[static_cast<size_t>(layer)]; }
  int64_t max_tokens() const { return pool_.max_pages() * KvLayout::kSlots; }
  int64_t free_tokens() const { return pool_.free_pages() * KvLayout::kSlots; }
  // Memory of the pages that sequences hold, all layers; shared arenas count once.
  int64_t bytes_in_use() const { return pool_.used_pages() * page_bytes_; }
  // Memory that one token takes, all layers, low-bit copies included; shared arenas count once.
  double bytes_per_token() const { return static_cast<double>(page_bytes_) / KvLayout::kSlots; }

 private:
  friend class KvSequence;
  KvStore(std::vector<KvLayout> layouts, std::vector<Buffer> arenas, int64_t pages);

  std::vector<KvLayout> layouts_;
  std::vector<Buffer> arenas_;  // one per layer, or fewer
  PagePool pool_;
  int64_t page_bytes_ = 0;  // of one page id, summed over the arenas
};

// The cache of one sequence: positions [0, length()) have room in every layer. Movable; releases
// its pages when destroyed.
class KvSequence {
 public:
  KvSequence() = default;  // of no store: only to be assigned to
  KvSequence(KvSequence&& o) noexcept;
  KvSequence& operator=(KvSequence&& o) noexcept;
  KvSequence(const KvSequence&) = delete;
  ~KvSequence();

  // Makes room for positions [0, tokens) and sets length() to at least that. Error::Resource when
  // the store is full, and then nothing has changed. Invalidates views made before.
  Status Reserve(int64_t tokens);
  // Shortens to `tokens` (no effect when already shorter) and releases the pages past it. What the
  // released pages held is gone; the kept positions are unchanged.
  void Truncate(int64_t tokens);

  int64_t length() const { return length_; }
  // The first `length` positions of a layer, length <= length(). Valid until the next Reserve,
  // Truncate or move.
  KvView View(int layer, int64_t length) const;
  KvView View(int layer) const { return View(layer, length_); }

 private:
  friend class KvStore;
  explicit KvSequence(KvStore* store) : store_(store) {}

  KvStore* store_ = nullptr;
  std::vector<int32_t> pages_;
  int64_t length_ = 0;
};

// Makes the sequence `length` tokens long and fills K, V, int8 scales and low-bit copies of K of
// all positions and layers with repeatable, roughly normal values (deviation about 1), so that
// decode can be timed at any depth without a prefill. The values depend on seed, layer and position
// only. Runs on `threads` when given.
Status FillSynthetic(KvStore& store, KvSequence& sequence, int64_t length, uint64_t seed,
                     ThreadPool* threads = nullptr);

}  // namespace baton
