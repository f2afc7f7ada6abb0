#include "kv/prefix_tree.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace baton {
namespace {

constexpr auto kBlock = static_cast<size_t>(KvLayout::kSlots);

std::vector<std::unique_ptr<PrefixBlock>>& ChildrenOf(PrefixRoot& root, PrefixBlock* parent) {
  return parent ? parent->children : root.children;
}

int64_t Common(std::span<const int32_t> a, std::span<const int32_t> b) {
  return std::mismatch(a.begin(), a.begin() + std::min(std::ssize(a), std::ssize(b)), b.begin())
             .first -
         a.begin();
}

}  // namespace

PrefixPath::PrefixPath(PrefixPath&& o) noexcept
    : tree_(std::exchange(o.tree_, nullptr)),
      root_(std::exchange(o.root_, nullptr)),
      holds_(std::exchange(o.holds_, false)),
      blocks_(std::exchange(o.blocks_, {})) {}

PrefixPath& PrefixPath::operator=(PrefixPath&& o) noexcept {
  if (this == &o) return *this;
  if (tree_) tree_->Unpin(*this);
  tree_ = std::exchange(o.tree_, nullptr);
  root_ = std::exchange(o.root_, nullptr);
  holds_ = std::exchange(o.holds_, false);
  blocks_ = std::exchange(o.blocks_, {});
  return *this;
}

PrefixPath::~PrefixPath() {
  if (tree_) tree_->Unpin(*this);
}

PrefixPath PrefixPath::Copy() const {
  PrefixPath copy;
  if (!tree_) return copy;
  copy.tree_ = tree_;
  copy.root_ = root_;
  copy.holds_ = holds_;
  copy.blocks_ = blocks_;
  tree_->Pin(copy);
  return copy;
}

PrefixTree::~PrefixTree() {
  while (DropOldest()) {
  }
  BATON_CHECK(order_.empty());
}

PrefixPath PrefixTree::Find(const std::string& key, std::span<const int32_t> tokens,
                            int64_t* common) {
  PrefixPath path;
  if (common) *common = 0;
  const auto root = roots_.find(key);
  if (root == roots_.end()) return path;
  path.tree_ = this;
  path.root_ = root->second.get();
  const int64_t agree = Walk(*path.root_, tokens, &path.blocks_);
  if (common) *common = agree;
  Pin(path);
  return path;
}

// The tokens that agree; `blocks` receives those that agree whole.
int64_t PrefixTree::Walk(const PrefixRoot& root, std::span<const int32_t> tokens,
                         std::vector<PrefixBlock*>* blocks) {
  int64_t common = 0;
  const auto* children = &root.children;
  for (PrefixBlock* next = nullptr; children != nullptr;) {
    int64_t most = 0;
    for (const auto& child : *children) {
      const int64_t n = Common(child->tokens, tokens.subspan(static_cast<size_t>(common)));
      if (n > most) most = n, next = child.get();
    }
    common += most;
    const bool whole = most == KvLayout::kSlots;
    if (whole && blocks) blocks->push_back(next);
    children = whole ? &next->children : nullptr;
  }
  return common;
}

int64_t PrefixTree::MostCommon(std::span<const int32_t> tokens) const {
  int64_t most = 0;
  for (const auto& [key, root] : roots_) most = std::max(most, Walk(*root, tokens, nullptr));
  return most;
}

PrefixPath PrefixTree::Open(const std::string& key, const std::shared_ptr<KvStore>& store) {
  PrefixPath path;
  std::unique_ptr<PrefixRoot>& root = roots_[key];
  if (!root) root = std::make_unique<PrefixRoot>(PrefixRoot{.key = key, .store = store});
  if (root->store != store) return path;
  path.tree_ = this;
  path.root_ = root.get();
  Pin(path);
  return path;
}

std::shared_ptr<KvStore> PrefixTree::StoreOf(const std::string& key_prefix) const {
  const auto root = roots_.lower_bound(key_prefix);
  if (root == roots_.end() || !root->first.starts_with(key_prefix)) return nullptr;
  return root->second->store;
}

void PrefixTree::Extend(PrefixPath& path, std::span<const int32_t> tokens) {
  BATON_CHECK(path.tree_ == this && tokens.size() == kBlock);
  PrefixBlock* last = path.blocks_.empty() ? nullptr : path.blocks_.back();
  auto& children = ChildrenOf(*path.root_, last);
  auto child = std::find_if(children.begin(), children.end(), [&](const auto& c) {
    return std::equal(tokens.begin(), tokens.end(), c->tokens.begin());
  });
  if (child == children.end()) {
    auto block = std::make_unique<PrefixBlock>();
    block->root = path.root_;
    block->parent = last;
    std::copy(tokens.begin(), tokens.end(), block->tokens.begin());
    const auto caches = static_cast<size_t>(path.root_->store->caches());
    block->pages.assign(caches, -1);
    block->saved.assign(caches, false);
    block->place = order_.insert(order_.begin(), block.get());
    child = children.insert(children.end(), std::move(block));
  }
  pinned_ += (*child)->pins++ == 0;
  (*child)->holds += path.holds_;
  path.blocks_.push_back(child->get());
}

