// Models that are trained for their attention: what their keys become, and which keys are refused.
#include "model/spec/native_config.h"

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "formats/gguf_writer.h"
#include "formats/hf_config.h"
#include "formats/safetensors.h"
#include "model/spec/checkpoint.h"
#include "model/spec/checkpoint_storage.h"

namespace baton {
namespace {

constexpr const char* kGoldens[] = {
    "clsa",     "clsa-forced",  "clsa-local", "dense",           "hybrid",          "hybrid-gated",
    "hysparse", "hysparse-all", "hysparse2",  "hysparse2-gated", "hysparse2-group", "yoco"};

std::string Folder(const std::string& name) { return "tests/golden/native/" + name; }

Metadata Keys(const std::string& name) {
  Result<Metadata> m = ReadHfConfig(Folder(name) + "/config.json");
  EXPECT_TRUE(m.ok());
  return m.ok() ? std::move(m).value() : Metadata{};
}

Result<ModelConfig> Read(const Metadata& m, FileKind kind = FileKind::kHuggingFace) {
  BATON_ASSIGN(const Architecture* a, FindArchitecture(kind, m));
  return ReadConfig(kind, *a, m);
}

std::string ErrorOf(const Metadata& m) {
  const Result<ModelConfig> c = Read(m);
  return c.ok() ? "no error" : c.error().ToString();
}

Checkpoint MustOpen(const std::string& path) {
  Result<Checkpoint> c = Checkpoint::Open(path);
  EXPECT_TRUE(c.ok()) << c.error().ToString();
  return c.ok() ? std::move(c).value() : Checkpoint{};
}

// "swa c0 window 0+12 gate s | ..." of every layer, then the caches.
std::string Table(const ModelConfig& c) {
  std::string s;
  for (size_t l = 0; l < c.plan.size(); ++l) {
    const LayerPlan& p = c.plan[l];
    s += fmt::format("{}{}", RowOf(p.role).kind, c.layer[l].rope < 0 ? "" : " rope");
    if (p.merge == Merge::kGatedSum) s += " sum";
    for (const Branch& b : p.branches) {
      s += fmt::format(" | c{}", b.cache);
      if (b.set.kind == TokenSet::Kind::kWindow)
        s += fmt::format(" window {}+{}", b.set.sink, b.set.recent);
      if (b.set.kind == TokenSet::Kind::kIndex)
        s += fmt::format(" list of {} k {}", b.set.publisher, b.set.k.tokens);
      s += b.gate == Gate::kChannel ? " gated" : b.gate == Gate::kHead ? " head-gated" : "";
      s += b.sink_logit ? " sink" : "";
    }
    if (p.publish) {
      const Publish& r = *p.publish;
      EXPECT_FALSE(r.forced_inside);
      EXPECT_EQ(r.budgets.size(), 1u);
      s += fmt::format(" => {} {} {} block {} forced {}+{}",
                       r.ranking == Publish::Ranking::kIndexer ? "indexer" : "exact",
                       r.scope == Scope::kGroup ? "group" : "all",
                       r.pool == Pool::kMax ? "max" : "sum", r.block, r.sink, r.recent);
      if (r.ranking == Publish::Ranking::kIndexer)
        s += fmt::format(" c{} x{}", r.index_cache, r.index_scale);
      else
        EXPECT_EQ(r.score, Publish::Score::kLogProbability);
    }
    s += '\n';
  }
  for (const CacheSpec& cache : c.caches)
    s += fmt::format("{}<{} {}x{}{}{}; ", cache.owner, cache.kv_input, cache.kv_heads,
                     cache.head_dim, cache.values ? "" : " keys",
                     cache.ring() ? fmt::format(" ring {}+{}", cache.sink, cache.recent) : "");
  return s;
}

TEST(NativeConfig, PlanOfAnIndexerOverAMemory) {
  const ModelConfig c = MustOpen(Folder("clsa")).config;
  EXPECT_EQ(Table(c),
            "swa rope | c0 window 0+12\n"
            "swa rope | c1 window 0+12\n"
            "swa rope | c2 window 0+12\n"
            "cross_index | c3 list of 3 k 24 => indexer all max block 1 forced 0+0 c4 x0.25\n"
            "cross_index | c3 list of 3 k 24\n"
            "0<0 2x16 ring 0+12; 1<1 2x16 ring 0+12; 2<2 2x16 ring 0+12; -1<3 2x16; "
            "-1<3 1x16 keys; ");
  EXPECT_EQ(c.exit_layer, 3);
  EXPECT_EQ(c.memory_layer, 3);
  EXPECT_FLOAT_EQ(c.attention_scale, 0.25f);
  EXPECT_EQ(c.vocab, 264);
  EXPECT_TRUE(c.layer[0].qk_norm);
  EXPECT_FALSE(c.layer[3].qk_norm);  // follows memory.qk_norm
  EXPECT_FALSE(c.indexer.bf16);
}

TEST(NativeConfig, PlanOfTwoBranchesOverAMemory) {
  EXPECT_EQ(Table(MustOpen(Folder("clsa-local")).config),
            "swa rope | c0 window 0+12\n"
            "swa rope | c1 window 0+12\n"
            "cross_index_local sum | c4 list of 2 k 24 gated | c2 window 0+12 gated"
            " => indexer all max block 1 forced 0+0 c5 x0.25\n"
            "cross_index_local sum | c4 list of 2 k 24 gated | c3 window 0+12 gated\n"
            "0<0 2x16 ring 0+12; 1<1 2x16 ring 0+12; 2<2 2x16 ring 0+12; 3<3 2x16 ring 0+12; "
            "-1<2 2x16; -1<2 1x16 keys; ");
}

TEST(NativeConfig, PlanOfBlocksChosenByFullLayers) {
  EXPECT_EQ(Table(MustOpen(Folder("hysparse-all")).config),
            "full rope | c0 => exact all sum block 4 forced 0+0\n"
            "sparse rope sum | c0 list of 0 k 18 head-gated sink | c1 window 0+8 head-gated sink\n"
            "sparse rope sum | c0 list of 0 k 18 head-gated sink | c2 window 0+8 head-gated sink\n"
            "full rope | c3\n"
            "0<0 2x16; 1<1 2x16 ring 0+8; 2<2 2x16 ring 0+8; 3<3 2x16; ");
}

TEST(NativeConfig, PlanOfBridgedCaches) {
  const ModelConfig c = MustOpen(Folder("hysparse2")).config;
  EXPECT_EQ(Table(c),
            "swa rope | c0 window 0+12 gated sink\n"
            "full | c1\n"
            "swa rope | c2 window 0+12 gated sink\n"
            "swa rope | c3 window 0+12 gated sink\n"
            "cross_full | c4 => exact all max block 1 forced 0+9\n"
            "sparse_shared | c4 list of 4 k 20 gated sink\n"
            "cross_full | c5 => exact all max block 1 forced 0+9\n"
            "sparse_shared | c5 list of 6 k 20 gated sink\n"
            "0<0 1x16 ring 0+12; 1<1 1x16; 2<2 1x16 ring 0+12; 3<3 1x16 ring 0+12; 4<1 1x16; "
            "6<1 1x16; ");
  EXPECT_TRUE(c.bridge_norm_own);
  EXPECT_EQ(c.rope_dims, 8);
  EXPECT_EQ(c.head_dim, 16);
}

TEST(NativeConfig, PlanOfADenseHybrid) {
  const ModelConfig c = MustOpen(Folder("hybrid")).config;
  EXPECT_EQ(Table(c),
            "swa rope | c0 window 2+12\n"
            "swa rope | c1 window 2+12\n"
            "full rope | c2\n"
            "swa rope | c3 window 2+12\n"
            "full rope | c4\n"
            "0<0 1x16 ring 2+12; 1<1 1x16 ring 2+12; 2<2 1x16; 3<3 1x16 ring 2+12; 4<4 1x16; ");
  EXPECT_EQ(c.layer[0].window, 12);
  EXPECT_EQ(c.layer[2].window, 0);
  EXPECT_FALSE(ShapeOf(c, "").trained_sparse());
}

// The reference counts caches and names publishers by itself.
TEST(NativeConfig, CachesAndPublishersAreThoseOfTheReference) {
  for (const char* name : kGoldens) {
    const Checkpoint c = MustOpen(Folder(name));
    std::ifstream in(Folder(name) + "/golden.json");
    const nlohmann::json golden = nlohmann::json::parse(in);
    int64_t per_token = 0, rings = 0;
    for (const CacheSpec& cache : c.config.caches) {
      const int64_t row = cache.kv_heads * cache.head_dim * (cache.values ? 2 : 1);
      if (cache.ring())
        rings += row * (cache.sink + cache.recent);
      else
        per_token += row;
    }
    EXPECT_EQ(per_token, golden["kv"]["values_per_token"].get<int64_t>()) << name;
    EXPECT_EQ(rings, golden["kv"]["ring_values"].get<int64_t>()) << name;
    std::set<int> listed, published;
    for (const auto& prompt : golden["prompts"]) {
      for (const auto& list : prompt["lists"])
        listed.insert(list["publisher"].is_string() ? c.config.memory_layer
                                                    : list["publisher"].get<int>());
    }
    for (int l = 0; l < c.config.layers; ++l) {
      if (c.config.plan[static_cast<size_t>(l)].publish) published.insert(l);
    }
    EXPECT_EQ(published, listed) << name;
    const ModelShape shape = ShapeOf(c.config, c.fingerprint);
    EXPECT_EQ(shape.plan.size(), static_cast<size_t>(c.config.layers));
    EXPECT_EQ(shape.exit_layer, c.config.exit_layer);
    const std::string n = name;
    EXPECT_EQ(shape.trained_sparse(), n != "dense" && n != "hybrid") << name;
  }
}

TEST(NativeConfig, EveryMissingOrUnknownKeyIsNamed) {
  for (const char* name : kGoldens) {
    const Metadata good = Keys(name);
    ASSERT_EQ(ErrorOf(good), "no error") << name;
    for (const auto& [key, value] : good.values) {
      if (key == "general.architecture") continue;
      Metadata m = good;
      m.values.erase(key);
      EXPECT_NE(ErrorOf(m).find("1 keys do not fit a baton-"), std::string::npos)
          << name << " without " << key << ": " << ErrorOf(m);
      EXPECT_NE(ErrorOf(m).find(key + ": missing"), std::string::npos) << ErrorOf(m);
      m = good;
      m.values[key + "2"] = int64_t{1};
      EXPECT_NE(ErrorOf(m).find(key + "2: unknown"), std::string::npos) << ErrorOf(m);
      m = good;
      m.values[key] = std::vector<double>{0.5};  // of no key's type
      EXPECT_NE(ErrorOf(m).find(key + " is [0.5], expected"), std::string::npos) << ErrorOf(m);
    }
  }
  Metadata m = Keys("dense");
  m.values["baton-dense.bridge.norm"] = std::string("own");  // of another architecture
  EXPECT_NE(ErrorOf(m).find("baton-dense.bridge.norm: unknown"), std::string::npos);
}

// In a GGUF file, keys of the tokenizer and of the file stand beside those of the model.
TEST(NativeConfig, GgufHoldsOtherKeysToo) {
  Metadata m = Keys("clsa");
  m.values["general.name"] = std::string("a name");
  m.values["tokenizer.ggml.model"] = std::string("gpt2");
  const Result<ModelConfig> c = Read(m, FileKind::kGguf);
  ASSERT_TRUE(c.ok()) << c.error().ToString();
  EXPECT_EQ(c->name, "a name");
  m.values["baton-clsa.plan.extra"] = true;
  EXPECT_FALSE(Read(m, FileKind::kGguf).ok());
}

using Ints = std::vector<int64_t>;
using Strings = std::vector<std::string>;

struct Contradiction {
  const char* golden;
  const char* key;  // without the prefix
  MetaValue value;
  const char* says;
};

TEST(NativeConfig, ContradictionsAreRefused) {
  const std::vector<Contradiction> cases = {
      {"clsa", "plan.version", int64_t{2}, "plan.version is 2, expected 1"},
      {"clsa", "plan.kind", Strings{"swa", "swa", "swa", "cross_index"}, "has 4 entries"},
      {"clsa", "plan.kind", Strings{"full", "swa", "swa", "cross_index", "cross_index"},
       "plan.kind[0] is 'full', expected swa or cross_dense"},
      {"clsa", "plan.kind", Strings{"swa", "swa", "swa", "cross_index", "spars"},
       "plan.kind[4] is 'spars'"},
      {"clsa", "plan.kv_source", Ints{-2, -2, 2, -1, -1},
       "layer 2 (swa): plan.kv_source is 2, expected -2 (none)"},
      {"clsa", "plan.kv_source", Ints{-2, -2, -2, -1, 2},
       "layer 4 (cross_index): plan.kv_source is 2, expected -1 (the memory)"},
      {"clsa", "plan.kv_input", Ints{0, 1, 1, -2, -2},
       "layer 2 (swa): plan.kv_input is 1, expected 2"},
      {"clsa", "plan.kv_input", Ints{0, 1, 2, 3, -2},
       "layer 3 (cross_index): plan.kv_input is 3, expected -2 (none)"},
      {"clsa", "plan.index_source", Ints{-2, -2, -2, -1, -2},
       "plan.index_source is -2 (none), expected plan.kv_source -1 (the memory)"},
      {"clsa", "plan.index_source", Ints{-2, -2, -1, -1, -1},
       "layer 2 (swa): plan.index_source is -1 (the memory), expected -2 (none)"},
      {"clsa", "plan.index_source", Ints{-2, -2, -2, -1, 5}, "expected an integer from -2 to 4"},
      {"clsa", "plan.publish", Strings{"tokens", "none", "none", "none", "none"},
       "layer 0 (swa): plan.publish is tokens, expected none"},
      {"clsa", "plan.rope", Ints{1, 1, 1, 1, 0}, "the memory has no positions"},
      {"clsa", "plan.rope", Ints{1, 1, 1, 2, 0}, "plan.rope[3] is 2, expected true or false"},
      {"clsa", "select.top_k", int64_t{0}, "reads a list, but select.top_k is 0"},
      {"clsa", "attention.sliding_window", int64_t{0}, "attention.sliding_window is 0"},
      {"clsa", "indexer.head_count", int64_t{0}, "but indexer.head_count is 0"},
      {"clsa", "indexer.head_count", int64_t{2}, "expected an integer from 0 to 1"},
      {"clsa", "indexer.key_length", int64_t{0}, "indexer.key_length is 0"},
      {"clsa", "indexer.scale", 0.0, "indexer.scale is 0"},
      {"clsa", "indexer.dtype", std::string("f16"), "expected f32 or bf16"},
      {"clsa", "memory.input_layer", int64_t{4},
       "layer 3 (cross_index): reads the memory, which memory.input_layer fills at layer 4"},
      {"clsa", "prefill.exit_layer", int64_t{2}, "layer 2 (swa) has a cache"},
      {"clsa", "memory.input_layer", int64_t{5}, "expected an integer from 0 to 4"},
      {"clsa", "attention.value_length", int64_t{32},
       "attention.value_length is 32, expected attention.key_length 16"},
      {"clsa", "attention.head_count_kv", int64_t{3}, "does not divide"},
      {"clsa", "rope.dimension_count", int64_t{18}, "up to the head size 16"},
      {"clsa", "rope.dimension_count", int64_t{7}, "expected an even number"},
      {"clsa", "rope.style", std::string("neox"), "expected half or interleaved"},
      {"clsa", "embedding_scale", 0.0, "embedding_scale is 0"},
      {"clsa", "block_count", int64_t{1} << 40, "expected an integer from 1 to 1024"},
      {"clsa", "block_count", int64_t{6},
       "plan.gate has 5 entries, expected one for each of the 6"},
      {"clsa", "attention.qk_norm", int64_t{1}, "expected true or false"},
      {"clsa-local", "plan.gate", Strings{"none", "none", "channel", "none"},
       "two branches are a gated sum"},
      {"hysparse", "plan.kv_source", Ints{0, 0, 0, 3, 5, 5},
       "layer 4 (sparse): plan.kv_source is 5, expected an earlier layer"},
      {"hysparse", "plan.kv_source", Ints{0, 0, 0, 3, -1, 5}, "the architecture has no memory"},
      {"hysparse", "plan.kv_source", Ints{0, -2, 0, 3, 3, 5},
       "layer 1 (sparse): plan.kv_source is -2 (none), expected an earlier layer"},
      {"hysparse", "plan.publish", Strings{"none", "none", "none", "blocks", "none", "none"},
       "layer 1 (sparse): plan.index_source is 0, which publishes nothing"},
      {"hysparse", "plan.publish", Strings{"tokens", "none", "none", "blocks", "none", "none"},
       "layer 0 (full): plan.publish is tokens, but select.block_size is 8"},
      {"hysparse", "plan.rope", Ints{1, 0, 1, 1, 1, 1},
       "layer 1 (sparse): plan.rope is false, expected that of layer 0"},
      {"hysparse", "select.block_size", int64_t{12}, "expected a power of two"},
      {"hysparse", "select.block_size", int64_t{128}, "expected an integer from 1 to 64"},
      {"hysparse", "select.recent", int64_t{4}, "expected 0 with blocks of 8"},
      {"hysparse", "prefill.exit_layer", int64_t{3}, "prefill.exit_layer is 3, but layer 3"},
      {"hysparse", "residual.streams", int64_t{4}, "residual.streams is 4, expected 1"},
      {"hysparse2", "plan.kv_input", Ints{0, 1, 2, 3, 5, -2, 1, -2},
       "layer 4 (cross_full): plan.kv_input is 5, expected a layer up to 4"},
      {"hysparse2", "plan.kv_input", Ints{0, 1, 2, 3, 4, -2, 1, -2},
       "layer 4 (cross_full): plan.kv_input is the layer itself, expected an earlier layer"},
      {"clsa", "select.block_size", int64_t{2}, "expected 1: an indexer ranks single tokens"},
      {"hysparse2", "bridge.norm", std::string("none"), "expected own or source"},
      {"hysparse2", "select.head_scope", std::string("layer"), "expected all or group"},
      {"hysparse2", "select.pool", std::string("mean"), "expected max or sum"},
  };
  for (const Contradiction& c : cases) {
    Metadata m = Keys(c.golden);
    const std::string key = *m.String("general.architecture") + "." + c.key;
    ASSERT_TRUE(m.values.contains(key)) << key;
    m.values[key] = c.value;
    EXPECT_NE(ErrorOf(m).find(c.says), std::string::npos) << c.key << ": " << ErrorOf(m);
    EXPECT_EQ(ErrorOf(m).find('\n'), std::string::npos);
  }
}

TEST(NativeConfig, AllProblemsAreOneError) {
  Metadata m = Keys("hysparse2");
  const std::string p = "baton-hysparse2.";
  m.values.erase(p + "select.pool");
  m.values[p + "kd.detach"] = true;
  m.values[p + "attention.value_length"] = int64_t{8};
  m.values[p + "plan.index_source"] = Ints{-2, -2, -2, -2, -2, 6, -2, 6};
  m.values[p + "prefill.exit_layer"] = int64_t{3};
  const std::string e = ErrorOf(m);
  EXPECT_NE(e.find("5 keys do not fit"), std::string::npos) << e;
  for (const char* part :
       {"select.pool: missing", "kd.detach: unknown", "value_length is 8",
        "layer 5 (sparse_shared): plan.index_source is 6", "prefill.exit_layer is 3"})
    EXPECT_NE(e.find(part), std::string::npos) << part << " in " << e;
}

TEST(NativeConfig, OnlyUnsupportedValuesAreUnsupported) {
  Metadata m = Keys("hysparse");
  m.values["baton-hysparse.residual.streams"] = int64_t{2};
  EXPECT_EQ(Read(m).error().code(), Error::Code::kUnsupported);
  m.values["baton-hysparse.select.recent"] = int64_t{4};
  EXPECT_EQ(Read(m).error().code(), Error::Code::kCorrupt);
}

// A full layer may publish although no layer reads it; the ranking is then not made.
TEST(NativeConfig, APublisherWithoutReadersIsLegal) {
  Metadata m = Keys("hysparse");
  m.values["baton-hysparse.plan.publish"] =
      Strings{"blocks", "none", "none", "blocks", "none", "blocks"};
  const Result<ModelConfig> c = Read(m);
  ASSERT_TRUE(c.ok()) << c.error().ToString();
  EXPECT_TRUE(c->plan[3].publish);
  EXPECT_FALSE(c->plan[5].publish);
  EXPECT_TRUE(c->plan[0].publish->scope == Scope::kGroup);
}

// ---- files ----

std::string Fresh(const std::string& name) {
  const std::string path = testing::TempDir() + "/native_config_test_" + name;
  std::filesystem::remove_all(path);
  return path;
}

std::string Copied(const std::string& golden) {
  const std::string path = Fresh(golden);
  std::filesystem::copy(Folder(golden), path);
  return path;
}

std::string OpenError(const std::string& path) {
  const Result<Checkpoint> c = Checkpoint::Open(path);
  return c.ok() ? "no error" : c.error().ToString();
}

TEST(NativeCheckpoint, ConfigJsonMustBeTheConfigOfTheWeights) {
  const std::string folder = Copied("clsa");
  Metadata m = Keys("clsa");
  m.values["baton-clsa.embedding_scale"] = int64_t{1};  // 1.0 elsewhere: no difference
  std::ofstream(folder + "/config.json") << ToFlatConfig(m);
  EXPECT_EQ(OpenError(folder), "no error");
  m.values["baton-clsa.select.top_k"] = int64_t{25};
  m.values["baton-clsa.plan.rope"] = Ints{1, 1, 0, 0, 0};
  m.values.erase("baton-clsa.plan.gate");
  std::ofstream(folder + "/config.json") << ToFlatConfig(m);
  const std::string e = OpenError(folder);
  EXPECT_NE(e.find("select.top_k is 25 in config.json, 24 in baton.config"), std::string::npos)
      << e;
  EXPECT_NE(e.find("plan.rope is [1, 1, 0, 0, 0] in config.json"), std::string::npos) << e;
  EXPECT_NE(e.find("plan.gate is only in baton.config"), std::string::npos) << e;
  EXPECT_NE(e.find("3 keys differ"), std::string::npos) << e;
}

std::vector<SafetensorsEntry> Entries(const Checkpoint& c) {
  std::vector<SafetensorsEntry> out;
  for (const TensorInfo& t : c.storage->tensors)
    out.push_back({t.name, t.dtype, t.shape, {t.data, t.data + t.bytes}});
  return out;
}

TEST(NativeCheckpoint, WeightsWithoutConfigAreRefused) {
  const std::string folder = Copied("hybrid");
  std::filesystem::remove(folder + "/model.safetensors");
  ASSERT_TRUE(
      WriteSafetensors(folder + "/model.safetensors", Entries(MustOpen(Folder("hybrid")))).ok());
  EXPECT_NE(OpenError(folder).find("lack baton.config"), std::string::npos) << OpenError(folder);
}

// GGUF has the same names and keys; one model has one fingerprint.
TEST(NativeCheckpoint, FileAndFolderAreTheSameModel) {
  for (const char* name : kGoldens) {
    const Checkpoint folder = MustOpen(Folder(name));
    GgufWriter w;
    w.Set(Keys(name));
    for (SafetensorsEntry& t : Entries(folder))
      w.AddTensor(t.name, t.dtype, t.shape, std::move(t.data));
    const std::string path = Fresh(std::string(name) + ".gguf");
    ASSERT_TRUE(w.WriteFile(path).ok());
    const Checkpoint file = MustOpen(path);
    EXPECT_EQ(Table(file.config), Table(folder.config));
    EXPECT_EQ(file.fingerprint, folder.fingerprint) << name;
  }
}

TEST(NativeCheckpoint, FingerprintFollowsThePlan) {
  const std::string before = MustOpen(Folder("hysparse2")).fingerprint;
  const std::string folder = Copied("hysparse2");
  Metadata m = Keys("hysparse2");
  m.values["baton-hysparse2.select.recent"] = int64_t{8};
  const std::string text = ToFlatConfig(m);
  std::ofstream(folder + "/config.json") << text;
  std::filesystem::remove(folder + "/model.safetensors");
  ASSERT_TRUE(WriteSafetensors(folder + "/model.safetensors",
                               Entries(MustOpen(Folder("hysparse2"))), {{"baton.config", text}})
                  .ok());
  EXPECT_NE(MustOpen(folder).fingerprint, before);
}

TEST(NativeCheckpoint, AModelWithoutATokenizerOpens) {
  const Checkpoint c = MustOpen(Folder("dense"));
  EXPECT_EQ(c.config.vocab, 96);
  EXPECT_TRUE(c.config.rope_interleaved);
  EXPECT_FALSE(c.config.tied_output);
  const Result<Tokenizer> t = c.LoadTokenizer();
  ASSERT_FALSE(t.ok());
  EXPECT_EQ(t.error().code(), Error::Code::kNotFound);
  EXPECT_TRUE(MustOpen(Folder("clsa")).LoadTokenizer().ok());
}

// ---- tensors ----

std::vector<std::string> Names(const TensorSet& set) {
  std::vector<std::string> names;
  for (const TensorInfo* t : set.by_role) {
    if (t != nullptr) names.push_back(t->name.substr(t->name.starts_with("blk.") ? 6 : 0));
  }
  return names;
}

bool Has(const TensorSet& set, const std::string& name) {
  for (const std::string& n : Names(set)) {
    if (n == name + ".weight") return true;
  }
  return false;
}

TEST(NativeTensors, FollowTheKindOfTheLayer) {
  const Checkpoint two = MustOpen(Folder("hysparse2"));
  for (size_t l = 0; l < two.layers.size(); ++l) {
    const Role role = two.config.plan[l].role;
    EXPECT_EQ(Has(two.layers[l], "attn_k"), role != Role::kSparseShared) << l;
    EXPECT_EQ(Has(two.layers[l], "bridge_norm"), role == Role::kCrossFull) << l;
    EXPECT_EQ(Has(two.layers[l], "attn_gate"),
              role == Role::kWindow || role == Role::kSparseShared);
    EXPECT_FALSE(Has(two.layers[l], "attn_q_norm"));
  }
  const Checkpoint group = MustOpen(Folder("hysparse2-group"));
  EXPECT_FALSE(Has(group.layers[3], "bridge_norm"));
  const Checkpoint one = MustOpen(Folder("hysparse-all"));
  const TensorSet& sparse = one.layers[1];
  EXPECT_EQ(sparse[TensorRole::kAttnGate]->name, "blk.1.attn_gate_global.weight");
  EXPECT_EQ(sparse[TensorRole::kAttnGateLocal]->shape, (std::vector<int64_t>{4, 48}));  // per head
  EXPECT_EQ(sparse[TensorRole::kAttnSinksLocal]->name, "blk.1.attn_sinks_local.weight");
  EXPECT_EQ(one.layers[0][TensorRole::kAttnGate], nullptr);
  const Checkpoint forced = MustOpen(Folder("clsa-forced"));
  EXPECT_TRUE(Has(forced.layers[2], "attn_q_norm"));  // memory.qk_norm
  EXPECT_FALSE(Has(forced.layers[2], "attn_k_norm"));
  EXPECT_FALSE(Has(forced.layers[0], "attn_q_norm"));
  EXPECT_EQ(Names(forced.model),
            (Strings{"token_embd.weight", "output_norm.weight", "token_embd.weight",
                     "memory.norm.weight", "memory.attn_k.weight", "memory.attn_v.weight",
                     "memory.attn_k_norm.weight", "indexer.q.weight", "indexer.k.weight"}));
  EXPECT_EQ(forced.model[TensorRole::kIndexerQ]->shape, (std::vector<int64_t>{32, 48}));
  EXPECT_EQ(MustOpen(Folder("yoco")).model[TensorRole::kIndexerQ], nullptr);
}

TEST(NativeTensors, OfAnotherKindAreRefused) {
  const std::string folder = Copied("hysparse2");
  std::vector<SafetensorsEntry> tensors = Entries(MustOpen(Folder("hysparse2")));
  for (SafetensorsEntry& t : tensors) {
    if (t.name == "blk.4.bridge_norm.weight") t.name = "blk.5.attn_k.weight";
  }
  std::ifstream in(folder + "/config.json");
  const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  ASSERT_TRUE(
      WriteSafetensors(folder + "/model.safetensors", tensors, {{"baton.config", text}}).ok());
  const std::string e = OpenError(folder);
  EXPECT_NE(e.find("blk.4.bridge_norm.weight [48]: missing"), std::string::npos) << e;
  EXPECT_NE(e.find("blk.5.attn_k.weight [48]: not part of a baton-hysparse2 model"),
            std::string::npos)
      << e;
}

}  // namespace
}  // namespace baton
