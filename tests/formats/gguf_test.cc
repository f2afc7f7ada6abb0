#include "formats/gguf.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <random>

#include "base/mapped_file.h"
#include "base/thread_pool.h"
#include "formats/gguf_writer.h"

namespace baton {
namespace {

// Builds files byte by byte, so that each can be wrong in one place.
struct Raw {
  std::vector<std::byte> bytes;

  Raw(uint64_t tensors, uint64_t keys, uint32_t version = 3) {
    Text("GGUF");
    Put(version).Put(tensors).Put(keys);
  }
  template <typename T>
  Raw& Put(T v) {
    const auto* p = reinterpret_cast<const std::byte*>(&v);
    bytes.insert(bytes.end(), p, p + sizeof(T));
    return *this;
  }
  Raw& Text(std::string_view s) {
    const auto* p = reinterpret_cast<const std::byte*>(s.data());
    bytes.insert(bytes.end(), p, p + s.size());
    return *this;
  }
  Raw& String(std::string_view s) { return Put<uint64_t>(s.size()).Text(s); }
  Raw& Tensor(std::string_view name, std::vector<uint64_t> dims, uint32_t type, uint64_t offset) {
    String(name).Put<uint32_t>(static_cast<uint32_t>(dims.size()));
    for (uint64_t d : dims) Put(d);
    return Put(type).Put(offset);
  }
  Raw& Data(size_t n, size_t alignment = 32) {
    bytes.resize((bytes.size() + alignment - 1) / alignment * alignment + n);
    return *this;
  }
  std::string Error() const {
    Result<GgufFile> f = ParseGguf(bytes);
    return f.ok() ? "no error" : f.error().ToString();
  }
};

std::vector<std::byte> SmallFile() {
  GgufWriter w;
  w.Set("general.architecture", std::string("llama"));
  w.Set("a.int", int64_t{7});
  w.Set("a.negative", int64_t{-7});
  w.Set("a.big", int64_t{1} << 40);
  w.Set("a.float", 0.5);
  w.Set("a.bool", true);
  w.Set("a.ints", std::vector<int64_t>{1, -2, 3});
  w.Set("a.floats", std::vector<double>{0.25, 4.0});
  w.Set("a.strings", std::vector<std::string>{"x", "", "yz"});
  w.AddTensor("m", DType::kF32, {2, 3}, std::vector<std::byte>(24, std::byte{1}));
  w.AddTensor("q", DType::kQ8_0, {1, 64}, std::vector<std::byte>(68, std::byte{2}));
  return w.ToBytes();
}

TEST(Gguf, RoundTripsMetadataAndTensors) {
  const std::vector<std::byte> bytes = SmallFile();
  Result<GgufFile> f = ParseGguf(bytes);
  ASSERT_TRUE(f.ok()) << f.error().ToString();
  const Metadata& m = f->metadata;
  EXPECT_EQ(f->version, 3);
  EXPECT_EQ(*m.String("general.architecture"), "llama");
  EXPECT_EQ(m.Int("a.int"), 7);
  EXPECT_EQ(m.Int("a.negative"), -7);
  EXPECT_EQ(m.Int("a.big"), int64_t{1} << 40);
  EXPECT_EQ(m.Float("a.float"), 0.5);
  EXPECT_EQ(m.Float("a.int"), 7.0);
  EXPECT_EQ(m.Bool("a.bool"), true);
  EXPECT_EQ(m.Int("a.bool"), 1);
  EXPECT_EQ(*m.Ints("a.ints"), (std::vector<int64_t>{1, -2, 3}));
  EXPECT_EQ(*m.Floats("a.floats"), (std::vector<double>{0.25, 4.0}));
  EXPECT_EQ(*m.Strings("a.strings"), (std::vector<std::string>{"x", "", "yz"}));
  EXPECT_EQ(m.Int("a.float"), std::nullopt);
  EXPECT_EQ(m.String("absent"), nullptr);
  ASSERT_EQ(f->tensors.size(), 2u);
  EXPECT_EQ(f->tensors[0].shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(f->tensors[1].dtype, DType::kQ8_0);
  EXPECT_EQ(f->tensors[1].bytes, 68);
  EXPECT_EQ(f->tensors[1].data[67], std::byte{2});
}

TEST(Gguf, ThreadsDoNotChangeTheFile) {
  GgufWriter w;
  w.Set("general.architecture", std::string("x"));
  // More than one chunk, and a partial last piece; blocks whose size does not divide a piece.
  const auto fill = [](int64_t offset, std::span<std::byte> out) {
    for (size_t i = 0; i < out.size(); ++i)
      out[i] = static_cast<std::byte>((offset + static_cast<int64_t>(i)) * 2654435761u >> 13);
  };
  w.AddTensor("a", DType::kQ4_0, {1000, 32 * 1100}, fill);
  w.AddTensor("b", DType::kF32, {3}, fill);
  const std::string path = testing::TempDir() + "/gguf_test_threads.gguf";
  ThreadPool threads(3);
  int64_t last = 0;
  const auto forward = [&](int64_t done, int64_t total) {
    EXPECT_GT(done, last);
    EXPECT_EQ(total, 1100 * 18 * 1000 + 12);
    last = done;
    return true;
  };
  ASSERT_TRUE(w.WriteFile(path, {.threads = &threads, .on_bytes = forward}).ok());
  EXPECT_EQ(last, 1100 * 18 * 1000 + 12);
  const auto file = MappedFile::Open(path);
  ASSERT_TRUE(file.ok());
  EXPECT_TRUE(std::ranges::equal(file->bytes(), w.ToBytes()));
  std::filesystem::remove(path);
}

TEST(Gguf, AStoppedWriteLeavesNothing) {
  GgufWriter w;
  w.AddTensor("a", DType::kF32, {3}, std::vector<std::byte>(12));
  const std::filesystem::path folder = testing::TempDir() + "/gguf_test_stopped";
  std::filesystem::create_directories(folder);
  const Status s = w.WriteFile(folder / "f", {.on_bytes = [](int64_t, int64_t) { return false; }});
  ASSERT_FALSE(s.ok());
  EXPECT_EQ(s.error().code(), Error::Code::kCancelled);
  EXPECT_TRUE(std::filesystem::is_empty(folder));
}

TEST(Gguf, EveryTruncationIsAnError) {
  const std::vector<std::byte> bytes = SmallFile();
  // The last tensor ends before its padding.
  const size_t needed = bytes.size() - (96 - 68);
  for (size_t n = 0; n < needed; ++n)
    EXPECT_FALSE(ParseGguf(std::span(bytes).first(n)).ok()) << "of " << n << " bytes";
}

TEST(Gguf, DamagedBytesNeverLeadOutsideTheFile) {
  const std::vector<std::byte> bytes = SmallFile();
  std::mt19937 random(1);
  for (int trial = 0; trial < 20000; ++trial) {
    std::vector<std::byte> damaged = bytes;
    for (int k = 0; k < 1 + trial % 4; ++k)
      damaged[random() % damaged.size()] =
          static_cast<std::byte>(random() % 3 == 0 ? 255 : random() % 256);
    const Result<GgufFile> f = ParseGguf(damaged);
    if (!f.ok()) {
      EXPECT_EQ(f.error().ToString().find('\n'), std::string::npos);
      continue;
    }
    for (const TensorInfo& t : f->tensors) {
      EXPECT_GE(t.data, damaged.data());
      EXPECT_LE(t.data + t.bytes, damaged.data() + damaged.size());
      EXPECT_EQ(t.bytes, BytesOf(t.dtype, t.elements()));
    }
  }
}

TEST(Gguf, OtherFilesAreNamedForWhatTheyAre) {
  Raw lfs(0, 0);
  lfs.bytes.clear();
  lfs.Text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n");
  EXPECT_NE(lfs.Error().find("git lfs pull"), std::string::npos) << lfs.Error();
  Raw other(0, 0);
  other.bytes.clear();
  other.Text("PK\x03\x04 archive");
  EXPECT_NE(other.Error().find("expected a GGUF file"), std::string::npos) << other.Error();
  EXPECT_NE(other.Error().find("a zip archive"), std::string::npos) << other.Error();
  EXPECT_NE(Raw(0, 0, 0x03000000).Error().find("big-endian"), std::string::npos);
  EXPECT_NE(Raw(0, 0, 1).Error().find("supported: 2, 3"), std::string::npos);
  EXPECT_EQ(Raw(0, 0, 2).Error(), "no error");
}

TEST(Gguf, AbsurdCountsAreRefusedBeforeAllocation) {
  EXPECT_NE(Raw(~0ull, 0).Error().find("limit"), std::string::npos);
  EXPECT_NE(Raw(0, ~0ull).Error().find("limit"), std::string::npos);
  EXPECT_NE(Raw(0, 1).Put(~0ull).Error().find("limit"), std::string::npos);
  for (uint32_t element : {0u, 4u, 8u, 12u}) {
    Raw r(0, 1);
    r.String("k").Put<uint32_t>(9).Put(element).Put<uint64_t>(1 << 22);
    EXPECT_NE(r.Error().find("left"), std::string::npos) << r.Error();
    Raw huge(0, 1);
    huge.String("k").Put<uint32_t>(9).Put(element).Put(~0ull);
    EXPECT_NE(huge.Error().find("limit"), std::string::npos) << huge.Error();
  }
}

TEST(Gguf, WrongMetadataIsRefused) {
  EXPECT_NE(Raw(0, 1).String("k").Put<uint32_t>(9).Put<uint32_t>(9).Put<uint64_t>(0).Error().find(
                "array of arrays"),
            std::string::npos);
  EXPECT_NE(Raw(0, 1).String("k").Put<uint32_t>(13).Error().find("type 13"), std::string::npos);
  Raw twice(0, 2);
  twice.String("k").Put<uint32_t>(7).Put<uint8_t>(1).String("k").Put<uint32_t>(7).Put<uint8_t>(1);
  EXPECT_NE(twice.Error().find("'k' appears twice"), std::string::npos) << twice.Error();
  Raw alignment(0, 1);
  alignment.String("general.alignment").Put<uint32_t>(4).Put<uint32_t>(12);
  EXPECT_NE(alignment.Error().find("multiple of 8"), std::string::npos);
}

TEST(Gguf, UnsupportedTypeNamesTensorTypeAndAlternatives) {
  const std::string e = Raw(1, 0).Tensor("blk.0.attn_q.weight", {256}, 16, 0).Data(84).Error();
  EXPECT_NE(e.find("'blk.0.attn_q.weight' has type 16 (IQ2_XXS)"), std::string::npos) << e;
  EXPECT_NE(e.find("Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4"), std::string::npos) << e;
}

TEST(Gguf, WrongTensorsAreRefused) {
  const auto error = [](std::vector<uint64_t> dims, uint32_t type, uint64_t offset, size_t data) {
    return Raw(1, 0).Tensor("t", std::move(dims), type, offset).Data(data).Error();
  };
  EXPECT_EQ(error({4, 2}, 0, 0, 32), "no error");
  EXPECT_NE(error({4, 2}, 0, 0, 31).find("needs 32 bytes"), std::string::npos);
  EXPECT_NE(error({4, 2}, 0, 32, 32).find("needs 32 bytes"), std::string::npos);
  EXPECT_NE(error({4, 2}, 0, ~0ull - 31, 32).find("needs 32 bytes"), std::string::npos);
  EXPECT_NE(error({4, 2}, 0, 4, 64).find("multiple of 32"), std::string::npos);
  EXPECT_NE(error({4, 0}, 0, 0, 32).find("dimension 0"), std::string::npos);
  EXPECT_NE(error({1ull << 40, 1ull << 40}, 0, 0, 32).find("2^48"), std::string::npos);
  EXPECT_NE(error({~0ull}, 0, 0, 32).find("2^48"), std::string::npos);
  EXPECT_NE(error({33}, 8, 0, 64).find("multiple of 32"), std::string::npos);
  EXPECT_NE(error({}, 0, 0, 32).find("0 dimensions"), std::string::npos);
  EXPECT_NE(error({1, 1, 1, 1, 1}, 0, 0, 32).find("5 dimensions"), std::string::npos);
  EXPECT_NE(Raw(2, 0)
                .Tensor("t", {8}, 0, 0)
                .Tensor("t", {8}, 0, 32)
                .Data(64)
                .Error()
                .find("appears twice"),
            std::string::npos);
  EXPECT_NE(
      Raw(2, 0).Tensor("a", {9}, 0, 0).Tensor("b", {8}, 0, 32).Data(64).Error().find("overlap"),
      std::string::npos);
}

TEST(Gguf, AlignmentOfTheFileIsHonoured) {
  GgufWriter w;
  w.Set("general.alignment", int64_t{256});
  w.AddTensor("a", DType::kF32, {1}, std::vector<std::byte>(4, std::byte{1}));
  w.AddTensor("b", DType::kF32, {1}, std::vector<std::byte>(4, std::byte{2}));
  const std::vector<std::byte> bytes = w.ToBytes();
  Result<GgufFile> f = ParseGguf(bytes);
  ASSERT_TRUE(f.ok()) << f.error().ToString();
  EXPECT_EQ((f->tensors[0].data - bytes.data()) % 256, 0);
  EXPECT_EQ(f->tensors[1].data - f->tensors[0].data, 256);
  EXPECT_EQ(f->tensors[1].data[0], std::byte{2});
}

}  // namespace
}  // namespace baton
