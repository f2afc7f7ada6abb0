// Pages of finished prompts, by the tokens that filled them: a tree whose edges are blocks of 64
// tokens. A block holds, in each cache, the page of its positions, or none where a ring has dropped
// it. What fills pages otherwise (another plan's prompts, other caches) has another root.
//
// Blocks on a path that somebody walks are pinned; of the others the one used least recently goes
// first, leaves before what they stand on. A pin keeps a block in its place. Its pages it keeps
// only where the path says so (HoldPages): who has adopted them is a holder of them anyway, and who
// fills pages of its own, because these did not serve, needs their room.
#pragma once

#include <array>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kv/kv_store.h"

namespace baton {

class PrefixTree;

struct PrefixRoot;

struct PrefixBlock {
  PrefixRoot* root = nullptr;
  PrefixBlock* parent = nullptr;  // null: at the prompt's start
  std::array<int32_t, KvLayout::kSlots> tokens = {};
  std::vector<int32_t> pages;         // [caches], -1: none
  std::vector<bool> saved;            // [caches] the owner has written the page to disk
  std::shared_ptr<const void> state;  // of the owner: what such a prompt leaves beside its pages
  std::vector<std::unique_ptr<PrefixBlock>> children;
  int64_t pins = 0, holds = 0;              // paths, and those of them that hold the pages
  std::list<PrefixBlock*>::iterator place;  // among all blocks, the latest first
};

struct PrefixRoot {
  std::string key;
  std::shared_ptr<KvStore> store;
  std::vector<std::unique_ptr<PrefixBlock>> children;
  int64_t paths = 0;
};

// The blocks of a prompt from its start on, pinned as long as the path lives. The tree must outlive
// it.
class PrefixPath {
 public:
  PrefixPath() = default;
  PrefixPath(PrefixPath&& o) noexcept;
  PrefixPath& operator=(PrefixPath&& o) noexcept;
  ~PrefixPath();
  PrefixPath Copy() const;

  explicit operator bool() const { return root_ != nullptr; }
  KvStore& store() const { return *root_->store; }
  int64_t size() const { return static_cast<int64_t>(blocks_.size()); }
  PrefixBlock& operator[](int64_t i) const { return *blocks_[static_cast<size_t>(i)]; }

 private:
  friend class PrefixTree;
  PrefixTree* tree_ = nullptr;
  PrefixRoot* root_ = nullptr;
  bool holds_ = false;
  std::vector<PrefixBlock*> blocks_;
};

// Not thread-safe.
class PrefixTree {
 public:
  PrefixTree() = default;
  ~PrefixTree();  // no path may be left
  PrefixTree(const PrefixTree&) = delete;

  // The longest path of whole blocks that equal the beginning of `tokens`; `common` (may be null)
  // receives how many tokens agree, those of a block that differs later included. A false path
  // where nothing has this key.
  PrefixPath Find(const std::string& key, std::span<const int32_t> tokens, int64_t* common);
  // The key, of those that begin like this, whose root has the longest such path; empty: none has
  // a block of it.
  std::string Nearest(const std::string& key_prefix, std::span<const int32_t> tokens) const;
  // The same blocks under another key, which has the same store; those of the path that nobody else
  // uses go.
  void Move(PrefixPath& path, const std::string& key);
  void Forget(PrefixPath path);  // just those go
  // The most tokens that agree with what any root has.
  int64_t MostCommon(std::span<const int32_t> tokens) const;
  // An empty path. The root is made if there is none; false if there is one of another store.
  PrefixPath Open(const std::string& key, const std::shared_ptr<KvStore>& store);
  // The store of a root whose key begins with this; null: none.
  std::shared_ptr<KvStore> StoreOf(const std::string& key_prefix) const;

  // Goes one block further: to the one with these 64 tokens, made without pages if there is none.
  void Extend(PrefixPath& path, std::span<const int32_t> tokens);
  // The tree becomes a holder of the page, or takes over one that was taken for it. No effect, or
  // the page is dropped, where the block has one.
  void Share(PrefixBlock& block, int cache, int32_t page);
  void Own(PrefixBlock& block, int cache, int32_t page);

  // From now on the pages of the path stay, or no longer.
  void HoldPages(PrefixPath& path, bool hold);
  // Drops pages of a cache that the tree alone holds, of blocks that no path holds the pages of,
  // until `pages` are free or there are no more.
  void DropPages(const KvStore& store, int cache, int64_t pages);

  // Drops the unpinned block used least recently, if `store` is given the one of that store. False:
  // there is none.
  bool DropOldest(const KvStore* store = nullptr);

  int64_t blocks() const { return static_cast<int64_t>(order_.size()); }
  int64_t unpinned() const { return blocks() - pinned_; }
  bool empty() const { return roots_.empty(); }

 private:
  friend class PrefixPath;
  void Pin(PrefixPath& path);
  void Unpin(PrefixPath& path);
  void Touch(const PrefixPath& path);
  void Drop(PrefixBlock& block);
  static int64_t Walk(const PrefixRoot& root, std::span<const int32_t> tokens,
                      std::vector<PrefixBlock*>* blocks);

  std::map<std::string, std::unique_ptr<PrefixRoot>> roots_;
  std::list<PrefixBlock*> order_;
  int64_t pinned_ = 0;
};

}  // namespace baton
