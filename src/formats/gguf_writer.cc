#include "formats/gguf_writer.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/atomic_file.h"
#include "base/check.h"
#include "base/thread_pool.h"

namespace baton {
namespace {

// A chunk is filled piece by piece, on all threads, then written.
constexpr int64_t kPieceBytes = 1 << 20;
constexpr int64_t kPiecesPerChunk = 16;

// Value types of the format.
constexpr uint32_t kUint32 = 4, kInt32 = 5, kFloat32 = 6, kBool = 7, kString = 8, kArray = 9,
                   kInt64 = 11;

class Bytes {
 public:
  template <typename T>
  void Put(T value) {
    const auto* p = reinterpret_cast<const std::byte*>(&value);
    out.insert(out.end(), p, p + sizeof(T));
  }
  void PutString(std::string_view s) {
    Put<uint64_t>(s.size());
    const auto* p = reinterpret_cast<const std::byte*>(s.data());
    out.insert(out.end(), p, p + s.size());
  }
  void PutArrayHead(uint32_t type, size_t count) {
    Put(kArray);
    Put(type);
    Put<uint64_t>(count);
  }
  void Pad(int64_t alignment) { out.resize((out.size() + alignment - 1) / alignment * alignment); }

  void operator()(int64_t v) {
    if (std::in_range<uint32_t>(v)) {
      Put(kUint32);
      Put(static_cast<uint32_t>(v));
    } else if (std::in_range<int32_t>(v)) {
      Put(kInt32);
      Put(static_cast<int32_t>(v));
    } else {
      Put(kInt64);
      Put(v);
    }
  }
  void operator()(double v) {
    Put(kFloat32);
    Put(static_cast<float>(v));
  }
  void operator()(bool v) {
    Put(kBool);
    Put<uint8_t>(v ? 1 : 0);
  }
  void operator()(const std::string& v) {
    Put(kString);
    PutString(v);
  }
  void operator()(const std::vector<int64_t>& v) {
    const bool narrow =
        std::all_of(v.begin(), v.end(), [](int64_t x) { return std::in_range<int32_t>(x); });
    PutArrayHead(narrow ? kInt32 : kInt64, v.size());
    for (int64_t x : v) narrow ? Put(static_cast<int32_t>(x)) : Put(x);
  }
  void operator()(const std::vector<double>& v) {
    PutArrayHead(kFloat32, v.size());
    for (double x : v) Put(static_cast<float>(x));
  }
  void operator()(const std::vector<std::string>& v) {
    PutArrayHead(kString, v.size());
    for (const std::string& s : v) PutString(s);
  }