void PrefixTree::Share(PrefixBlock& block, int cache, int32_t page) {
  int32_t& own = block.pages[static_cast<size_t>(cache)];
  if (own >= 0) return;
  block.root->store->Hold(cache, page);
  own = page;
}

void PrefixTree::Own(PrefixBlock& block, int cache, int32_t page) {
  int32_t& own = block.pages[static_cast<size_t>(cache)];
  if (own >= 0) return block.root->store->Drop(cache, page);
  own = page;
}

void PrefixTree::HoldPages(PrefixPath& path, bool hold) {
  for (PrefixBlock* block : path.blocks_) block->holds += int{hold} - int{path.holds_};
  path.holds_ = hold;
}

void PrefixTree::DropPages(const KvStore& store, int cache, int64_t pages) {
  for (auto at = order_.rbegin(); at != order_.rend(); ++at) {
    if (store.free_pages(cache) >= pages) return;
    PrefixBlock& block = **at;
    int32_t& page = block.pages[static_cast<size_t>(cache)];
    if (block.root->store.get() != &store || block.holds > 0 || page < 0) continue;
    if (store.holders(cache, page) > 1) continue;
    block.root->store->Drop(cache, std::exchange(page, -1));
  }
}

bool PrefixTree::DropOldest(const KvStore* store) {
  // Whoever touches a path touches its blocks from the last to the first, so that a leaf comes
  // before what it stands on, and the search ends soon.
  for (auto at = order_.rbegin(); at != order_.rend(); ++at) {
    PrefixBlock& block = **at;
    if (block.pins > 0 || !block.children.empty()) continue;
    if (store && block.root->store.get() != store) continue;
    Drop(block);
    return true;
  }
  return false;
}

void PrefixTree::Drop(PrefixBlock& block) {
  PrefixRoot& root = *block.root;
  for (size_t c = 0; c < block.pages.size(); ++c) {
    if (block.pages[c] >= 0) root.store->Drop(static_cast<int>(c), block.pages[c]);
  }
  order_.erase(block.place);
  std::erase_if(ChildrenOf(root, block.parent), [&](const auto& c) { return c.get() == &block; });
  if (root.children.empty() && root.paths == 0) roots_.erase(std::string(root.key));
}

std::string PrefixTree::Nearest(const std::string& key_prefix,
                                std::span<const int32_t> tokens) const {
  std::string nearest;
  int64_t most = KvLayout::kSlots - 1;
  for (auto at = roots_.lower_bound(key_prefix);
       at != roots_.end() && at->first.starts_with(key_prefix); ++at) {
    const int64_t common = Walk(*at->second, tokens, nullptr);
    if (common > most) most = common, nearest = at->first;
  }
  return nearest;
}

void PrefixTree::Move(PrefixPath& path, const std::string& key) {
  PrefixPath to = Open(key, path.root_->store);
  BATON_CHECK(to);
  for (PrefixBlock* block : path.blocks_) {
    Extend(to, block->tokens);
    for (size_t c = 0; c < block->pages.size(); ++c)
      if (block->pages[c] >= 0) Share(*to.blocks_.back(), static_cast<int>(c), block->pages[c]);
  }
  std::swap(path, to);
  Forget(std::move(to));
}

void PrefixTree::Forget(PrefixPath path) {
  const std::vector<PrefixBlock*> blocks = path.blocks_;
  path = {};
  for (auto block = blocks.rbegin(); block != blocks.rend(); ++block)
    if ((*block)->pins == 0 && (*block)->children.empty()) Drop(**block);
}

void PrefixTree::Pin(PrefixPath& path) {
  ++path.root_->paths;
  for (PrefixBlock* block : path.blocks_) {
    pinned_ += block->pins++ == 0;
    block->holds += path.holds_;
  }
  Touch(path);
}

void PrefixTree::Unpin(PrefixPath& path) {
  Touch(path);
  for (PrefixBlock* block : path.blocks_) {
    pinned_ -= --block->pins == 0;
    block->holds -= path.holds_;
  }
  path.holds_ = false;
  if (--path.root_->paths == 0 && path.root_->children.empty())
    roots_.erase(std::string(path.root_->key));
  path.root_ = nullptr;
  path.blocks_.clear();
}

void PrefixTree::Touch(const PrefixPath& path) {
  for (auto block = path.blocks_.rbegin(); block != path.blocks_.rend(); ++block)
    order_.splice(order_.begin(), order_, (*block)->place);
}

}  // namespace baton
