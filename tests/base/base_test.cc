// Memory, number formats and files.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <random>

#include "base/atomic_file.h"
#include "base/buffer.h"
#include "base/dtype.h"
#include "base/mapped_file.h"
#include "base/processors.h"
#include "base/sha256.h"
#include "base/view.h"

namespace baton {
namespace {

TEST(Buffer, IsAlignedZeroedAndWritable) {
  for (int64_t bytes : {int64_t{1}, int64_t{4095}, int64_t{1} << 20, (int64_t{2} << 20) + 1}) {
    auto b = Buffer::Allocate(bytes);
    ASSERT_TRUE(b.ok());
    EXPECT_EQ(b->size(), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(b->data()) % (2 << 20), 0u);
    for (int64_t i = 0; i < bytes; i += 509) ASSERT_EQ(b->as<uint8_t>()[i], 0);
    std::memset(b->data(), 0x5a, static_cast<size_t>(bytes));
    EXPECT_EQ(b->as<uint8_t>()[bytes - 1], 0x5a);
  }
}

TEST(Buffer, MovingHandsOverOwnership) {
  Buffer a = Buffer::AllocateOrDie(100);
  std::byte* data = a.data();
  data[99] = std::byte{7};
  Buffer b = std::move(a);
  EXPECT_EQ(b.data(), data);
  EXPECT_EQ(b.data()[99], std::byte{7});
  EXPECT_FALSE(a);  // NOLINT: a moved-from buffer is empty
  Buffer c;
  EXPECT_FALSE(c);
  c = std::move(b);
  EXPECT_EQ(c.data(), data);
}

TEST(Buffer, ImpossibleSizesAreErrors) {
  for (int64_t bytes : {int64_t{-1}, std::numeric_limits<int64_t>::max(), int64_t{1} << 62,
                        std::numeric_limits<int64_t>::min()}) {
    auto b = Buffer::Allocate(bytes);
    ASSERT_FALSE(b.ok());
    EXPECT_EQ(b.error().code(), Error::Code::kResource);
  }
  EXPECT_TRUE(Buffer::Allocate(0).ok());
}

TEST(Arena, PiecesAreAlignedZeroedDisjointAndOutliveIt) {
  std::vector<std::pair<Arena::Piece, int64_t>> pieces;
  {
    Arena arena;
    for (int64_t bytes : {int64_t{1}, int64_t{100}, int64_t{40} << 20, int64_t{40} << 20,
                          int64_t{70} << 20, int64_t{64}}) {
      auto piece = arena.Take(bytes);
      ASSERT_TRUE(piece.ok());
      EXPECT_EQ(reinterpret_cast<uintptr_t>(piece->data) % 64, 0u);
      for (int64_t i = 0; i < bytes; i += 4093) ASSERT_EQ(piece->data[i], std::byte{0});
      pieces.emplace_back(*piece, bytes);
    }
  }
  for (size_t i = 0; i < pieces.size(); ++i) {
    const auto& [piece, bytes] = pieces[i];
    piece.data[0] = piece.data[bytes - 1] = static_cast<std::byte>(i + 1);
  }
  for (size_t i = 0; i < pieces.size(); ++i) {
    const auto& [piece, bytes] = pieces[i];
    EXPECT_EQ(piece.data[0], static_cast<std::byte>(i + 1));
    EXPECT_EQ(piece.data[bytes - 1], static_cast<std::byte>(i + 1));
  }
  EXPECT_FALSE(Arena().Take(int64_t{1} << 50).ok());
}

TEST(Bf16, EveryValueSurvivesARoundTrip) {
  for (uint32_t u = 0; u < 65536; ++u) {
    const bf16 x{static_cast<uint16_t>(u)};
    const float f = ToFloat(x);
    if (std::isnan(f)) {
      EXPECT_TRUE(std::isnan(ToFloat(ToBf16(f))));
    } else {
      ASSERT_EQ(ToBf16(f).bits, u);
    }
  }
}

// For a 16-bit format: every midpoint of two neighbours is rounded to the even one, all other
// values to the nearer one.
template <typename Up, typename Down>
void ExpectRoundsToNearestEven(Up up, Down down, uint16_t largest) {
  for (uint16_t u = 0; u < largest; ++u) {
    const double a = up(u), b = up(static_cast<uint16_t>(u + 1));
    const auto middle = static_cast<float>((a + b) / 2);
    ASSERT_EQ(static_cast<double>(middle), (a + b) / 2);
    const auto even = static_cast<uint16_t>(u % 2 ? u + 1 : u);
    ASSERT_EQ(down(middle), even) << u;
    ASSERT_EQ(down(-middle), even | 0x8000) << u;
    ASSERT_EQ(down(std::nextafterf(middle, 0.0f)), u) << u;
    ASSERT_EQ(down(std::nextafterf(middle, 4e38f)), u + 1) << u;
  }
}

TEST(Bf16, RoundsToNearestEven) {
  ExpectRoundsToNearestEven([](uint16_t u) { return ToFloat({u}); },
                            [](float f) { return ToBf16(f).bits; }, 0x7f7f);
  EXPECT_EQ(ToBf16(std::numeric_limits<float>::max()).bits, 0x7f80);
}

TEST(Half, EveryValueSurvivesARoundTrip) {
  for (uint32_t u = 0; u < 65536; ++u) {
    const float f = HalfToFloat(static_cast<uint16_t>(u));
    if (std::isnan(f)) {
      EXPECT_TRUE(std::isnan(HalfToFloat(FloatToHalf(f))));
    } else {
      ASSERT_EQ(FloatToHalf(f), u);
    }
  }
  EXPECT_EQ(HalfToFloat(0x3c00), 1.0f);
  EXPECT_EQ(HalfToFloat(0x0001), 0x1p-24f);
  EXPECT_EQ(HalfToFloat(0x7bff), 65504.0f);
}

TEST(Half, RoundsToNearestEvenAndOverflowsToInfinity) {
  ExpectRoundsToNearestEven([](uint16_t u) { return HalfToFloat(u); }, FloatToHalf, 0x7bff);
  EXPECT_EQ(FloatToHalf(65519.99f), 0x7bff);
  EXPECT_EQ(FloatToHalf(65520.0f), 0x7c00);
  EXPECT_EQ(FloatToHalf(-1e30f), 0xfc00);
}

TEST(View, SlicesAndColumnsPointWhereTheySay) {
  std::vector<int> data(24);
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<int>(i);
  const View<int> v(data.data(), {4, 6});
  EXPECT_EQ(v.row(2)[3], 15);
  EXPECT_EQ(v.Slice(1, 3).row(1)[0], 12);
  const View<const int> c = v.Columns(2, 4);
  EXPECT_EQ(c.row(1)[1], 9);
  EXPECT_FALSE(c.contiguous());
  EXPECT_TRUE(v.Slice(1, 3).contiguous());
  EXPECT_EQ(v.Slice(2, 2).size(), 0);
}

TEST(Sha256, KnownDigests) {
  EXPECT_EQ(Sha256Hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(Sha256Hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  Sha256 parts;
  parts.Update("a");
  parts.Update(std::string_view());
  parts.Update("bc");
  EXPECT_EQ(parts.Hex(), Sha256Hex("abc"));
}

class FileTest : public ::testing::Test {
 protected:
  FileTest() {
    std::string name = (std::filesystem::temp_directory_path() / "baton-base-XXXXXX").string();
    folder_ = ::mkdtemp(name.data());
  }
  ~FileTest() override { std::filesystem::remove_all(folder_); }
  std::string Read(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  std::vector<std::string> Listing() {
    std::vector<std::string> names;
    for (const auto& e : std::filesystem::directory_iterator(folder_))
      names.push_back(e.path().filename());
    return names;
  }
  std::string folder_;
};

TEST_F(FileTest, AtomicWriteReplacesTheWholeFileAndLeavesNothingElse) {
  const std::string path = folder_ + "/f";
  for (const std::string& text :
       {std::string("one"), std::string(100000, 'x'), std::string(), std::string("a\0b\n", 4)}) {
    const Status status = WriteFileAtomically(path, text);
    ASSERT_TRUE(status.ok()) << status.error().ToString();
    EXPECT_EQ(Read(path), text);
    EXPECT_EQ(Listing(), std::vector<std::string>{"f"});
  }
}

TEST_F(FileTest, FailedAtomicWriteLeavesWhatWasThere) {
  EXPECT_EQ(WriteFileAtomically(folder_ + "/none/f", "x").error().code(), Error::Code::kIo);
  // A folder cannot be replaced by a file: the error comes at the rename.
  const std::string path = folder_ + "/folder";
  std::filesystem::create_directories(path + "/inside");
  EXPECT_FALSE(WriteFileAtomically(path, "x").ok());
  EXPECT_EQ(Listing(), std::vector<std::string>{"folder"});
  EXPECT_FALSE(WriteFileAtomically("", "x").ok());
}

TEST_F(FileTest, AFullDiskIsAnErrorAndLeavesWhatWasThere) {
  const std::string path = folder_ + "/f";
  ASSERT_TRUE(WriteFileAtomically(path, "old").ok());
  // The temporary file's name is a link to /dev/full.
  const std::string temporary = path + "." + std::to_string(::getpid()) + ".tmp";
  ASSERT_EQ(::symlink("/dev/full", temporary.c_str()), 0);
  const Status status = WriteFileAtomically(path, "new");
  ASSERT_FALSE(status.ok());
  EXPECT_NE(status.error().ToString().find("full"), std::string::npos);
  EXPECT_EQ(Read(path), "old");
  EXPECT_EQ(Listing(), std::vector<std::string>{"f"});
}

TEST_F(FileTest, AFileThatIsNotCommittedLeavesNothing) {
  const std::string path = folder_ + "/f";
  {
    auto file = AtomicFile::Create(path);
    ASSERT_TRUE(file.ok());
    AtomicFile moved = std::move(file).value();
    ASSERT_TRUE(moved.Write(std::as_bytes(std::span("text"))).ok());
    EXPECT_EQ(Listing().size(), 1u);
  }
  EXPECT_TRUE(Listing().empty());
}

TEST_F(FileTest, SymbolicLinksAreWrittenThrough) {
  std::filesystem::create_directories(folder_ + "/real");
  std::ofstream(folder_ + "/real/f") << "old";
  std::filesystem::permissions(folder_ + "/real/f", std::filesystem::perms::owner_read |
                                                        std::filesystem::perms::owner_write);
  std::filesystem::create_symlink("real/f", folder_ + "/link");
  std::filesystem::create_symlink("link", folder_ + "/second");
  ASSERT_TRUE(WriteFileAtomically(folder_ + "/second", "new").ok());
  EXPECT_EQ(Read(folder_ + "/real/f"), "new");
  EXPECT_TRUE(std::filesystem::is_symlink(folder_ + "/link"));
  EXPECT_TRUE(std::filesystem::is_symlink(folder_ + "/second"));
  EXPECT_EQ(std::filesystem::status(folder_ + "/real/f").permissions(),
            std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
  // A link's target need not exist yet; a circle of links is an error.
  std::filesystem::create_symlink("real/new", folder_ + "/dangling");
  ASSERT_TRUE(WriteFileAtomically(folder_ + "/dangling", "made").ok());
  EXPECT_EQ(Read(folder_ + "/real/new"), "made");
  std::filesystem::create_symlink("circle", folder_ + "/circle");
  EXPECT_FALSE(WriteFileAtomically(folder_ + "/circle", "x").ok());
}

TEST_F(FileTest, ATruncatedMappedFileEndsTheProgramWithAnError) {
  const std::string path = folder_ + "/model";
  std::ofstream(path) << std::string(1 << 20, 'x');
  EXPECT_EXIT(
      {
        ExitOnTruncatedFiles();
        const auto file = MappedFile::Open(path);
        std::filesystem::resize_file(path, 100);
        volatile std::byte last = file->bytes().back();
        (void)last;
        _exit(0);
      },
      testing::ExitedWithCode(1), "baton: error: .*model: the file became shorter");
}

TEST(Processors, TheQuotaOfAnyGroupAroundCounts) {
  const std::string root = testing::TempDir() + "/base_test_cgroup";
  const auto write = [&](const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root + path).parent_path());
    std::ofstream(root + path) << text;
  };
  const auto start = [&] { std::filesystem::remove_all(root); };
  start();
  EXPECT_EQ(CpuQuota(root), std::numeric_limits<double>::infinity());
  // Version 2: its own group is unlimited, the enclosing one is not.
  write("/proc/self/mountinfo", "30 24 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n");
  write("/proc/self/cgroup", "0::/outer/inner\n");
  write("/sys/fs/cgroup/outer/inner/cpu.max", "max 100000\n");
  EXPECT_EQ(CpuQuota(root), std::numeric_limits<double>::infinity());
  write("/sys/fs/cgroup/outer/cpu.max", "150000 100000\n");
  EXPECT_EQ(CpuQuota(root), 1.5);
  // Version 1 in a container: the path is the host's, and the mount shows only the end of it.
  start();
  write("/proc/self/mountinfo",
        "25 24 0:21 /docker/7 /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n");
  write("/proc/self/cgroup", "4:memory:/docker/7\n3:cpu,cpuacct:/docker/7\n");
  write("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n");
  write("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(CpuQuota(root), std::numeric_limits<double>::infinity());
  write("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "300000\n");
  EXPECT_EQ(CpuQuota(root), 3.0);
  std::filesystem::remove_all(root);
  EXPECT_GE(UsableProcessors(), 1);
}

TEST_F(FileTest, ReleasedBytesStayReadable) {
  const std::string path = folder_ + "/f", text(100000, 'x');
  std::ofstream(path) << text;
  const auto file = MappedFile::Open(path);
  ASSERT_TRUE(file.ok());
  const std::string outside = "not of the file";
  for (const auto part : {file->bytes(), file->bytes().subspan(5000, 10000),
                          std::as_bytes(std::span(outside)), std::span<const std::byte>()}) {
    file->Release(part);
    EXPECT_EQ(std::memcmp(file->bytes().data(), text.data(), text.size()), 0);
    EXPECT_EQ(outside, "not of the file");
  }
}

TEST_F(FileTest, MappedFileShowsTheBytes) {
  const std::string path = folder_ + "/f";
  std::ofstream(path) << "hello";
  auto file = MappedFile::Open(path);
  ASSERT_TRUE(file.ok());
  ASSERT_EQ(file->bytes().size(), 5u);
  EXPECT_EQ(std::memcmp(file->bytes().data(), "hello", 5), 0);
  const std::byte* data = file->bytes().data();
  MappedFile moved = std::move(file).value();
  EXPECT_EQ(moved.bytes().data(), data);
  MappedFile other;
  other = std::move(moved);
  EXPECT_EQ(other.bytes().size(), 5u);
  std::ofstream(folder_ + "/empty");
  EXPECT_EQ(MappedFile::Open(folder_ + "/empty")->bytes().size(), 0u);
}

TEST_F(FileTest, WhatIsNoFileCannotBeMapped) {
  EXPECT_EQ(MappedFile::Open(folder_ + "/none").error().code(), Error::Code::kNotFound);
  EXPECT_EQ(MappedFile::Open(folder_).error().code(), Error::Code::kIo);
  EXPECT_EQ(MappedFile::Open("/dev/null").error().code(), Error::Code::kIo);
  // A pipe without a writer: an error, without blocking.
  const std::string pipe = folder_ + "/pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_EQ(MappedFile::Open(pipe).error().code(), Error::Code::kIo);
}

}  // namespace
}  // namespace baton
