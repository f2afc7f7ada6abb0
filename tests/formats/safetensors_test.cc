#include "formats/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

namespace baton {
namespace {

std::vector<std::byte> File(const std::string& header, size_t data) {
  std::vector<std::byte> bytes(8 + header.size() + data);
  const uint64_t n = header.size();
  std::memcpy(bytes.data(), &n, 8);
  std::memcpy(bytes.data() + 8, header.data(), header.size());
  return bytes;
}

std::string ErrorOf(const std::vector<std::byte>& bytes) {
  const auto r = ParseSafetensors(bytes);
  return r.ok() ? "no error" : r.error().ToString();
}

std::string Entry(const std::string& type, const std::string& shape, const std::string& range) {
  return R"({"t":{"dtype":")" + type + R"(","shape":)" + shape + R"(,"data_offsets":)" + range +
         "}}";
}

std::string Folder(const std::string& name) {
  const std::string path = testing::TempDir() + "/safetensors_test_" + name;
  std::filesystem::remove_all(path);
  std::filesystem::create_directories(path);
  return path;
}

void Write(const std::string& path, const std::string& text) { std::ofstream(path) << text; }

TEST(Safetensors, RoundTrips) {
  const std::string folder = Folder("round");
  std::vector<std::byte> data(12);
  data[11] = std::byte{9};
  ASSERT_TRUE(WriteSafetensors(folder + "/model.safetensors",
                               {{"b", DType::kF32, {3}, data}, {"a", DType::kBF16, {3, 2}, data}})
                  .ok());
  const auto f = OpenSafetensorsFolder(folder);
  ASSERT_TRUE(f.ok()) << f.error().ToString();
  ASSERT_EQ(f->tensors.size(), 2u);
  EXPECT_EQ(f->tensors[1].name, "a");
  EXPECT_EQ(f->tensors[1].dtype, DType::kBF16);
  EXPECT_EQ(f->tensors[1].shape, (std::vector<int64_t>{3, 2}));
  EXPECT_EQ(f->tensors[1].data[11], std::byte{9});
}

TEST(Safetensors, HostileHeadersAreErrors) {
  EXPECT_EQ(ErrorOf(File(Entry("F32", "[2]", "[0,8]"), 8)), "no error");
  EXPECT_EQ(ErrorOf(File(Entry("F32", "[]", "[0,4]"), 4)), "no error");
  for (
      const auto& [header, message] : std::vector<std::pair<std::string, std::string>>{
          {"", "not a JSON object"},
          {"[1]", "not a JSON object"},
          {std::string(100000, '['), "not a JSON object"},
          {"{\"\xff\":1}", "not a JSON object"},
          {R"({"t":7})", "expected {dtype, shape, data_offsets"},
          {R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0]}})", "expected {dtype"},
          {Entry("F64", "[1]", "[0,8]"), "supported: F32 F16 BF16"},
          {Entry("F32", "[2]", "[0,4]"), "expected 8 from its shape"},
          {Entry("F32", "[2]", "[8,0]"), "outside"},
          {Entry("F32", "[2]", "[1,9]"), "outside"},
          {Entry("F32", "[2]", "[-8,0]"), "outside"},
          {Entry("F32", "[2]", "[0,18446744073709551615]"), "outside"},
          {Entry("F32", "[-2]", "[0,8]"), "no count"},
          {Entry("F32", "[2.5]", "[0,8]"), "no count"},
          {Entry("F32", "[4294967296,4294967296]", "[0,0]"), "2^48"},
          {Entry("F32", "[1,1,1,1,2]", "[0,8]"), "5 dimensions"},
          {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}})",
           "overlap"},
          {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
           "'a' appears twice"},
      }) {
    const std::string e = ErrorOf(File(header, 8));
    EXPECT_NE(e.find(message), std::string::npos) << header.substr(0, 80) << " -> " << e;
    EXPECT_EQ(e.find('\n'), std::string::npos);
  }
}

