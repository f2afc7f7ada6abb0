#include "kv/kv_store.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace baton {
namespace {

constexpr int64_t kMaxTokens = int64_t{1} << 36;  // page ids are 31 bits

bool SameLayout(const KvLayout& a, const KvLayout& b) {
  return a.dtype == b.dtype && a.kv_heads == b.kv_heads && a.head_dim == b.head_dim &&
         a.low_bit == b.low_bit && a.row_bytes() == b.row_bytes();
}

Status CheckSpec(const KvCacheSpec& spec, size_t cache) {
  const KvLayout& l = spec.layout;
  if (l.dtype != DType::kF32 && l.dtype != DType::kBF16 && l.dtype != DType::kI8) {
    return Error::Unsupported("KV cache {}: element type is F32, BF16 or I8, got {}", cache,
                              Info(l.dtype).name);
  }
  if (l.kv_heads < 1)
    return Error::InvalidArgument("KV cache {}: at least 1 KV head, got {}", cache, l.kv_heads);
  const int multiple = l.low_bit ? 32 : 16;
  if (l.head_dim < 1 || l.head_dim % multiple != 0) {
    return Error::Unsupported("KV cache {}: head size is a multiple of {}, got {}", cache, multiple,
                              l.head_dim);
  }
  const int64_t least = std::min({spec.sink, spec.recent, spec.rollback});
  if (least < 0 || std::max({spec.sink, spec.recent, spec.rollback}) > kMaxTokens) {
    return Error::InvalidArgument(
        "KV cache {}: sink, recent and rollback tokens are between 0 and {}, got {}, {} and {}",
        cache, kMaxTokens, spec.sink, spec.recent, spec.rollback);
  }
  return Status::Ok();
}

}  // namespace

int64_t KvTokenBytes(const KvLayout& layout) {
  return layout.row_bytes() + (layout.scales_bytes() + layout.low_bit_bytes()) / KvLayout::kSlots;
}

Result<std::unique_ptr<KvStore>> KvStore::Create(std::vector<KvCacheSpec> caches,
                                                 int64_t max_tokens, KvStoreOptions options) {
  if (caches.empty()) return Error::InvalidArgument("KV cache: at least 1 cache, got 0");
  if (max_tokens < 1 || max_tokens > kMaxTokens) {
    return Error::InvalidArgument("KV cache: between 1 and {} tokens, got {}", kMaxTokens,
                                  max_tokens);
  }
  for (size_t c = 0; c < caches.size(); ++c) {
    BATON_TRY(CheckSpec(caches[c], c));
    if (options.alias_bytes > 0 && !SameLayout(caches[c].layout, caches[0].layout)) {
      return Error::InvalidArgument(
          "KV cache: aliased caches need equal layouts, cache {} differs from cache 0", c);
    }
  }
  const int64_t pages = (max_tokens + KvLayout::kSlots - 1) / KvLayout::kSlots;
  const int64_t arena_bytes = caches[0].layout.arena_bytes(pages);
  size_t count = caches.size();
  if (options.alias_bytes > 0)
    count = std::min(count, static_cast<size_t>((options.alias_bytes - 1) / arena_bytes + 1));
  std::vector<Arena> arenas(count);
  for (size_t c = 0; c < count; ++c) {
    const KvLayout& l = caches[c].layout;
    Device& device = *options.device;
    Status reserved = [&]() -> Status {
      BATON_ASSIGN(arenas[c].pages,
                   Buffer::Reserve(pages * l.page_bytes(),
                                   caches[c].host_rows ? device.host_memory() : device));
      if (l.low_bit) {
        BATON_ASSIGN(arenas[c].low_bits, Buffer::Reserve(pages * l.low_bit_bytes(), device));
      }
      return Status::Ok();
    }();
    if (!reserved.ok()) {
      return std::move(reserved)
          .error()
          .At(fmt::format("KV cache {} of {} tokens", c, max_tokens))
          .Hint("lower --context or use an 8-bit cache");
    }
  }
  return std::unique_ptr<KvStore>(
      new KvStore(std::move(caches), std::move(arenas), pages, *options.device));
}

KvStore::KvStore(std::vector<KvCacheSpec> specs, std::vector<Arena> arenas, int64_t pages,
                 Device& device)
    : device_(device),
      specs_(std::move(specs)),
      arenas_(std::move(arenas)),
      pools_(specs_.size(), PagePool(pages)) {
  for (int a = 0; a < this->arenas(); ++a) page_bytes_ += layout(a).arena_bytes(1);
}

KvStore::~KvStore() {
  for (const PagePool& p : pools_) BATON_CHECK_EQ(p.used_pages(), 0);
}

KvSequence KvStore::NewSequence() { return KvSequence(this); }

int64_t KvStore::free_tokens() const {
  int64_t pages = pools_[0].free_pages();
  for (const PagePool& p : pools_) pages = std::min(pages, p.free_pages());
  return pages * KvLayout::kSlots;
}

int64_t KvStore::bytes_in_use() const {
  int64_t bytes = 0;
  for (int a = 0; a < arenas(); ++a) {
    int64_t pages = 0;
    for (int c = a; c < caches(); c += arenas()) pages = std::max(pages, pool(c).used_pages());
    bytes += layout(a).arena_bytes(pages);
  }
  return bytes;
}

bool KvStore::MakeRoom(int cache, int64_t pages) {
  if (pool(cache).free_pages() < pages && on_full) on_full(cache, pages);
  return pool(cache).free_pages() >= pages;
}

int32_t KvStore::Take(int cache) {
  return MakeRoom(cache, 1) && Commit(cache, 1).ok() ? pool(cache).Acquire() : -1;
}

void KvStore::Drop(int cache, int32_t page) {
  pool(cache).Release(page);
  ReturnIdle(cache);
}

std::array<std::span<std::byte>, 2> KvStore::PageBytes(int cache, int32_t page) {
  const KvLayout& l = layout(cache);
  const auto of = [page](const Buffer& pages, int64_t bytes) {
    return std::span(pages.data() + page * bytes, static_cast<size_t>(bytes));
  };
  return {of(arena(cache).pages, l.page_bytes()), of(arena(cache).low_bits, l.low_bit_bytes())};
}

Status KvStore::Commit(int cache, int64_t pages) {
  const PagePool& p = pool(cache);
  const KvLayout& l = layout(cache);
  const PageRange next = p.Next(pages);
  BATON_TRY(arena(cache).pages.Commit(next.begin * l.page_bytes(), next.size() * l.page_bytes()));
  return arena(cache).low_bits.Commit(next.begin * l.low_bit_bytes(),
                                      next.size() * l.low_bit_bytes());
}

void KvStore::ReturnIdle(int cache) {
  if (aliased()) return;  // a page that is free in this cache may be taken in another
  PagePool& p = pool(cache);
  const KvLayout& l = layout(cache);
  for (const PageRange& idle : p.CollectIdle()) {
    int64_t returned =
        arena(cache).pages.Discard(idle.begin * l.page_bytes(), idle.size() * l.page_bytes());
    if (l.low_bit) {
      returned += arena(cache).low_bits.Discard(idle.begin * l.low_bit_bytes(),
                                                idle.size() * l.low_bit_bytes());
    }
    // The 2 MiB at the ends of a stretch, shared with taken pages, are returned when those are
    // free.
    if (returned > 0) p.MarkReturned(idle);
  }
}

}  // namespace baton
