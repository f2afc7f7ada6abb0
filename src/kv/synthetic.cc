// Synthetic cache content. Values come from a table of 256 normal quantiles, eight per step of a
// 64-bit generator: about as fast as memory, and a layer and position always get the same values.
//
// On a device the values repeat every kDevicePages pages: those pages are made on the host, and the
// device copies them. Sending 17 GB of an 8B model's cache of 131,072 tokens would take longer than
// what is to be timed.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <mutex>
#include <vector>

#include "base/dtype.h"
#include "base/thread_pool.h"
#include "kv/kv_store.h"
#include "kv/low_bit.h"

namespace baton {
namespace {

constexpr float kInt8Scale = 1.0f / 40;  // +-3 deviations fill the int8 range
constexpr size_t kDevicePages = 64;

uint64_t Mix(uint64_t x) {  // the finaliser of splitmix64
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

struct Table {
  std::array<float, 256> f32;
  std::array<uint16_t, 256> bf16_bits;
  std::array<int8_t, 256> i8;
};

Table MakeTable() {
  Table t;
  for (int i = 0; i < 256; ++i) {
    // Shore's approximation of the normal quantile: 5.5556 (1 - ((1 - u) / u)^0.1186), within 0.03
    // in this range.
    const double upper = i < 128 ? (255.5 - i) / 256 : (i + 0.5) / 256;
    const double z = 5.5556 * (1 - std::pow((1 - upper) / upper, 0.1186));
    const float v = ToFloat(ToBf16(static_cast<float>(i < 128 ? -z : z)));
    t.f32[static_cast<size_t>(i)] = v;
    t.bf16_bits[static_cast<size_t>(i)] = ToBf16(v).bits;
    t.i8[static_cast<size_t>(i)] =
        static_cast<int8_t>(std::lround(std::clamp(v / kInt8Scale, -127.0f, 127.0f)));
  }
  return t;
}

template <typename E>
void FillRows(const std::array<E, 256>& table, uint64_t state, std::byte* out, int64_t elements) {
  auto* e = reinterpret_cast<E*>(out);  // elements is a multiple of 8: head sizes are
  for (int64_t i = 0; i < elements; i += 8) {
    state += 0x9e3779b97f4a7c15u;
    uint64_t bits = Mix(state);
    for (int j = 0; j < 8; ++j, bits >>= 8) e[i + j] = table[bits & 255];
  }
}

void FillLowBit(const KvView& kv, int64_t page_start) {
  const KvLayout& l = kv.layout;
  std::vector<float> k(static_cast<size_t>(l.head_dim));
  for (int64_t p = page_start; p < page_start + KvLayout::kSlots; ++p) {
    for (int head = 0; head < l.kv_heads; ++head) {
      const std::byte* row = kv.row(p) + head * l.head_bytes();
      for (int64_t c = 0; c < l.head_dim; ++c) {
        k[static_cast<size_t>(c)] = l.dtype == DType::kF32 ? reinterpret_cast<const float*>(row)[c]
                                    : l.dtype == DType::kBF16
                                        ? ToFloat(reinterpret_cast<const bf16*>(row)[c])
                                        : reinterpret_cast<const int8_t*>(row)[c] * kInt8Scale;
      }
      StoreLowBit(kv, p, head, k.data());
    }
  }
}

void FillPage(const KvView& kv, int64_t page_start, uint64_t state) {
  static const Table table = MakeTable();
  const KvLayout& l = kv.layout;
  const int64_t elements = KvLayout::kSlots * l.row_bytes() / l.element_bytes();
  std::byte* out = kv.page(page_start);
  switch (l.dtype) {
    case DType::kF32:
      FillRows(table.f32, state, out, elements);
      break;
    case DType::kBF16:
      FillRows(table.bf16_bits, state, out, elements);
      break;
    default:
      FillRows(table.i8, state, out, elements);
      std::fill_n(kv.scale(page_start, false, 0), l.scales_bytes() / 4, kInt8Scale);
  }
  if (l.low_bit) FillLowBit(kv, page_start);
}

// Generates a page on the host and sends it.
void SendPage(Device& device, const KvView& view, int64_t page_start, uint64_t state,
              std::mutex& one_call) {
  const KvLayout& l = view.layout;
  std::vector<std::byte> page(static_cast<size_t>(l.arena_bytes(1)));
  const int32_t first = 0;
  FillPage({page.data(), page.data() + l.page_bytes(), &first, KvLayout::kSlots, l}, 0, state);
  const std::lock_guard lock(one_call);  // devices take one call at a time
  device.Upload(view.page(page_start), page.data(), l.page_bytes());
  if (l.low_bit) {
    device.Upload(reinterpret_cast<std::byte*>(view.low_bit(page_start, 0, 0)),
                  page.data() + l.page_bytes(), l.low_bit_bytes());
  }
}

// Whether page i of a table is a copy of page i modulo kDevicePages.
bool IsCopied(const std::vector<int32_t>& table, size_t i) {
  return i >= kDevicePages && table[i] >= 0 && table[i % kDevicePages] >= 0;
}

// Copies the first pages to all later ones, as many at a time as lie side by side.
void RepeatPages(Device& device, const KvView& view, const std::vector<int32_t>& table) {
  const KvLayout& l = view.layout;
  for (size_t i = kDevicePages, end = i; i < table.size(); i = end) {
    end = i + 1;
    if (!IsCopied(table, i)) continue;
    const size_t from = i % kDevicePages;
    while (end < table.size() && end % kDevicePages != 0 && table[end] == table[end - 1] + 1 &&
           table[from + end - i] == table[from + end - i - 1] + 1)
      ++end;
    const auto pages = static_cast<int64_t>(end - i);
    const auto to_start = static_cast<int64_t>(i) * KvLayout::kSlots;
    const auto from_start = static_cast<int64_t>(from) * KvLayout::kSlots;
    device.Copy(view.page(to_start), view.page(from_start), pages * l.page_bytes());
    if (l.low_bit) {
      device.Copy(reinterpret_cast<std::byte*>(view.low_bit(to_start, 0, 0)),
                  reinterpret_cast<const std::byte*>(view.low_bit(from_start, 0, 0)),
                  pages * l.low_bit_bytes());
    }
  }
}

}  // namespace

Status FillSynthetic(KvStore& store, KvSequence& sequence, int64_t length, uint64_t seed,
                     ThreadPool* threads) {
  BATON_TRY(sequence.Resize(length));
  Device& device = store.device();
  struct Page {
    int cache;
    int64_t index;
  };
  std::vector<Page> pages;
  std::vector<int> filled;  // the caches, one an arena
  for (int arena = 0; arena < store.arenas(); ++arena) {
    int cache = arena;
    for (int c = arena; c < store.caches(); c += store.arenas()) {
      if (sequence.at(c).held_pages() > sequence.at(cache).held_pages()) cache = c;
    }
    filled.push_back(cache);
    const std::vector<int32_t>& table = sequence.at(cache).pages;
    for (size_t i = 0; i < table.size(); ++i) {
      if (table[i] >= 0 && (device.host() || !IsCopied(table, i)))
        pages.push_back({cache, static_cast<int64_t>(i)});
    }
  }
  std::mutex one_call;
  auto fill = [&](int64_t i, int) {
    const Page p = pages[static_cast<size_t>(i)];
    const uint64_t state =
        Mix(seed ^ Mix(static_cast<uint64_t>(p.cache) << 32 | static_cast<uint64_t>(p.index)));
    const KvView view = sequence.HostView(p.cache);
    const int64_t start = p.index * KvLayout::kSlots;
    if (device.host()) return FillPage(view, start, state);
    SendPage(device, view, start, state, one_call);
  };
  const auto count = static_cast<int64_t>(pages.size());
  if (threads != nullptr) {
    threads->For(count, fill);
  } else {
    for (int64_t i = 0; i < count; ++i) fill(i, 0);
  }
  if (device.host()) return Status::Ok();
  for (const int cache : filled)
    RepeatPages(device, sequence.HostView(cache), sequence.at(cache).pages);
  return Status::Ok();
}

}  // namespace baton