TEST(Safetensors, HeaderLengthIsChecked) {
  std::vector<std::byte> bytes(16);
  std::memset(bytes.data(), 255, 8);
  EXPECT_NE(ErrorOf(bytes).find("header of"), std::string::npos);
  EXPECT_NE(ErrorOf({}).find("at least 8 bytes"), std::string::npos);
  const std::vector<std::byte> good = File(Entry("F32", "[2]", "[0,8]"), 8);
  for (size_t n = 0; n < good.size(); ++n)
    EXPECT_FALSE(ParseSafetensors(std::span(good).first(n)).ok()) << n;
}

TEST(Safetensors, DamagedBytesNeverLeadOutsideTheFile) {
  const std::vector<std::byte> good = File(Entry("BF16", "[2,2]", "[0,8]"), 8);
  std::mt19937 random(1);
  for (int trial = 0; trial < 20000; ++trial) {
    std::vector<std::byte> bad = good;
    for (int k = 0; k < 1 + trial % 3; ++k)
      bad[random() % bad.size()] = static_cast<std::byte>(random() % 128);
    const auto r = ParseSafetensors(bad);
    if (!r.ok()) continue;
    for (const TensorInfo& t : *r) {
      EXPECT_GE(t.data, bad.data());
      EXPECT_LE(t.data + t.bytes, bad.data() + bad.size());
    }
  }
}

TEST(Safetensors, ShardsAreReadThroughTheIndex) {
  const std::string folder = Folder("shards");
  ASSERT_TRUE(WriteSafetensors(folder + "/one.safetensors",
                               {{"a", DType::kF32, {1}, std::vector<std::byte>(4)}})
                  .ok());
  ASSERT_TRUE(WriteSafetensors(folder + "/two.safetensors",
                               {{"b", DType::kF32, {1}, std::vector<std::byte>(4)}})
                  .ok());
  const std::string index = folder + "/model.safetensors.index.json";
  Write(index, R"({"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})");
  const auto f = OpenSafetensorsFolder(folder);
  ASSERT_TRUE(f.ok()) << f.error().ToString();
  EXPECT_EQ(f->files.size(), 2u);
  EXPECT_EQ(f->tensors.size(), 2u);

  for (const auto& [text, message] : std::vector<std::pair<std::string, std::string>>{
           {R"({"weight_map":{"a":"one.safetensors","c":"two.safetensors"}})", "lacks tensor 'c'"},
           {R"({"weight_map":{"a":"../one.safetensors"}})", "not a file in this folder"},
           {R"({"weight_map":{"a":"three.safetensors"}})", "no such file"},
           {R"({"weight_map":{"a":3}})", "no file name"},
           {R"({"weight_map":{}})", "weight_map"},
           {"{", "weight_map"}}) {
    Write(index, text);
    const auto bad = OpenSafetensorsFolder(folder);
    ASSERT_FALSE(bad.ok()) << text;
    EXPECT_NE(bad.error().ToString().find(message), std::string::npos) << bad.error().ToString();
  }
}

TEST(Safetensors, ShardsWithoutAnIndexAreFoundByName) {
  const std::string folder = Folder("no_index");
  const auto write = [&](const std::string& number, const char* tensor) {
    return WriteSafetensors(folder + "/model-" + number + "-of-00002.safetensors",
                            {{tensor, DType::kF32, {1}, std::vector<std::byte>(4)}});
  };
  ASSERT_TRUE(write("00001", "a").ok());
  const auto half = OpenSafetensorsFolder(folder);
  ASSERT_FALSE(half.ok());
  EXPECT_NE(half.error().ToString().find("00002-of-00002.safetensors"), std::string::npos);
  EXPECT_NE(half.error().ToString().find("2 such files"), std::string::npos);
  ASSERT_TRUE(write("00002", "b").ok());
  const auto f = OpenSafetensorsFolder(folder);
  ASSERT_TRUE(f.ok()) << f.error().ToString();
  EXPECT_EQ(f->tensors.size(), 2u);
}

TEST(Safetensors, FolderWithoutWeightsSaysWhatIsExpected) {
  const auto f = OpenSafetensorsFolder(Folder("empty"));
  ASSERT_FALSE(f.ok());
  EXPECT_NE(f.error().ToString().find("neither model.safetensors nor"), std::string::npos);
}

}  // namespace
}  // namespace baton
