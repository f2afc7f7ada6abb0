// Page tables. A cache of a sequence holds the pages [0, size) except one hole, which begins after
// the sink and only grows while the sequence does. So one primitive (Reshape) releases and takes
// pages, and touches only those that change.
#include <algorithm>
#include <span>
#include <utility>

#include "base/check.h"
#include "kv/kv_store.h"

namespace baton {
namespace {

PageRange Union(PageRange hole, PageRange more) {
  if (hole.empty()) return more;
  if (more.empty()) return hole;
  return {std::min(hole.begin, more.begin), std::max(hole.end, more.end)};
}

}  // namespace

PageRange KvSequence::Dead(int cache, int64_t length) const {
  const Cache& c = at(cache);
  const int64_t recent = c.recent + store_->spec(cache).rollback;
  if (c.recent == 0 || length <= recent) return {};
  const PageRange dead{PagesOf(c.sink), (length - recent) / KvLayout::kSlots};
  return dead.empty() ? PageRange{} : dead;
}

KvSequence::KvSequence(KvStore* store) : store_(store) {
  for (int c = 0; c < store->caches(); ++c) {
    caches_.push_back({.sink = store->spec(c).sink,
                       .recent = store->spec(c).recent,
                       .table = Array<int32_t>(store->device())});
  }
}

KvSequence::KvSequence(KvSequence&& o) noexcept
    : store_(std::exchange(o.store_, nullptr)),
      caches_(std::move(o.caches_)),
      length_(std::exchange(o.length_, 0)),
      tokens_(std::exchange(o.tokens_, {})) {
  o.caches_.clear();
}

KvSequence& KvSequence::operator=(KvSequence&& o) noexcept {
  if (this == &o) return *this;
  Truncate(0);
  store_ = std::exchange(o.store_, nullptr);
  caches_ = std::move(o.caches_);
  o.caches_.clear();
  length_ = std::exchange(o.length_, 0);
  tokens_ = std::exchange(o.tokens_, {});
  return *this;
}

KvSequence::~KvSequence() { Truncate(0); }

Status KvSequence::FullError(int cache, int64_t tokens) const {
  const int64_t free = store_->pool(cache).free_pages() * KvLayout::kSlots;
  return Error::Resource("KV cache {}: {} more tokens do not fit, {} of {} are free", cache, tokens,
                         free, store_->max_tokens())
      .Hint("raise --context, send shorter requests or fewer at a time");
}

void KvSequence::Reshape(int cache, PageRange hole, int64_t size) {
  Cache& c = at(cache);
  PagePool& pool = store_->pool(cache);
  PageRange changed{size, size};
  const auto release = [&](int64_t begin, int64_t end) {
    if (begin < end) changed.begin = std::min(changed.begin, begin);
    for (int64_t i = begin; i < end; ++i) {
      int32_t& page = c.pages[static_cast<size_t>(i)];
      if (page >= 0) pool.Release(page);
      page = -1;
    }
  };
  const int64_t before = c.size();
  if (c.hole.empty()) {
    release(hole.begin, std::min(hole.end, before));
  } else if (!hole.empty()) {
    release(hole.begin, std::min(c.hole.begin, before));
    release(c.hole.end, std::min(hole.end, before));
  }
  release(size, before);
  c.pages.resize(static_cast<size_t>(size), -1);
  for (int64_t i = before; i < size; ++i) {
    if (i < hole.begin || i >= hole.end) {
      const int32_t page = pool.Acquire();
      BATON_CHECK_GE(page, 0);
      c.pages[static_cast<size_t>(i)] = page;
    }
  }
  c.hole = hole.begin < size ? hole : PageRange{};
  changed.begin = std::min(changed.begin, before);
  if (!changed.empty()) UploadTable(cache, changed);
}

void KvSequence::UploadTable(int cache, PageRange changed) {
  if (store_->device().host()) return;
  Cache& c = at(cache);
  if (c.table.capacity() < c.size()) {
    c.table.Reserve(std::max<int64_t>(256, c.size()));
    changed = {0, c.size()};
  }
  c.table.Upload(std::span<const int32_t>(c.pages).subspan(static_cast<size_t>(changed.begin),
                                                           static_cast<size_t>(changed.size())),
                 changed.begin);
}

void KvSequence::Adopt(int64_t tokens, std::span<const std::vector<int32_t>> pages) {
  BATON_CHECK(store_ != nullptr && length_ == 0 && tokens % KvLayout::kSlots == 0);
  BATON_CHECK_EQ(pages.size(), caches_.size());
  for (int i = 0; i < store_->caches(); ++i) {
    Cache& c = at(i);
    BATON_CHECK_EQ(c.length, 0);
    if (pages[static_cast<size_t>(i)].empty()) continue;
    c.pages = pages[static_cast<size_t>(i)];
    BATON_CHECK_EQ(c.size(), tokens / KvLayout::kSlots);
    const auto none = [](int32_t page) { return page < 0; };
    const auto first = std::find_if(c.pages.begin(), c.pages.end(), none);
    const auto last = std::find_if_not(first, c.pages.end(), none);
    c.hole = {first - c.pages.begin(), last - c.pages.begin()};
    if (c.hole.empty()) c.hole = {};
    const PageRange dead = Dead(i, tokens);
    BATON_CHECK(c.hole.empty() || (c.hole.begin >= dead.begin && c.hole.end <= dead.end));
    for (const int32_t page : c.pages) {
      if (page >= 0) store_->Hold(i, page);
    }
    BATON_CHECK(std::none_of(last, c.pages.end(), none));
    c.length = tokens;
    UploadTable(i, {0, c.size()});
  }
  length_ = tokens;
}

bool KvSequence::CopyShared(int cache) {
  Cache& c = at(cache);
  if (c.length % KvLayout::kSlots == 0) return true;
  const int64_t last = c.length / KvLayout::kSlots;
  int32_t& page = c.pages[static_cast<size_t>(last)];
  if (page < 0 || store_->holders(cache, page) == 1) return true;
  const int32_t copy = store_->Take(cache);
  if (copy < 0) return false;
  const auto from = store_->PageBytes(cache, page), to = store_->PageBytes(cache, copy);
  for (size_t i = 0; i < from.size(); ++i) {
    if (!from[i].empty())
      store_->device().Copy(to[i].data(), from[i].data(), static_cast<int64_t>(from[i].size()));
  }
  store_->pool(cache).Release(page);
  page = copy;
  UploadTable(cache, {last, last + 1});
  return true;
}

Status KvSequence::Reserve(int64_t tokens) {
  BATON_CHECK(store_ != nullptr && tokens >= 0);
  const int64_t size = PagesOf(tokens);
  bool grows = false;
  for (int i = 0; i < store_->caches(); ++i) {
    if (tokens > at(i).length && !CopyShared(i)) return FullError(i, tokens - at(i).length);
    const int64_t missing = size - at(i).size();
    if (missing <= 0) continue;
    grows = true;
    if (!store_->MakeRoom(i, missing)) return FullError(i, tokens - at(i).length);
    BATON_TRY(store_->Commit(i, missing));
  }
  for (int i = 0; i < store_->caches(); ++i) {
    Cache& c = at(i);
    if (grows && size > c.size()) Reshape(i, c.hole, size);
    c.length = std::max(c.length, tokens);
  }
  length_ = std::max(length_, tokens);
  return Status::Ok();
}

Status KvSequence::Reserve(int cache, int64_t begin, int64_t end) {
  BATON_CHECK(store_ != nullptr && cache >= 0 && cache < store_->caches());
  BATON_CHECK(begin >= 0 && begin <= end);
  Cache& c = at(cache);
  if (begin == end || end <= c.length) return Status::Ok();
  if (!CopyShared(cache)) return FullError(cache, end - c.length);
  if (begin > c.length) return StartRing(cache, begin, end);
  const int64_t size = PagesOf(end);
  if (size > c.size()) {
    const int64_t missing = size - c.size();
    if (!store_->MakeRoom(cache, missing)) return FullError(cache, end - c.length);
    BATON_TRY(store_->Commit(cache, missing));
    Reshape(cache, c.hole, size);
  }
  c.length = end;
  return Status::Ok();
}

Status KvSequence::StartRing(int cache, int64_t begin, int64_t end) {
  Cache& c = at(cache);
  BATON_CHECK(c.recent > 0);
  // Pages that rows from `begin` on do not read. Evict keeps one more token, which does not exist
  // here.
  const int64_t window = std::max<int64_t>(0, begin - c.recent + 1);
  PageRange hole = {PagesOf(std::min(c.sink, begin)), window / KvLayout::kSlots};
  hole = Union(c.hole, hole.empty() ? PageRange{} : hole);
  const int64_t before = c.size(), size = PagesOf(end);
  const PageRange old{std::min(hole.begin, before), std::min(hole.end, before)};
  const int64_t kept = before - old.size();
  int64_t freed = 0;  // pages that nobody else holds
  for (int64_t i = old.begin; i < old.end; ++i) {
    const int32_t page = c.pages[static_cast<size_t>(i)];
    freed += page >= 0 && store_->holders(cache, page) == 1;
  }
  if (!store_->MakeRoom(cache, size - hole.size() - kept - freed))
    return FullError(cache, end - begin);
  // Pages that it gives up first have memory.
  BATON_TRY(store_->Commit(cache, std::min(std::max<int64_t>(0, size - hole.size() - kept),
                                           store_->pool(cache).free_pages())));
  Reshape(cache, hole, size);
  Zero(cache, c.length, begin, before);
  store_->ReturnIdle(cache);
  if (c.gap_end == 0) c.gap_begin = c.length;
  c.gap_end = begin;
  c.length = end;
  return Status::Ok();
}

void KvSequence::MarkInexact(int cache, int64_t end) {
  BATON_CHECK(store_ != nullptr && cache >= 0 && cache < store_->caches());
  Cache& c = at(cache);
  BATON_CHECK(c.gap_end > 0 && end <= c.length);
  c.gap_end = std::max(c.gap_end, end);
}

// Zeroes positions [begin, end) where they are held, and all of pages from `first_new_page` on that
// hold one of them: kernels load whole blocks around a window's edge.
void KvSequence::Zero(int cache, int64_t begin, int64_t end, int64_t first_new_page) {
  const Cache& c = at(cache);
  const KvLayout& l = store_->layout(cache);
  const KvView view = HostView(cache);
  const auto zero = [&](void* at, int64_t bytes) {
    store_->device().Zero(static_cast<std::byte*>(at), bytes);
  };
  for (int64_t page = begin / KvLayout::kSlots; page < PagesOf(end); ++page) {
    if (page >= c.hole.begin && page < c.hole.end) page = c.hole.end;
    if (page >= PagesOf(end)) break;
    const int64_t start = page * KvLayout::kSlots;
    if (page >= first_new_page) {
      zero(view.page(start), l.page_bytes());
      if (l.low_bit) zero(view.low_bit(start, 0, 0), l.low_bit_bytes());
      continue;
    }
    const int64_t scale_bytes = l.scales_bytes() / KvLayout::kSlots;
    for (int64_t p = std::max(begin, start); p < std::min(end, start + KvLayout::kSlots); ++p) {
      zero(view.row(p), l.row_bytes());
      zero(view.page(p) + l.scales_offset() + p % KvLayout::kSlots * scale_bytes, scale_bytes);
      for (int head = 0; l.low_bit && head < l.kv_heads; ++head) {
        // value = nibble * scale
        for (int64_t block = 0; block < l.head_dim / 32; ++block)
          zero(&view.low_bit(p, head, block)->scale[p % 16], sizeof(uint16_t));
      }
    }
  }
}

Status KvSequence::Resize(int64_t tokens) {
  BATON_CHECK(store_ != nullptr && tokens >= 0);
  const int64_t size = PagesOf(tokens);
  for (int i = 0; i < store_->caches(); ++i) {
    const Cache& c = at(i);
    const int64_t need = size - Dead(i, tokens).size();
    if (tokens > store_->max_tokens() || need - c.held_pages() > store_->pool(i).free_pages())
      return FullError(i, tokens);
    BATON_TRY(store_->Commit(i, std::min(need, store_->pool(i).free_pages())));
  }
  for (int i = 0; i < store_->caches(); ++i) {
    Cache& c = at(i);
    Reshape(i, {}, 0);
    Reshape(i, Dead(i, tokens), size);
    store_->ReturnIdle(i);
    c.length = tokens;
    c.gap_begin = c.gap_end = 0;
  }
  length_ = tokens;
  return Status::Ok();
}

void KvSequence::Keep(int cache, int64_t sink, int64_t recent) {
  BATON_CHECK(store_ != nullptr && cache >= 0 && cache < store_->caches());
  BATON_CHECK(sink >= 0 && recent >= 0);
  Cache& c = at(cache);
  const bool narrower = c.recent == 0 || (recent > 0 && recent <= c.recent && sink <= c.sink);
  BATON_CHECK(narrower || (c.hole.empty() && c.gap_end == 0));
  c.sink = sink;
  c.recent = recent;
}

void KvSequence::Evict(int cache) {
  BATON_CHECK(store_ != nullptr && cache >= 0 && cache < store_->caches());
  const Cache& c = at(cache);
  const PageRange hole = Union(c.hole, Dead(cache, c.length));
  if (hole.begin == c.hole.begin && hole.end == c.hole.end) return;
  Reshape(cache, hole, c.size());
  store_->ReturnIdle(cache);
}

void KvSequence::Evict() {
  for (int i = 0; i < static_cast<int>(caches_.size()); ++i) Evict(i);
}

bool KvSequence::CanTruncate(const Cache& c, int64_t tokens) {
  if (tokens == 0 || tokens >= c.length) return true;
  // A window of 1 reads no position before the cut, but the last page is never in the hole.
  const int64_t first =
      c.recent == 0 ? 0 : std::max<int64_t>(0, std::min(tokens - c.recent, tokens - 2) + 1);
  if (!c.hole.empty() && first / KvLayout::kSlots < c.hole.end && PagesOf(tokens) > c.hole.begin)
    return false;
  const int64_t sinks = std::min(c.sink, tokens);
  return c.gap_end == 0 || tokens <= c.gap_begin ||
         (first >= c.gap_end && (c.recent == 0 || sinks <= c.gap_begin));
}

bool KvSequence::CanTruncate(int64_t tokens) const {
  BATON_CHECK_GE(tokens, 0);
  return std::all_of(caches_.begin(), caches_.end(),
                     [&](const Cache& c) { return CanTruncate(c, tokens); });
}

void KvSequence::KeepTokens(int64_t position, std::span<const int32_t> tokens) {
  tokens_.resize(static_cast<size_t>(position));
  tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
}

int32_t KvSequence::TokenBefore(int64_t position) const {
  if (position == 0) return -1;
  return position <= std::ssize(tokens_) ? tokens_[static_cast<size_t>(position) - 1] : 0;
}

void KvSequence::Truncate(int64_t tokens) {
  BATON_CHECK(CanTruncate(tokens));
  length_ = std::min(length_, tokens);
  for (int i = 0; i < static_cast<int>(caches_.size()); ++i) {
    Cache& c = at(i);
    if (tokens == 0) {
      c.sink = store_->spec(i).sink;
      c.recent = store_->spec(i).recent;
    }
    if (tokens >= c.length) continue;
    c.length = tokens;
    if (tokens <= c.gap_begin) c.gap_begin = c.gap_end = 0;
    const int64_t size = PagesOf(tokens);
    if (size == c.size()) continue;
    Reshape(i, c.hole, size);
    store_->ReturnIdle(i);
  }
}

int64_t KvSequence::held_tokens(int cache) const {
  const Cache& c = at(cache);
  return c.recent == 0 ? c.length : std::min(c.length, c.sink + c.recent);
}

int64_t KvSequence::held_bytes() const {
  int64_t bytes = 0;
  for (int i = 0; i < static_cast<int>(caches_.size()); ++i)
    bytes += held_tokens(i) * KvTokenBytes(store_->layout(i));
  return bytes;
}

int64_t KvSequence::allocated_bytes() const {
  int64_t bytes = 0;
  for (int i = 0; i < static_cast<int>(caches_.size()); ++i)
    bytes += store_->layout(i).arena_bytes(at(i).held_pages());
  return bytes;
}

KvView KvSequence::HostView(int cache) const {
  const KvLayout& layout = store_->layout(cache);
  const KvStore::Arena& arena = store_->arena(cache);
  return {.arena = arena.pages.data(),
          .low_bits = arena.low_bits.data(),
          .pages = at(cache).pages.data(),
          .length = at(cache).length,
          .layout = layout,
          .stored = at(cache).length,
          .host_rows = store_->spec(cache).host_rows};
}

KvView KvSequence::View(int cache, int64_t length) const {
  BATON_CHECK(store_ != nullptr && cache >= 0 && cache < store_->caches());
  BATON_CHECK(length >= 0 && length <= at(cache).length);
  KvView view = HostView(cache);
  view.length = length;
  if (!store_->device().host()) view.pages = at(cache).table.data();
  return view;
}

}  // namespace baton
