#include "model/spec/router.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "formats/hf_config.h"
#include "formats/safetensors.h"
#include "model/spec/checkpoint.h"
#include "model/spec/checkpoint_storage.h"
#include "model/spec/synthetic.h"

namespace baton {
namespace {

constexpr int kLayers = 2;
constexpr int64_t kDim = 16;
constexpr RouterSettings kSettings{.pool = 8, .sink = 4, .window = 32};

std::string Fresh(const std::string& name) {
  const std::string path = testing::TempDir() + "/router_test_" + name;
  std::filesystem::remove_all(path);
  return path;
}

ModelConfig Model() {
  return {.architecture = "qwen3", .layers = kLayers, .heads = 4, .kv_heads = 2, .head_dim = kDim};
}

std::string Written(const RouterFile& router) {
  const std::string path = Fresh("file.safetensors");
  EXPECT_TRUE(WriteRouter(path, router).ok());
  return path;
}

// The file again, with other metadata and without some tensors.
std::string Changed(const std::string& from, const std::string& metadata,
                    const std::string& without = "", const std::string& renamed = "") {
  const MappedFile file = MappedFile::Open(from).value();
  std::vector<SafetensorsEntry> entries;
  const std::vector<TensorInfo> tensors = ParseSafetensors(file.bytes()).value();
  for (const TensorInfo& t : tensors) {
    if (t.name == without) continue;
    entries.push_back(
        {t.name == renamed ? t.name + "2" : t.name, t.dtype, t.shape, {t.data, t.data + t.bytes}});
  }
  const std::string path = Fresh("changed.safetensors");
  SafetensorsMetadata m;
  if (!metadata.empty()) m["baton.router"] = metadata;
  EXPECT_TRUE(WriteSafetensors(path, entries, m).ok());
  return path;
}

std::string ErrorOf(const std::string& path, const ModelConfig& model) {
  const Result<RouterFile> r = LoadRouter(path, model);
  return r.ok() ? "no error" : r.error().ToString();
}

// A model with interleaved pairs reads the first matrices permuted; written back, they are the
// file's.
TEST(Router, FileOrderIsWhatLoadingStartedFrom) {
  const RouterFile made = SyntheticRouter(kSettings, kLayers, kDim, 7);
  ModelConfig model = Model();
  model.rope_interleaved = true;
  const Result<RouterFile> read = LoadRouter(Written(made), model);
  ASSERT_TRUE(read.ok()) << read.error().ToString();
  EXPECT_NE(read->layers[1].linear[0].weight, made.layers[1].linear[0].weight);
  const RouterFile back = InFileOrder(*read, model);
  for (size_t l = 0; l < made.layers.size(); ++l)
    EXPECT_EQ(back.layers[l].linear[0].weight, made.layers[l].linear[0].weight);
}

TEST(Router, Bf16FilesHoldRoundedWeights) {
  const RouterFile made = SyntheticRouter(kSettings, kLayers, kDim, 7);
  const std::string path = Fresh("bf16.safetensors");
  ASSERT_TRUE(WriteRouter(path, made, /*bf16=*/true).ok());
  EXPECT_LT(std::filesystem::file_size(path) * 10, std::filesystem::file_size(Written(made)) * 7);
  const Result<RouterFile> read = LoadRouter(path, Model());
  ASSERT_TRUE(read.ok()) << read.error().ToString();
  for (size_t i = 0; i < 5; ++i) {
    const RouterLinear &a = read->layers[0].linear[i], &b = made.layers[0].linear[i];
    EXPECT_EQ(a.bias, b.bias);
    for (size_t w = 0; w < b.weight.size(); ++w)
      ASSERT_EQ(a.weight[w], ToFloat(ToBf16(b.weight[w])));
  }
}

TEST(Router, WhatIsWrittenIsRead) {
  const RouterFile made = SyntheticRouter(kSettings, kLayers, kDim, 7, {{0.5f, 1.5f}, {2, 3}});
  const Result<RouterFile> read = LoadRouter(Written(made), Model());
  ASSERT_TRUE(read.ok()) << read.error().ToString();
  EXPECT_EQ(read->settings, kSettings);
  EXPECT_EQ(read->hash, made.hash);
  ASSERT_EQ(read->layers.size(), made.layers.size());
  int64_t parameters = 0;
  for (size_t l = 0; l < made.layers.size(); ++l) {
    for (size_t i = 0; i < 5; ++i) {
      EXPECT_EQ(read->layers[l].linear[i].weight, made.layers[l].linear[i].weight);
      EXPECT_EQ(read->layers[l].linear[i].bias, made.layers[l].linear[i].bias);
      if (l == 0)
        parameters +=
            std::ssize(made.layers[l].linear[i].weight) + std::ssize(made.layers[l].linear[i].bias);
    }
  }
  EXPECT_EQ(parameters, 36 * kDim * kDim + 17 * kDim + 2);
  EXPECT_EQ(read->layers[0].linear[4].bias, (std::vector<float>{0.5f, 1.5f}));
  EXPECT_NE(SyntheticRouter(kSettings, kLayers, kDim, 8).hash, made.hash);
  EXPECT_NE(SyntheticRouter({.pool = 9}, kLayers, kDim, 7, {{0.5f, 1.5f}, {2, 3}}).hash, made.hash);
}

// Row 2i + s of an interleaved query is row s * d/2 + i of the Hugging Face one.
TEST(Router, ColumnsFollowTheOrderOfTheModelsQuery) {
  const RouterFile made = SyntheticRouter(kSettings, kLayers, kDim, 7);
  ModelConfig model = Model();
  model.rope_interleaved = true;
  const Result<RouterFile> read = LoadRouter(Written(made), model);
  ASSERT_TRUE(read.ok());
  EXPECT_EQ(read->hash, made.hash);
  const RouterLinear &a = made.layers[1].linear[0], &b = read->layers[1].linear[0];
  for (int64_t r = 0; r < a.outputs; ++r) {
    for (int64_t i = 0; i < kDim / 2; ++i) {
      for (int64_t s = 0; s < 2; ++s)
        ASSERT_EQ(b.weight[static_cast<size_t>(r * kDim + 2 * i + s)],
                  a.weight[static_cast<size_t>(r * kDim + s * kDim / 2 + i)]);
    }
  }
  EXPECT_EQ(read->layers[1].linear[1].weight, made.layers[1].linear[1].weight);
}

// The weights that an independent program makes from the golden's seed.
TEST(Router, SyntheticWeightsAreTheSameEverywhere) {
  const RouterFile r = SyntheticRouter({.pool = 32, .sink = 16, .window = 64}, 2, 64, 5);
  const std::vector<float>& w = r.layers[1].linear[2].weight;
  EXPECT_EQ(r.hash, "sha256:d0c7695cb4ea4314b817b632dbd2ac345d4da3f3ff0c6dc9cafb68bdacf83379");
  EXPECT_EQ(w.size(), 256u * 128u);
}

TEST(Router, FilesThatDoNotFitAreRefusedWithAllProblems) {
  const std::string file = Written(SyntheticRouter(kSettings, kLayers, kDim, 7));
  ModelConfig model = Model();
  EXPECT_EQ(ErrorOf(file, model), "no error");
  model.layers = 3;
  model.head_dim = 32;
  std::string e = ErrorOf(file, model);
  for (const char* part :
       {"head_dim is 16, expected the model's 32", "layers is 2, expected the model's 3",
        "cls_feat_extractor.0.weight: shape [128, 16], expected [256, 32]"})
    EXPECT_NE(e.find(part), std::string::npos) << e;
  const std::string p = "model.layers.1.self_attn.mask_allocator.cls_router_head_agnostic.4.bias";
  e = ErrorOf(Changed(file,
                      R"({"flavour":"elastic","pool_size":0,"sink_size":4,)"
                      R"("use_softmax":false,"head_dim":16,"layers":2})",
                      p, "model.layers.0.self_attn.mask_allocator.cls_feat_extractor.0.bias"),
              Model());
  for (const char* part :
       {"flavour is 'elastic', expected 'flux'", "pool_size is 0", "local_window_size is missing",
        "use_softmax is false", "head_agnostic.4.bias [2]: missing",
        "cls_feat_extractor.0.bias2: not part of the routers of 2 layers"})
    EXPECT_NE(e.find(part), std::string::npos) << part << " in " << e;
  EXPECT_NE(ErrorOf(Changed(file, ""), Model()).find("no metadata baton.router"),
            std::string::npos);
  EXPECT_NE(ErrorOf(Changed(file, "{"), Model()).find("expected a JSON object"), std::string::npos);
}

TEST(Router, ValuesMustBeFinite) {
  RouterFile r = SyntheticRouter(kSettings, kLayers, kDim, 7);
  r.layers[1].linear[0].bias[3] = NAN;
  EXPECT_NE(ErrorOf(Written(r), Model()).find("not finite"), std::string::npos);
}

// ---- published checkpoints ----

using Values = std::map<std::string, MetaValue>;

std::string Published(const std::string& architecture, const Values& changes,
                      const std::vector<std::string>& without = {}) {
  const std::string folder = Fresh("published");
  const SyntheticSpec spec{.architecture = architecture};
  EXPECT_TRUE(WriteSyntheticFolder(folder, spec).ok());
  Metadata m = ReadHfConfig(folder + "/config.json").value();
  m.values["architectures"] = std::vector<std::string>{
      architecture == "llama" ? "PawLlamaForCausalLM" : "PawQwen3ForCausalLM"};
  m.values["toggle_type"] = std::string("streaming");
  m.values["retrieval_mode"] = std::string("full");
  m.values["pooling_mode"] = std::string("ctx_q");
  m.values["use_softmax"] = true;
  m.values["sink_size"] = int64_t{16};
  m.values["triangle_n_last"] = int64_t{128};
  for (const auto& [key, value] : changes) m.values[key] = value;
  for (const std::string& key : without) m.values.erase(key);
  std::vector<SafetensorsEntry> entries;
  const auto add = [&](const std::string& path) {
    const MappedFile file = MappedFile::Open(path).value();
    const std::vector<TensorInfo> tensors = ParseSafetensors(file.bytes()).value();
    for (const TensorInfo& t : tensors)
      entries.push_back({t.name, t.dtype, t.shape, {t.data, t.data + t.bytes}});
  };
  add(folder + "/model.safetensors");
  add(Written(SyntheticRouter(kSettings, spec.layers, spec.head_dim, 7)));
  for (const char* name : {"model.sparsity_lambda1_task", "model.sparsity_lambda2_task",
                           "model.layers.0.self_attn.mask_allocator.log_temp",
                           "model.layers.1.self_attn.attn_mask_log_alphas"})
    entries.push_back({name, DType::kF32, {1}, std::vector<std::byte>(4)});
  std::ofstream(folder + "/config.json") << ToHfConfig(m);
  EXPECT_TRUE(WriteSafetensors(folder + "/model.safetensors", entries).ok());
  return folder;
}

std::string OpenError(const std::string& path, std::string_view flavour) {
  const Result<Checkpoint> c = Checkpoint::Open(path, flavour);
  return c.ok() ? "no error" : c.error().ToString();
}

TEST(PublishedRouter, BackboneAndRoutersComeFromOneFolder) {
  for (const char* architecture : {"qwen3", "llama"}) {
    const Result<Checkpoint> c = Checkpoint::Open(Published(architecture, {}), "flux");
    ASSERT_TRUE(c.ok()) << c.error().ToString();
    EXPECT_EQ(c->config.architecture, architecture);
    ASSERT_NE(c->router, nullptr);
    EXPECT_EQ(c->router->settings, (RouterSettings{.pool = 100, .sink = 16, .window = 2048}));
    EXPECT_EQ(c->router->layers[1].linear[3].weight,
              SyntheticRouter(kSettings, 2, 16, 7).layers[1].linear[3].weight);
  }
}

TEST(PublishedRouter, TheFlavourMustBeSaid) {
  const std::string folder = Published("qwen3", {});
  EXPECT_NE(OpenError(folder, "").find("--router-flavour flux"), std::string::npos);
  EXPECT_NE(OpenError(folder, "elastic").find("expected 'flux'"), std::string::npos);
  const std::string plain = Fresh("plain");
  ASSERT_TRUE(WriteSyntheticFolder(plain, {.architecture = "qwen3"}).ok());
  EXPECT_NE(OpenError(plain, "flux").find("without layer routers"), std::string::npos);
}

TEST(PublishedRouter, OtherMethodsAndDamagedOnesAreRefusedWithAllProblems) {
  const std::string e = OpenError(Published("qwen3", {{"toggle_type", std::string("triangle")},
                                                      {"retrieval_mode", std::string("xattn")},
                                                      {"pooling_mode", std::string("first_token")},
                                                      {"use_softmax", false},
                                                      {"pool_size", std::string("150")},
                                                      {"num_hidden_layers", int64_t{3}}}),
                                  "flux");
  for (const char* part :
       {"toggle_type is 'triangle', expected 'streaming'", "retrieval_mode is 'xattn'",
        "pooling_mode is 'first_token', expected 'ctx_q'", "use_softmax is false",
        "pool_size is no integer", "model.layers.2.self_attn.mask_allocator"})
    EXPECT_NE(e.find(part), std::string::npos) << part << " in " << e;
  EXPECT_NE(
      OpenError(Published("qwen3", {}, {"use_softmax"}), "flux").find("use_softmax is missing"),
      std::string::npos);
}

}  // namespace
}  // namespace baton
