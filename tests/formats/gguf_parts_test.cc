#include "formats/gguf_parts.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "formats/gguf_writer.h"

namespace baton {
namespace {

class Parts : public testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  std::string Name(int i, int count = 2) const {
    return fmt::format("{}/m-{:05}-of-{:05}.gguf", folder_, i, count);
  }
  // Part i from 1 with the tensors of these names.
  void Write(int i, const std::vector<std::string>& tensors, int64_t number, int64_t count = 2,
             int64_t total = 3) {
    GgufWriter w;
    if (i == 1) w.Set("general.name", std::string("whole"));
    w.Set("split.no", number);
    w.Set("split.count", count);
    w.Set("split.tensors.count", total);
    for (const std::string& t : tensors)
      w.AddTensor(t, DType::kF32, {1}, std::vector<std::byte>(4, std::byte(t[0])));
    ASSERT_TRUE(w.WriteFile(Name(i)).ok());
  }
  std::string ErrorOf(const std::string& path) {
    const auto m = OpenGgufModel(path);
    return m.ok() ? "no error" : m.error().ToString();
  }
  std::string folder_ = testing::TempDir() + "/gguf_parts_test";
};

TEST_F(Parts, OpenAsOneWhicheverIsGiven) {
  Write(1, {"a", "b"}, 0);
  Write(2, {"c"}, 1);
  for (int given : {1, 2}) {
    const auto m = OpenGgufModel(Name(given));
    ASSERT_TRUE(m.ok()) << m.error().ToString();
    EXPECT_EQ(*m->metadata.String("general.name"), "whole");
    ASSERT_EQ(m->tensors.size(), 3u);
    EXPECT_EQ(m->files.size(), 2u);
    for (const TensorInfo& t : m->tensors) EXPECT_EQ(t.data[0], std::byte(t.name[0]));
    for (const MappedFile& f : m->files) {
      for (const TensorInfo& t : m->tensors) f.Release({t.data, 4});
    }
    EXPECT_EQ(m->tensors[2].data[0], std::byte('c'));
  }
}

TEST_F(Parts, WhatDoesNotBelongTogetherIsAnError) {
  Write(1, {"a", "b"}, 0);
  EXPECT_NE(ErrorOf(Name(1)).find("00002-of-00002.gguf: no such file"), std::string::npos);
  Write(2, {"c"}, 0);
  EXPECT_NE(ErrorOf(Name(1)).find("split.no is 0"), std::string::npos);
  Write(2, {"b"}, 1);
  EXPECT_NE(ErrorOf(Name(1)).find("'b' is in an earlier part"), std::string::npos);
  Write(2, {}, 1);
  EXPECT_NE(ErrorOf(Name(1)).find("have 2 tensors, expected 3"), std::string::npos);
  Write(2, {"c"}, 1, 3);
  EXPECT_NE(ErrorOf(Name(1)).find("split.count 3"), std::string::npos);
  std::filesystem::copy_file(Name(1), folder_ + "/renamed.gguf");
  EXPECT_NE(ErrorOf(folder_ + "/renamed.gguf").find("-00001-of-00002.gguf"), std::string::npos);
  Write(1, {"a"}, 7);
  EXPECT_NE(ErrorOf(Name(1)).find("split.no is 7"), std::string::npos);
  Write(1, {"a"}, 0, int64_t{1} << 40);
  EXPECT_NE(ErrorOf(Name(1)).find("split.no is 0"), std::string::npos);
}

}  // namespace
}  // namespace baton
