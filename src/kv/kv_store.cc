#include "kv/kv_store.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace baton {
namespace {

bool SameLayout(const KvLayout& a, const KvLayout& b) {
  return a.dtype == b.dtype && a.kv_heads == b.kv_heads && a.head_dim == b.head_dim &&
         a.low_bit == b.low_bit;
}

Status CheckLayout(const KvLayout& l, size_t layer) {
  if (l.dtype != DType::kF32 && l.dtype != DType::kBF16 && l.dtype != DType::kI8) {
    return Error::Unsupported("KV cache, layer {}: element type is F32, BF16 or I8, got {}", layer,
                              Info(l.dtype).name);
  }
  if (l.kv_heads < 1)
    return Error::InvalidArgument("KV cache, layer {}: at least 1 KV head, got {}", layer,
                                  l.kv_heads);
  const int multiple = l.low_bit ? 32 : 16;
  if (l.head_dim < 1 || l.head_dim % multiple != 0) {
    return Error::Unsupported("KV cache, layer {}: head size is a multiple of {}, got {}", layer,
                              multiple, l.head_dim);
  }
  return Status::Ok();
}

}  // namespace

Result<std::unique_ptr<KvStore>> KvStore::Create(std::vector<KvLayout> per_layer,
                                                 int64_t max_tokens, KvStoreOptions options) {
  constexpr int64_t kMaxTokens = int64_t{1} << 36;  // page ids are 31 bits
  if (per_layer.empty()) return Error::InvalidArgument("KV cache: at least 1 layer, got 0");
  if (max_tokens < 1 || max_tokens > kMaxTokens) {
    return Error::InvalidArgument("KV cache: between 1 and {} tokens, got {}", kMaxTokens,
                                  max_tokens);
  }
  for (size_t l = 0; l < per_layer.size(); ++l) {
    BATON_TRY(CheckLayout(per_layer[l], l));
    if (options.alias_bytes > 0 && !SameLayout(per_layer[l], per_layer[0])) {
      return Error::InvalidArgument(
          "KV cache: aliased layers need equal layouts, layer {} differs from layer 0", l);
    }
  }
  const int64_t pages = (max_tokens + KvLayout::kSlots - 1) / KvLayout::kSlots;
  const int64_t arena_bytes = per_layer[0].arena_bytes(pages);
  size_t count = per_layer.size();
  if (options.alias_bytes > 0)
    count = std::min(count, static_cast<size_t>((options.alias_bytes - 1) / arena_bytes + 1));
  std::vector<Buffer> arenas;
  for (size_t l = 0; l < count; ++l) {
    auto arena = Buffer::Allocate(per_layer[l].arena_bytes(pages));
    if (!arena.ok()) {
      return std::move(arena)
          .error()
          .At(fmt::format("KV cache of {} tokens, layer {}", max_tokens, l))
          .Hint("lower --context or use an 8-bit cache");
    }
    arenas.push_back(std::move(arena).value());
  }
  return std::unique_ptr<KvStore>(new KvStore(std::move(per_layer), std::move(arenas), pages));
}

KvStore::KvStore(std::vector<KvLayout> layouts, std::vector<Buffer> arenas, int64_t pages)
    : layouts_(std::move(layouts)), arenas_(std::move(arenas)), pool_(pages) {
  for (size_t l = 0; l < arenas_.size(); ++l) page_bytes_ += layouts_[l].arena_bytes(1);
}

KvStore::~KvStore() { BATON_CHECK_EQ(pool_.used_pages(), 0); }

KvSequence KvStore::NewSequence() { return KvSequence(this); }

KvSequence::KvSequence(KvSequence&& o) noexcept
    : store_(o.store_), pages_(std::move(o.pages_)), length_(std::exchange(o.length_, 0)) {
  o.pages_.clear();
}

KvSequence& KvSequence::operator=(KvSequence&& o) noexcept {
  if (this == &o) return *this;
  Truncate(0);
  store_ = o.store_;
  pages_ = std::move(o.pages_);
  o.pages_.clear();
  length_ = std::exchange(o.length_, 0);
  return *this;
}

KvSequence::~KvSequence() { Truncate(0); }

Status KvSequence::Reserve(int64_t tokens) {
  BATON_CHECK(store_ != nullptr && tokens >= 0);
  const int64_t have = static_cast<int64_t>(pages_.size());
  // Not (tokens + 63) / 64: a hostile request may ask for a count near the end of the range.
  const int64_t need = tokens / KvLayout::kSlots + (tokens % KvLayout::kSlots != 0);
  if (need - have > store_->pool_.free_pages()) {
    return Error::Resource("KV cache: {} more tokens do not fit, {} of {} are free",
                           tokens - length_, store_->free_tokens(), store_->max_tokens())
        .Hint("raise --context, send shorter requests or fewer at a time");
  }
  for (int64_t i = have; i < need; ++i) pages_.push_back(store_->pool_.Acquire());
  length_ = std::max(length_, tokens);
  return Status::Ok();
}

void KvSequence::Truncate(int64_t tokens) {
  BATON_CHECK_GE(tokens, 0);
  if (tokens >= length_) return;
  length_ = tokens;
  const auto keep = static_cast<size_t>((tokens + KvLayout::kSlots - 1) / KvLayout::kSlots);
  while (pages_.size() > keep) {
    store_->pool_.Release(pages_.back());
    pages_.pop_back();
  }
}

KvView KvSequence::View(int layer, int64_t length) const {
  BATON_CHECK(store_ != nullptr && layer >= 0 && layer < store_->layers());
  BATON_CHECK(length >= 0 && length <= length_);
  const KvLayout& layout = store_->layout(layer);
  std::byte* arena = store_->arenas_[static_cast<size_t>(layer % store_->arenas())].data();
  return {.arena = arena,
          .low_bits =
              layout.low_bit ? arena + store_->pool_.max_pages() * layout.page_bytes() : nullptr,
          .pages = pages_.data(),
          .length = length,
          .layout = layout};
}

}  // namespace baton
