// Caches in the memory of a device that has to be given memory: here, address space of the host
// that faults where none was committed.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <vector>

#include "base/host_copies.h"
#include "kv/kv_store.h"

namespace baton {
namespace {

class FaultingDevice final : public HostCopies {
 public:
  static constexpr int64_t kPiece = 64 << 10;
  int64_t most_bytes = int64_t{1} << 40;  // that can be committed

  int64_t committed_bytes() const {
    int64_t bytes = 0;
    for (const auto& [data, pieces] : reserved_)
      bytes += std::count(pieces.begin(), pieces.end(), true) * kPiece;
    return bytes;
  }

  bool host() const override { return false; }
  Device& host_memory() override { return beside ? *beside : *this; }
  FaultingDevice* beside = nullptr;

 private:
  static size_t Rounded(int64_t bytes) {
    return static_cast<size_t>((bytes + kPiece - 1) / kPiece * kPiece);
  }
  Result<std::byte*> Allocate(int64_t bytes) override {
    return static_cast<std::byte*>(
        std::calloc(1, static_cast<size_t>(std::max<int64_t>(bytes, 1))));
  }
  Result<std::byte*> Reserve(int64_t bytes) override {
    void* p = mmap(nullptr, Rounded(bytes), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT_NE(p, MAP_FAILED);
    auto* data = static_cast<std::byte*>(p);
    reserved_[data].resize(Rounded(bytes) / kPiece);
    return data;
  }
  Status Commit(std::byte* data, int64_t begin, int64_t bytes) override {
    std::vector<bool>& pieces = reserved_.at(data);
    for (int64_t i = begin / kPiece; i * kPiece < begin + bytes; ++i) {
      if (pieces[static_cast<size_t>(i)]) continue;
      if (committed_bytes() + kPiece > most_bytes) return Error::Resource("the device is full");
      mprotect(data + i * kPiece, kPiece, PROT_READ | PROT_WRITE);
      pieces[static_cast<size_t>(i)] = true;
    }
    return Status::Ok();
  }
  int64_t Discard(std::byte* data, int64_t size, int64_t begin, int64_t bytes) override {
    std::vector<bool>& pieces = reserved_.at(data);
    const int64_t end = begin + bytes == size ? std::ssize(pieces) : (begin + bytes) / kPiece;
    int64_t returned = 0;
    for (int64_t i = (begin + kPiece - 1) / kPiece; i < end; ++i) {
      if (!pieces[static_cast<size_t>(i)]) continue;
      madvise(data + i * kPiece, kPiece, MADV_DONTNEED);
      mprotect(data + i * kPiece, kPiece, PROT_NONE);
      pieces[static_cast<size_t>(i)] = false;
      returned += kPiece;
    }
    return returned;
  }
  void Free(std::byte* data, int64_t bytes) override {
    if (reserved_.erase(data) == 0) return std::free(data);
    munmap(data, Rounded(bytes));
  }

  std::map<std::byte*, std::vector<bool>> reserved_;
};

constexpr KvLayout kLayout{.dtype = DType::kBF16, .kv_heads = 1, .head_dim = 32, .low_bit = true};

std::unique_ptr<KvStore> MakeStore(Device& device, std::vector<KvCacheSpec> caches,
                                   int64_t tokens) {
  auto store = KvStore::Create(std::move(caches), tokens, {.device = &device});
  EXPECT_TRUE(store.ok());
  return std::move(store).value();
}

// Writes to all memory that the sequence holds.
void Touch(const KvStore& store, const KvSequence& s) {
  for (int c = 0; c < store.caches(); ++c) {
    const KvView view = s.HostView(c);
    for (int64_t p = 0; p < s.length(c); p += KvLayout::kSlots) {
      if (view.pages[p / KvLayout::kSlots] < 0) continue;
      std::memset(view.page(p), 1, static_cast<size_t>(view.layout.page_bytes()));
      std::memset(view.low_bit(p, 0, 0), 1, static_cast<size_t>(view.layout.low_bit_bytes()));
    }
  }
}

RC_GTEST_PROP(DeviceMemory, HeldPagesHaveMemory, ()) {
  FaultingDevice device;
  const auto store =
      MakeStore(device, {{kLayout}, {kLayout, 4, 100, 64}, {kLayout, 0, 300, 0}}, 60'000);
  std::vector<KvSequence> sequences;
  for (int i = 0; i < 3; ++i) sequences.push_back(store->NewSequence());
  for (int i = 0; i < 40; ++i) {
    KvSequence& s = sequences[*rc::gen::inRange<size_t>(0, 3)];
    switch (*rc::gen::inRange(0, 5)) {
      case 0:
        s.Truncate(0);
        break;
      case 1:
        if (const int64_t to = s.length() - *rc::gen::inRange(0, 64); to >= 0 && s.CanTruncate(to))
          s.Truncate(to);
        break;
      case 2:
        RC_ASSERT(FillSynthetic(*store, s, *rc::gen::inRange<int64_t>(0, 18'000), 1).ok());
        break;
      default:
        RC_ASSERT(
            s.Reserve(std::min<int64_t>(s.length() + *rc::gen::inRange(1, 5'000), 19'000)).ok());
        Touch(*store, s);
        s.Evict();
    }
    Touch(*store, s);
  }
}

TEST(DeviceMemory, FollowsThePagesInUse) {
  FaultingDevice device;
  const auto store = MakeStore(device, {{kLayout, 4, 64, 0}}, 1 << 20);
  KvSequence s = store->NewSequence();
  EXPECT_EQ(device.committed_bytes(), 0);
  ASSERT_TRUE(s.Reserve(100'000).ok());
  const int64_t page = kLayout.arena_bytes(1), pages = PagesOf(100'000);
  EXPECT_GE(device.committed_bytes(), pages * page);
  EXPECT_LT(device.committed_bytes(), pages * page + 3 * FaultingDevice::kPiece);
  s.Evict();
  EXPECT_LT(device.committed_bytes(), 8 * FaultingDevice::kPiece);
  Touch(*store, s);
}

// Pages beside the device, copies for rankings in it; both follow what is in use.
TEST(DeviceMemory, HostRowsLieInHostMemory) {
  FaultingDevice device, beside;
  device.beside = &beside;
  const auto store =
      MakeStore(device, {{.layout = kLayout, .host_rows = true}, {kLayout, 4, 64, 0}}, 1 << 20);
  KvSequence s = store->NewSequence();
  ASSERT_TRUE(s.Reserve(0, 0, 100'000).ok());
  const int64_t pages = PagesOf(100'000), slack = 2 * FaultingDevice::kPiece;
  EXPECT_NEAR(beside.committed_bytes(), pages * kLayout.page_bytes(), slack);
  EXPECT_NEAR(device.committed_bytes(), pages * kLayout.low_bit_bytes(), slack);
  ASSERT_TRUE(FillSynthetic(*store, s, 100'000, 1).ok());
  Touch(*store, s);
  s.Truncate(0);
  EXPECT_LT(beside.committed_bytes(), slack);
  beside.most_bytes = 1 << 20;
  EXPECT_EQ(s.Reserve(0, 0, 200'000).error().code(), Error::Code::kResource);
}

TEST(DeviceMemory, AFullDeviceIsAnErrorAndChangesNothing) {
  FaultingDevice device;
  const auto store = MakeStore(device, {{kLayout}, {kLayout}}, 1 << 20);
  KvSequence s = store->NewSequence();
  ASSERT_TRUE(s.Reserve(1000).ok());
  device.most_bytes = 2 << 20;
  const Status status = s.Reserve(200'000);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code(), Error::Code::kResource);
  EXPECT_EQ(s.length(), 1000);
  EXPECT_EQ(s.allocated_bytes(), 2 * PagesOf(1000) * kLayout.arena_bytes(1));
  EXPECT_FALSE(FillSynthetic(*store, s, 200'000, 1).ok());
  device.most_bytes = int64_t{1} << 40;
  ASSERT_TRUE(s.Reserve(200'000).ok());
  Touch(*store, s);
}

// Values of a device repeat, so that most are copied within it.
TEST(DeviceMemory, SyntheticPagesRepeat) {
  FaultingDevice device;
  const auto store = MakeStore(device, {{kLayout}, {kLayout, 70, 5'000, 0}}, 30'000);
  KvSequence other = store->NewSequence(), s = store->NewSequence();
  ASSERT_TRUE(other.Reserve(640).ok());
  for (const int64_t length : {int64_t{20'000}, int64_t{9'000}}) {
    ASSERT_TRUE(FillSynthetic(*store, s, length, 1).ok());
    const auto same = [&](int cache, int64_t a, int64_t b) {
      const KvView view = s.HostView(cache);
      const auto bytes = [](int64_t n) { return static_cast<size_t>(n); };
      const bool pages = std::memcmp(view.page(a), view.page(b), bytes(kLayout.page_bytes())) == 0;
      const bool copies = std::memcmp(view.low_bit(a, 0, 0), view.low_bit(b, 0, 0),
                                      bytes(kLayout.low_bit_bytes())) == 0;
      EXPECT_EQ(pages, copies);
      return pages;
    };
    for (int64_t p = 0; p < length; p += KvLayout::kSlots) EXPECT_TRUE(same(0, p, p % 4096)) << p;
    EXPECT_FALSE(same(0, 0, 64));
    EXPECT_FALSE(same(0, 64, 128));
    // A ring holds its sink and its end.
    for (int64_t p = (length - 4'900) / 64 * 64; p < length; p += KvLayout::kSlots) {
      EXPECT_EQ(same(1, p, 0), p % 4096 == 0) << p;
      EXPECT_EQ(same(1, p, 64), p % 4096 == 64) << p;
    }
  }
}

}  // namespace
}  // namespace baton
