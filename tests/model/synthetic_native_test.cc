// Synthetic models and named shapes of the trained-sparse architectures.
#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "model/spec/architectures.h"
#include "model/spec/checkpoint.h"
#include "model/spec/synthetic.h"
#include "plan/kv_bytes.h"

namespace baton {
namespace {

const SyntheticSpec kSpecs[] = {
    {.architecture = "baton-dense", .layers = 4, .layout = "WWFF", .rope = "W", .sink_tokens = 2},
    {.architecture = "baton-clsa", .layers = 4, .layout = "WWDD", .rope = "W", .exit_layer = 2},
    {.architecture = "baton-clsa",
     .layers = 6,
     .layout = "WWWIII",
     .rope = "W",
     .qk_norm = true,
     .memory_qk_norm = true,
     .exit_layer = 3,
     .top_k = 24,
     .recent = 4,
     .sink = 2,
     .index_dim = 32},
    {.architecture = "baton-clsa",
     .layers = 4,
     .layout = "WWLL",
     .rope = "W",
     .gated = "L",
     .top_k = 24,
     .index_dim = 32},
    {.architecture = "baton-hysparse",
     .layers = 6,
     .layout = "FSSFSF",
     .rope = "FS",
     .gated = "S",
     .sinks = "S",
     .gate = Gate::kHead,
     .top_k = 32,
     .block = 8,
     .scope = Scope::kGroup},
    {.architecture = "baton-hysparse2",
     .layers = 8,
     .layout = "WFWWCRCR",
     .rope = "W",
     .gated = "WR",
     .sinks = "WR",
     .rope_dims = 8,
     .exit_layer = 4,
     .top_k = 20,
     .recent = 9},
    {.architecture = "baton-hysparse2",
     .layers = 8,
     .layout = "WFWWCSCS",
     .rope = "W",
     .gated = "WS",
     .sinks = "WS",
     .top_k = 20},
};

std::string Fresh(const std::string& name) {
  const std::string path = testing::TempDir() + "/synthetic_native_test_" + name;
  std::filesystem::remove_all(path);
  return path;
}

TEST(SyntheticNative, FileAndFolderOfOneSpecAreTheSameModel) {
  for (SyntheticSpec spec : kSpecs) {
    for (DType type : {DType::kF32, DType::kQ8_0, DType::kQ4_0}) {
      spec.weights = type;
      const std::string file = Fresh("m.gguf"), folder = Fresh("m");
      const Status s = WriteSyntheticGguf(file, spec);
      ASSERT_TRUE(s.ok()) << spec.layout << ": " << s.error().ToString();
      const Result<Checkpoint> a = Checkpoint::Open(file);
      ASSERT_TRUE(a.ok()) << a.error().ToString();
      EXPECT_EQ(LayoutOf(a->config), spec.layout);
      EXPECT_EQ(a->config.vocab, spec.vocab);
      EXPECT_EQ(a->config.exit_layer, spec.exit_layer);
      EXPECT_TRUE(CheckShape(a->config, spec).ok());
      EXPECT_TRUE(a->LoadTokenizer().ok());
      if (type != DType::kF32) continue;
      ASSERT_TRUE(WriteSyntheticFolder(folder, spec).ok());
      const Result<Checkpoint> b = Checkpoint::Open(folder);
      ASSERT_TRUE(b.ok()) << b.error().ToString();
      EXPECT_EQ(b->fingerprint, a->fingerprint) << spec.layout;
    }
  }
}

TEST(SyntheticNative, LayoutsThatAreNoModelAreErrors) {
  const auto error = [](const SyntheticSpec& s) {
    const Status status = WriteSyntheticGguf(Fresh("bad.gguf"), s);
    return status.ok() ? "no error" : status.error().ToString();
  };
  EXPECT_NE(error({.architecture = "baton-dense"}).find("layout '' of 0 layers, expected 2"),
            std::string::npos);
  EXPECT_NE(error({.architecture = "baton-dense", .layout = "FX"}).find("plan.kind[1] is 'X'"),
            std::string::npos);
  EXPECT_NE(error({.architecture = "baton-hysparse", .layout = "SF", .top_k = 8})
                .find("layer 0 (sparse): plan.kv_source is -2 (none)"),
            std::string::npos);
  EXPECT_NE(error({.architecture = "baton-clsa", .layout = "WI", .rope = "W", .top_k = 8})
                .find("indexer.head_count is 0"),
            std::string::npos);
}

ModelShape ShapeOfNamed(const std::string& name) {
  const SyntheticSpec spec = NamedShape(name).value();
  for (const Architecture& a : Architectures()) {
    if (a.name != spec.architecture) continue;
    const Metadata m = NativeMetadata(spec, a).value();
    const Result<ModelConfig> c = ReadConfig(FileKind::kGguf, a, m);
    EXPECT_TRUE(c.ok()) << name << ": " << c.error().ToString();
    if (c.ok()) return ShapeOf(*c, "");
  }
  return {};
}

// The cache sizes that the papers give (MiB, bf16; HySparse2 at 8 bits and 2^20 tokens).
TEST(Shapes, HoldWhatThePapersSay) {
  constexpr int64_t kTokens = 131072, kMiB = 1 << 20;
  EXPECT_EQ(KvBytesHeld(ShapeOfNamed("clsa-4b").caches, kTokens), 304 * kMiB);
  EXPECT_EQ(KvBytesHeld(ShapeOfNamed("transformer-4b").caches, kTokens), 8192 * kMiB);
  EXPECT_EQ(KvBytesHeld(ShapeOfNamed("yoco-4b").caches, kTokens), (256 + 16) * kMiB);
  EXPECT_EQ(KvBytesHeld(ShapeOfNamed("hysparse-80b-dense-ffn").caches, kTokens),
            (1280 + 11) * kMiB);
  EXPECT_EQ(KvBytesHeld(ShapeOfNamed("hysparse2-80b-dense-ffn").caches, kTokens), (640 + 3) * kMiB);
  const ModelShape two = ShapeOfNamed("hysparse2-80b-dense-ffn");
  EXPECT_NEAR(static_cast<double>(KvBytesHeld(two.caches, int64_t{1} << 20, {1, 0})), 2.69e9, 5e6);
  EXPECT_EQ(two.exit_layer, 25);
  EXPECT_EQ(ShapeOfNamed("hysparse-7b").layers, 36);
  EXPECT_FALSE(NamedShape("hysparse-7b").value().note.empty());
}

}  // namespace
}  // namespace baton