  std::vector<std::byte> out;
};

int64_t RoundUp(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

}  // namespace

uint32_t GgufTypeId(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return 0;
    case DType::kF16:
      return 1;
    case DType::kQ4_0:
      return 2;
    case DType::kQ4_1:
      return 3;
    case DType::kQ5_0:
      return 6;
    case DType::kQ5_1:
      return 7;
    case DType::kQ8_0:
      return 8;
    case DType::kQ2_K:
      return 10;
    case DType::kQ3_K:
      return 11;
    case DType::kQ4_K:
      return 12;
    case DType::kQ5_K:
      return 13;
    case DType::kQ6_K:
      return 14;
    case DType::kIQ4_NL:
      return 20;
    case DType::kIQ4_XS:
      return 23;
    case DType::kI8:
      return 24;
    case DType::kBF16:
      return 30;
    case DType::kMXFP4:
      return 39;
  }
  BATON_CHECK(false);
  return 0;
}

void GgufWriter::Set(std::string key, MetaValue value) {
  metadata_.values.insert_or_assign(std::move(key), std::move(value));
}

void GgufWriter::Set(const Metadata& metadata) {
  for (const auto& [key, value] : metadata.values) Set(key, value);
}

void GgufWriter::AddTensor(std::string name, DType dtype, std::vector<int64_t> shape, Fill fill) {
  BATON_CHECK(!shape.empty() && shape.back() % Info(dtype).block_elements == 0);
  int64_t elements = 1;
  for (int64_t d : shape) elements *= d;
  tensors_.push_back(
      {std::move(name), dtype, std::move(shape), BytesOf(dtype, elements), std::move(fill)});
}

void GgufWriter::AddTensor(std::string name, DType dtype, std::vector<int64_t> shape,
                           std::vector<std::byte> bytes) {
  const size_t given = bytes.size();
  AddTensor(std::move(name), dtype, std::move(shape),
            [bytes = std::move(bytes)](int64_t offset, std::span<std::byte> out) {
              std::memcpy(out.data(), bytes.data() + offset, out.size());
            });
  BATON_CHECK_EQ(static_cast<int64_t>(given), tensors_.back().bytes);
}

std::vector<std::byte> GgufWriter::Head(int64_t alignment) const {
  Bytes head;
  head.Put(uint32_t{0x46554747});  // "GGUF"
  head.Put(uint32_t{3});
  head.Put<uint64_t>(tensors_.size());
  head.Put<uint64_t>(metadata_.values.size());
  for (const auto& [key, value] : metadata_.values) {
    head.PutString(key);
    std::visit([&](const auto& v) { head(v); }, value);
  }
  int64_t offset = 0;
  for (const Tensor& t : tensors_) {
    head.PutString(t.name);
    head.Put(static_cast<uint32_t>(t.shape.size()));
    for (size_t d = t.shape.size(); d-- > 0;) head.Put<uint64_t>(static_cast<uint64_t>(t.shape[d]));
    head.Put(GgufTypeId(t.dtype));
    head.Put<uint64_t>(static_cast<uint64_t>(offset));
    offset = RoundUp(offset + t.bytes, alignment);
  }
  head.Pad(alignment);
  return std::move(head.out);
}

Status GgufWriter::WriteTo(const Sink& sink, const GgufWriteOptions& options) const {
  const int64_t alignment = metadata_.Int("general.alignment").value_or(32);
  BATON_TRY(sink(Head(alignment)));
  int64_t done = 0, total = 0;
  for (const Tensor& t : tensors_) total += t.bytes;
  std::vector<std::byte> chunk;
  for (const Tensor& t : tensors_) {
    const int64_t piece = kPieceBytes / Info(t.dtype).block_bytes * Info(t.dtype).block_bytes;
    for (int64_t at = 0; at < t.bytes; at += piece * kPiecesPerChunk) {
      const int64_t size = std::min(piece * kPiecesPerChunk, t.bytes - at);
      chunk.resize(static_cast<size_t>(size));
      const auto fill = [&](int64_t i, int) {
        const std::span out(chunk.data() + i * piece,
                            static_cast<size_t>(std::min(piece, size - i * piece)));
        t.fill(at + i * piece, out);
      };
      const int64_t pieces = (size + piece - 1) / piece;
      if (options.threads) {
        options.threads->For(pieces, fill);
      } else {
        for (int64_t i = 0; i < pieces; ++i) fill(i, 0);
      }
      BATON_TRY(sink(chunk));
      done += size;
      if (options.on_bytes && !options.on_bytes(done, total)) return Error::Cancelled();
    }
    chunk.assign(static_cast<size_t>(RoundUp(t.bytes, alignment) - t.bytes), std::byte{0});
    BATON_TRY(sink(chunk));
  }
  return Status::Ok();
}

Status GgufWriter::WriteFile(const std::string& path, const GgufWriteOptions& options) const {
  BATON_ASSIGN(AtomicFile file, AtomicFile::Create(path));
  BATON_TRY(WriteTo([&](std::span<const std::byte> b) { return file.Write(b); }, options));
  return file.Commit();
}

std::vector<std::byte> GgufWriter::ToBytes() const {
  std::vector<std::byte> bytes;
  const Status written = WriteTo(
      [&](std::span<const std::byte> b) {
        bytes.insert(bytes.end(), b.begin(), b.end());
        return Status::Ok();
      },
      {});
  BATON_CHECK(written.ok());
  return bytes;
}

}  // namespace baton
