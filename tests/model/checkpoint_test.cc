#include "model/spec/checkpoint.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <vector>

#include "formats/dequantize.h"
#include "formats/gguf_writer.h"
#include "formats/hf_config.h"
#include "model/spec/architectures.h"
#include "model/spec/synthetic.h"

namespace baton {
namespace {

constexpr const char* kArchitectures[] = {"llama", "mistral", "qwen2", "qwen3", "gemma3"};

std::string TempPath(const std::string& name) {
  return testing::TempDir() + "/checkpoint_test_" + name;
}

Checkpoint MustOpen(const std::string& path) {
  Result<Checkpoint> c = Checkpoint::Open(path);
  EXPECT_TRUE(c.ok()) << c.error().ToString();
  return c.ok() ? std::move(c).value() : Checkpoint{};
}

std::string ErrorOf(const std::string& path) {
  const Result<Checkpoint> c = Checkpoint::Open(path);
  return c.ok() ? "no error" : c.error().ToString();
}

Checkpoint Synthetic(const SyntheticSpec& spec, const std::string& name) {
  const std::string path = TempPath(name) + ".gguf";
  const Status s = WriteSyntheticGguf(path, spec);
  EXPECT_TRUE(s.ok()) << s.error().ToString();
  return MustOpen(path);
}

std::vector<float> Values(const TensorInfo* t) {
  std::vector<float> v(static_cast<size_t>(t->elements()));
  Dequantize(t->dtype, t->data, 0, t->elements(), v.data());
  return v;
}

TEST(Checkpoint, EveryArchitectureOpensInEveryWeightType) {
  for (const char* architecture : kArchitectures) {
    for (DType t : {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0}) {
      const Checkpoint c =
          Synthetic({.architecture = architecture, .layers = 7, .weights = t}, architecture);
      ASSERT_EQ(c.layers.size(), 7u);
      EXPECT_EQ(c.config.architecture, architecture);
      EXPECT_TRUE(c.config.tied_output);
      EXPECT_EQ(c.model[TensorRole::kOutput], c.model[TensorRole::kEmbedding]);
      const std::vector<float> w = Values(c.layers[3][TensorRole::kFfnDown]);
      double sum = 0, squares = 0;
      for (float x : w) {
        sum += x;
        squares += static_cast<double>(x) * x;
      }
      const double n = static_cast<double>(w.size());
      EXPECT_NEAR(squares / n * static_cast<double>(c.config.ffn_width), 1.0, 0.1) << Info(t).name;
      EXPECT_NEAR(sum / n * std::sqrt(static_cast<double>(c.config.ffn_width)), 0.0, 0.1)
          << Info(t).name;
    }
  }
}

TEST(Checkpoint, RowsDifferWhereTheArchitecturesDo) {
  const Checkpoint llama = Synthetic({.architecture = "llama"}, "row");
  EXPECT_TRUE(llama.config.rope_interleaved);
  EXPECT_EQ(llama.config.layer[0].window, 0);
  EXPECT_EQ(llama.layers[0][TensorRole::kQBias], nullptr);
  EXPECT_FLOAT_EQ(llama.config.attention_scale, 0.25f);
  const Checkpoint mistral = Synthetic({.architecture = "mistral", .window = 32}, "row");
  EXPECT_EQ(mistral.config.layer[1].window, 32);
  const Checkpoint qwen2 = Synthetic({.architecture = "qwen2"}, "row");
  EXPECT_TRUE(qwen2.config.attention_bias);
  EXPECT_NE(qwen2.layers[1][TensorRole::kVBias], nullptr);
  EXPECT_FALSE(qwen2.config.rope_interleaved);
  const Checkpoint qwen3 = Synthetic({.architecture = "qwen3", .tied_output = false}, "row");
  EXPECT_TRUE(qwen3.config.qk_norm);
  EXPECT_NE(qwen3.layers[1][TensorRole::kKNorm], nullptr);
  EXPECT_FALSE(qwen3.config.tied_output);
  EXPECT_NE(qwen3.model[TensorRole::kOutput], qwen3.model[TensorRole::kEmbedding]);
  const Checkpoint gemma = Synthetic({.architecture = "gemma3", .layers = 12, .window = 32}, "row");
  EXPECT_TRUE(gemma.config.post_norms);
  EXPECT_FALSE(gemma.config.norm_plus_one);
  EXPECT_EQ(gemma.config.activation, Activation::kGeluTanh);
  EXPECT_FLOAT_EQ(gemma.config.embedding_scale, 8.0f);
  for (int l = 0; l < 12; ++l) {
    EXPECT_EQ(gemma.config.layer[static_cast<size_t>(l)].window, l % 6 == 5 ? 0 : 32);
    EXPECT_EQ(gemma.config.layer[static_cast<size_t>(l)].rope, l % 6 == 5 ? 0 : 1);
  }
  EXPECT_EQ(gemma.config.rope[1].base, 10000.0f);
}

TEST(Checkpoint, OrdinaryModelsGetACachePerLayer) {
  const Checkpoint gemma = Synthetic({.architecture = "gemma3", .layers = 6, .window = 32}, "plan");
  EXPECT_TRUE(gemma.config.plan.empty());
  EXPECT_EQ(gemma.config.rope_dims, 16);
  const ModelShape shape = ShapeOf(gemma.config, gemma.fingerprint);
  EXPECT_EQ(shape.fingerprint, gemma.fingerprint);
  EXPECT_FALSE(shape.trained_sparse());
  ASSERT_EQ(shape.plan.size(), 6u);
  ASSERT_EQ(shape.caches.size(), 6u);
  EXPECT_EQ(shape.plan[0].branches[0].set.recent, 32);
  EXPECT_EQ(shape.plan[5].branches[0].set.kind, TokenSet::Kind::kAll);
  EXPECT_EQ(shape.caches[4].owner, 4);
  EXPECT_EQ(shape.caches[4].kv_heads, 2);
}

// The folder holds the same weights, but for the order of rotary pairs and Gemma's +1.
TEST(Checkpoint, FolderAndFileOfOneSpecHoldTheSameWeights) {
  for (const char* architecture : kArchitectures) {
    const SyntheticSpec spec{
        .architecture = architecture, .weights = DType::kBF16, .tied_output = false};
    const Checkpoint file = Synthetic(spec, "both");
    const std::string folder = TempPath("both_folder");
    std::filesystem::remove_all(folder);
    ASSERT_TRUE(WriteSyntheticFolder(folder, spec).ok());
    const Checkpoint hf = MustOpen(folder);
    ASSERT_EQ(hf.layers.size(), file.layers.size());
    EXPECT_FALSE(hf.config.rope_interleaved);
    EXPECT_EQ(hf.config.attention_scale, file.config.attention_scale);
    EXPECT_EQ(hf.config.norm_plus_one, std::string(architecture) == "gemma3");
    EXPECT_EQ(Values(hf.model[TensorRole::kEmbedding]), Values(file.model[TensorRole::kEmbedding]));
    EXPECT_EQ(Values(hf.model[TensorRole::kOutput]), Values(file.model[TensorRole::kOutput]));
    const TensorSet &a = hf.layers[1], &b = file.layers[1];
    EXPECT_EQ(Values(a[TensorRole::kV]), Values(b[TensorRole::kV]));
    EXPECT_EQ(Values(a[TensorRole::kFfnDown]), Values(b[TensorRole::kFfnDown]));
    ASSERT_EQ(a[TensorRole::kQBias] != nullptr, b[TensorRole::kQBias] != nullptr);
    if (b[TensorRole::kQBias] != nullptr) {
      EXPECT_EQ(Values(a[TensorRole::kQBias]), Values(b[TensorRole::kQBias]));
    }
    std::vector<float> norm = Values(a[TensorRole::kFfnNorm]);
    for (float& x : norm) x += hf.config.norm_plus_one ? 1.0f : 0.0f;
    EXPECT_EQ(norm, Values(b[TensorRole::kFfnNorm]));
    const std::vector<float> q = Values(a[TensorRole::kQ]), permuted = Values(b[TensorRole::kQ]);
    const int64_t d = spec.head_dim, width = spec.width;
    for (int64_t head = 0; head < spec.heads; ++head) {
      for (int64_t pair = 0; pair < d / 2; ++pair) {
        for (int64_t side = 0; side < 2; ++side) {
          const int64_t row = head * d + pair + side * d / 2;
          const int64_t from = file.config.rope_interleaved ? head * d + 2 * pair + side : row;
          for (int64_t c = 0; c < width; ++c)
            ASSERT_EQ(q[static_cast<size_t>(row * width + c)],
                      permuted[static_cast<size_t>(from * width + c)]);
        }
      }
    }
  }
}

TEST(Checkpoint, SyntheticModelsSpeakBytes) {
  const SyntheticSpec spec{.vocab = 300};
  const Checkpoint file = Synthetic(spec, "speak");
  const std::string folder = TempPath("speak_folder");
  ASSERT_TRUE(WriteSyntheticFolder(folder, spec).ok());
  const Checkpoint hf = MustOpen(folder);
  const std::string text = "Hi \xc3\xa4 \n 1";
  for (const Checkpoint* c : {&file, &hf}) {
    const Result<Tokenizer> t = c->LoadTokenizer();
    ASSERT_TRUE(t.ok()) << t.error().ToString();
    EXPECT_EQ(t->vocab_size(), 300);
    std::vector<int32_t> bytes{256};
    for (char ch : text) bytes.push_back(static_cast<unsigned char>(ch));
    EXPECT_EQ(t->Encode(text, {.bos = true}), bytes);
    EXPECT_EQ(t->Decode(bytes), text);
    EXPECT_TRUE(t->IsEndOfGeneration(257));
  }
}

// Plans are bound to fingerprints: those of existing models never change.
TEST(Checkpoint, FingerprintsStayAsTheyWere) {
  EXPECT_EQ(Synthetic({.seed = 1}, "stay").fingerprint,
            "sha256:a67fcc213467f61b82984a43a9987053ad1a1256c45ffcd5f6bfe6ba7b48a284");
  EXPECT_EQ(Synthetic({.architecture = "gemma3", .layers = 7, .weights = DType::kQ4_0}, "stay")
                .fingerprint,
            "sha256:cc2154700932e2b86ad82868f24e4ce0b25d8705e555059860c11d51a15fb238");
}

TEST(Checkpoint, FingerprintFollowsTheWeights) {
  const std::string first = Synthetic({.seed = 1}, "print").fingerprint;
  EXPECT_EQ(first.size(), 7u + 64u);
  EXPECT_EQ(first, Synthetic({.seed = 1}, "print2").fingerprint);
  EXPECT_NE(first, Synthetic({.seed = 2}, "print").fingerprint);
  EXPECT_NE(first, Synthetic({.context = 8192, .seed = 1}, "print").fingerprint);
}

// The parameter counts that the models' cards give.
TEST(Shapes, AreThoseOfThePublishedModels) {
  const auto parameters = [](const std::string& name) {
    const SyntheticSpec s = NamedShape(name).value();
    EXPECT_EQ(s.context, (1 << 20) + 4096);
    const int64_t heads = 2 * (s.heads + s.kv_heads) * s.head_dim;
    return s.vocab * s.width * (s.tied_output ? 1 : 2) + s.width +
           s.layers * s.width * (2 + heads + 3 * s.ffn_width);
  };
  EXPECT_EQ(parameters("llama-1b"), 1235814400);
  EXPECT_EQ(parameters("llama-8b"), 8030261248);
  // The card counts the norms of q and k too: 36 layers, 2 * 128.
  EXPECT_EQ(parameters("qwen3-8b"), 8190735360 - 36 * 256);
}

TEST(Shapes, AnUnknownNameListsTheKnown) {
  const auto shape = NamedShape("llama-2b");
  ASSERT_FALSE(shape.ok());
  EXPECT_NE(shape.error().message().find("hysparse2-80b-dense-ffn, got llama-2b"),
            std::string::npos);
}

TEST(Shapes, AnotherShapeIsToldByWhatDiffers) {
  const SyntheticSpec spec{.weights = DType::kQ4_0};
  const ModelConfig config = Synthetic(spec, "shape").config;
  SyntheticSpec shape = spec;
  EXPECT_TRUE(CheckShape(config, shape).ok());
  shape.context *= 2;
  shape.weights = DType::kF32;
  EXPECT_TRUE(CheckShape(config, shape).ok());
  shape.layers = 3;
  shape.ffn_width = 256;
  const Status other = CheckShape(config, shape);
  ASSERT_FALSE(other.ok());
  EXPECT_EQ(other.error().message(), "expected layers 3, FFN width 256, got 2, 128");
  shape.architecture = "qwen2";
  EXPECT_FALSE(CheckShape(config, shape).ok());
}

TEST(Checkpoint, AllMismatchesAreReportedAtOnce) {
  GgufWriter w;
  for (const auto& [key, value] : std::vector<std::pair<std::string, MetaValue>>{
           {"general.architecture", std::string("llama")},
           {"llama.block_count", int64_t{3}},
           {"llama.context_length", int64_t{64}},
           {"llama.embedding_length", int64_t{32}},
           {"llama.feed_forward_length", int64_t{64}},
           {"llama.attention.head_count", int64_t{2}},
           {"llama.vocab_size", int64_t{10}},
           {"llama.attention.layer_norm_rms_epsilon", 1e-5}})
    w.Set(key, value);
  const auto add = [&](const std::string& name, DType t, std::vector<int64_t> shape) {
    int64_t n = 1;
    for (int64_t d : shape) n *= d;
    w.AddTensor(name, t, std::move(shape),
                std::vector<std::byte>(static_cast<size_t>(BytesOf(t, n))));
  };
  add("token_embd.weight", DType::kF32, {11, 32});
  add("output_norm.weight", DType::kQ8_0, {32});
  add("blk.0.attn_q.weight", DType::kF32, {32, 32});
  add("blk.0.attn_x.bias", DType::kF32, {32});
  add("blk.3.attn_q.weight", DType::kF32, {32, 32});
  const std::string path = TempPath("mismatch.gguf");
  ASSERT_TRUE(w.WriteFile(path).ok());
  const std::string e = ErrorOf(path);
  EXPECT_NE(e.find("token_embd.weight: shape [11, 32], expected [10, 32]"), std::string::npos) << e;
  EXPECT_NE(e.find("output_norm.weight: type Q8_0, expected F32"), std::string::npos) << e;
  EXPECT_NE(e.find("blk.0.attn_norm.weight [32]: missing"), std::string::npos) << e;
  EXPECT_NE(e.find("30 tensors do not fit"), std::string::npos) << e;
  EXPECT_NE(e.find("and 10 more"), std::string::npos) << e;
  EXPECT_EQ(e.find('\n'), std::string::npos);
}

TEST(Checkpoint, UnusedTensorsAreNotIgnored) {
  // The biases of a Qwen 2 would silently be lost under another name.
  const std::string folder = TempPath("unused");
  std::filesystem::remove_all(folder);
  ASSERT_TRUE(WriteSyntheticFolder(folder, {.architecture = "qwen2"}).ok());
  std::ifstream in(folder + "/config.json");
  std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  text.replace(text.find("qwen2"), 5, "llama");
  std::ofstream(folder + "/config.json") << text;
  const std::string e = ErrorOf(folder);
  EXPECT_NE(e.find("model.layers.0.self_attn.q_proj.bias [64]: not part of a llama model"),
            std::string::npos)
      << e;
}

TEST(Checkpoint, WrongPathsTeach) {
  EXPECT_NE(ErrorOf(TempPath("absent")).find("no such file or folder"), std::string::npos);
  const std::string folder = TempPath("folder");
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  EXPECT_NE(ErrorOf(folder).find("a folder without config.json"), std::string::npos);
  std::ofstream(folder + "/m.gguf") << "version https://git-lfs.github.com/spec/v1\n";
  EXPECT_NE(ErrorOf(folder).find("give that one"), std::string::npos) << ErrorOf(folder);
  EXPECT_NE(ErrorOf(folder + "/m.gguf").find("git lfs pull"), std::string::npos);
  std::ofstream(folder + "/empty.gguf");
  EXPECT_NE(ErrorOf(folder + "/empty.gguf").find("expected a GGUF file"), std::string::npos);
  std::ofstream(folder + "/config.json") << R"({"model_type":"llama"})";
  EXPECT_NE(ErrorOf(folder + "/config.json").find("give the folder itself"), std::string::npos);
  EXPECT_NE(ErrorOf(folder).find("neither model.safetensors nor"), std::string::npos)
      << ErrorOf(folder);
  EXPECT_NE(ErrorOf("/dev/null").find("regular file"), std::string::npos);
}

TEST(Checkpoint, SyntheticSpecsOutOfRangeAreErrors) {
  const auto error = [](const SyntheticSpec& s) {
    const Status status = WriteSyntheticGguf(TempPath("bad.gguf"), s);
    return status.ok() ? "no error" : status.error().ToString();
  };
  EXPECT_NE(error({.architecture = "gpt5"}).find("supported: llama, mistral, qwen2, qwen3, gemma3"),
            std::string::npos);
  EXPECT_NE(error({.layers = 0}).find("block_count is 0"), std::string::npos);
  EXPECT_NE(error({.vocab = 10}).find("at least 258"), std::string::npos);
  EXPECT_NE(error({.head_dim = 15}).find("even number"), std::string::npos);
  EXPECT_NE(error({.weights = DType::kQ6_K}).find("supported: F32"), std::string::npos);
  EXPECT_NE(error({.width = 80, .weights = DType::kQ8_0}).find("multiple of 32"),
            std::string::npos);
}

// ---- config.json ----

std::string LlamaJson(const std::string& more) {
  return R"({"model_type":"llama","num_hidden_layers":2,"hidden_size":64,"num_attention_heads":4,"num_key_value_heads":2,
    "intermediate_size":96,"max_position_embeddings":512,"vocab_size":300)" +
         (more.empty() ? "" : "," + more) + "}";
}

Result<ModelConfig> Read(const std::string& json) {
  BATON_ASSIGN(const Metadata m, ParseHfConfig(json));
  BATON_ASSIGN(const Architecture* a, FindArchitecture(FileKind::kHuggingFace, m));
  return ReadConfig(FileKind::kHuggingFace, *a, m);
}

std::string ReadError(const std::string& json) {
  const Result<ModelConfig> c = Read(json);
  return c.ok() ? "no error" : c.error().ToString();
}

std::string Replaced(std::string text, const std::string& from, const std::string& to) {
  return text.replace(text.find(from), from.size(), to);
}

TEST(Config, DefaultsOfAFolder) {
  const Result<ModelConfig> c = Read(LlamaJson(""));
  ASSERT_TRUE(c.ok()) << c.error().ToString();
  EXPECT_EQ(c->head_dim, 16);
  EXPECT_FALSE(c->tied_output);
  EXPECT_FALSE(c->rope_interleaved);
  EXPECT_FLOAT_EQ(c->attention_scale, 0.25f);
  EXPECT_EQ(c->rope[0].base, 10000.0f);
}

TEST(Config, HostileNumbersAreErrors) {
  const std::string good = LlamaJson("");
  for (const auto& [from, to, message] : std::vector<std::array<std::string, 3>>{
           {"layers\":2", "layers\":0", "expected 1 to 1024"},
           {"layers\":2", "layers\":1000000000000", "expected 1 to 1024"},
           {"layers\":2", "layers\":\"two\"", "is 'two', expected an integer"},
           {"layers\":2", "layers\":2.5", "is 2.5, expected an integer"},
           {"layers\":2", "layers\":null", "is missing"},
           {"layers\":2", "layers\":18446744073709551615", "expected an integer"},
           {"hidden_size\":64", "hidden_size\":-64", "hidden_size is -64"},
           {"hidden_size\":64", "hidden_size\":66", "no multiple of 4 heads"},
           {"hidden_size\":64", "hidden_size\":4", "even number"},
           {"hidden_size\":64", "hidden_size\":8192", "even number"},
           {"value_heads\":2", "value_heads\":3", "3 KV heads do not divide 4"},
           {"value_heads\":2", "value_heads\":0", "expected 1 to"},
           {"vocab_size\":300", "vocab_size\":0", "vocab_size is 0"},
           {"vocab_size\":300", "rms_norm_eps\":0,\"vocab_size\":300", "rms_norm_eps is 0"},
           {"vocab_size\":300", "rope_theta\":-1,\"vocab_size\":300", "rope_theta is -1"},
           {"vocab_size\":300", "hidden_act\":\"relu\",\"vocab_size\":300", "activation 'relu'"},
           {"vocab_size\":300", "partial_rotary_factor\":0.5,\"vocab_size\":300",
            "partial_rotary_factor"},
           {"\"llama\"", "\"rwkv\"", "supported: llama, mistral, qwen2, qwen3, gemma3"},
       }) {
    const std::string e = ReadError(Replaced(good, from, to));
    EXPECT_NE(e.find(message), std::string::npos) << to << " -> " << e;
  }
}

TEST(Config, Llama3ScalingKeepsShortWavelengths) {
  const Result<ModelConfig> c = Read(LlamaJson(
      R"("rope_theta":500000.0,"rope_scaling":{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,
         "original_max_position_embeddings":256})"));
  ASSERT_TRUE(c.ok()) << c.error().ToString();
  const std::vector<float> f = RopeFrequencies(c->rope[0], 16);
  const double expected[] = {1.0,         0.193923,   0.0105382,   0.000911583,
                             0.000176777, 3.4281e-05, 6.64787e-06, 1.28917e-06};
  ASSERT_EQ(f.size(), 8u);
  for (size_t i = 0; i < 8; ++i) EXPECT_NEAR(f[i] / expected[i], 1.0, 1e-5) << i;
}

TEST(Config, YarnScalingStretchesContextAndSharpensAttention) {
  const Result<ModelConfig> c = Read(LlamaJson(
      R"("rope_scaling":{"type":"yarn","factor":4.0,"original_max_position_embeddings":4096})"));
  ASSERT_TRUE(c.ok()) << c.error().ToString();
  EXPECT_EQ(c->context, 16384);
  EXPECT_NEAR(c->rope[0].attention_factor, 1.1386294, 1e-6);
  const std::vector<float> f = RopeFrequencies(c->rope[0], 16);
  const double expected[] = {1.0,     0.316228,  0.1,     0.0256935,
                             0.00625, 0.0013835, 0.00025, 7.90569e-05};
  for (size_t i = 0; i < 8; ++i) EXPECT_NEAR(f[i] / expected[i], 1.0, 1e-5) << i;
}

TEST(Config, LinearScalingAndDivisorsDivide) {
  const RopeConfig plain{.base = 10000.0f};
  RopeConfig scaled{.base = 10000.0f, .scaling = RopeConfig::Scaling::kLinear, .factor = 4.0f};
  scaled.divisors = {1.0f, 2.0f};
  const std::vector<float> a = RopeFrequencies(plain, 4), b = RopeFrequencies(scaled, 4);
  EXPECT_FLOAT_EQ(a[0], 1.0f);
  EXPECT_FLOAT_EQ(a[1], 0.01f);
  EXPECT_FLOAT_EQ(b[0], 0.25f);
  EXPECT_FLOAT_EQ(b[1], 0.00125f);
}

TEST(Config, BadRopeScalingIsAnError) {
  const auto error = [](const std::string& s) {
    return ReadError(LlamaJson("\"rope_scaling\":" + s));
  };
  EXPECT_EQ(error("null"), "no error");
  EXPECT_EQ(error(R"({"rope_type":"default"})"), "no error");
  EXPECT_NE(error(R"({"type":"dynamic","factor":2})").find("supported: none, linear"),
            std::string::npos);
  EXPECT_NE(error(R"({"type":"linear","factor":-2})").find("factor is -2"), std::string::npos);
  EXPECT_NE(error(R"({"type":"llama3","factor":8,"low_freq_factor":4,"high_freq_factor":4})")
                .find("not below"),
            std::string::npos);
  EXPECT_NE(
      error(R"({"type":"yarn","factor":8,"beta_fast":1,"beta_slow":2})").find("below beta_slow"),
      std::string::npos);
}

TEST(Config, GemmaFollowsLayerTypesOrPattern) {
  const std::string base =
      Replaced(Replaced(LlamaJson("\"sliding_window\":16,\"query_pre_attn_scalar\":64,MORE"),
                        "\"llama\"", "\"gemma3_text\""),
               "layers\":2", "layers\":4");
  const auto windows = [&](const std::string& more) {
    const Result<ModelConfig> c = Read(Replaced(base, "MORE", more));
    std::vector<int64_t> w;
    if (c.ok()) {
      for (const LayerConfig& l : c->layer) w.push_back(l.window);
    }
    return w;
  };
  EXPECT_EQ(windows("\"head_dim\":16"), (std::vector<int64_t>{16, 16, 16, 16}));
  EXPECT_EQ(windows("\"sliding_window_pattern\":2"), (std::vector<int64_t>{16, 0, 16, 0}));
  EXPECT_EQ(
      windows(
          R"("layer_types":["full_attention","sliding_attention","sliding_attention","full_attention"])"),
      (std::vector<int64_t>{0, 16, 16, 0}));
  EXPECT_TRUE(windows(R"("layer_types":["full_attention"])").empty());
  EXPECT_TRUE(
      windows(R"("layer_types":["full_attention","linear","full_attention","full_attention"])")
          .empty());
  EXPECT_TRUE(windows("\"final_logit_softcapping\":30.0").empty());
  const Result<ModelConfig> c = Read(Replaced(base, "MORE", "\"head_dim\":16"));
  EXPECT_FLOAT_EQ(c->attention_scale, 0.125f);
  EXPECT_TRUE(c->norm_plus_one);
  EXPECT_TRUE(c->tied_output);
}

TEST(Config, QwenSlidesOnlyWhenTold) {
  const std::string base = Replaced(
      LlamaJson("\"sliding_window\":16,\"max_window_layers\":1,\"use_sliding_window\":USE"),
      "\"llama\"", "\"qwen2\"");
  const Result<ModelConfig> off = Read(Replaced(base, "USE", "false")),
                            on = Read(Replaced(base, "USE", "true"));
  ASSERT_TRUE(off.ok() && on.ok());
  EXPECT_EQ(off->layer[1].window, 0);
  EXPECT_EQ(on->layer[0].window, 0);
  EXPECT_EQ(on->layer[1].window, 16);
}

// ---- real files, where the machine has them ----

TEST(RealModels, SmolLM2) {
  const std::string path = "models/SmolLM2-135M-Instruct.Q4_1.gguf";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "no " << path;
  const Checkpoint c = MustOpen(path);
  EXPECT_EQ(c.fingerprint,
            "sha256:81c9f0d7cc8ba7e6bbf2d9993f31839f5937d6c1ca8ca1293ac0af6798ca02ed");
  EXPECT_EQ(c.config.layers, 30);
  EXPECT_EQ(c.config.heads, 9);
  EXPECT_EQ(c.config.kv_heads, 3);
  EXPECT_EQ(c.config.head_dim, 64);
  EXPECT_EQ(c.config.vocab, 49152);
  EXPECT_EQ(c.config.rope[0].base, 100000.0f);
  EXPECT_TRUE(c.config.tied_output);
}

TEST(RealModels, Gemma3) {
  const std::string path = "models/gemma-3-270m-q4_k_m.gguf";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "no " << path;
  const Checkpoint c = MustOpen(path);
  EXPECT_EQ(c.fingerprint,
            "sha256:9f83f2ee111343bb9ae91e2e1e6e44342a6f32f45fe135bd0c857a7869806515");
  EXPECT_EQ(c.config.layers, 18);
  EXPECT_EQ(c.config.head_dim, 256);
  EXPECT_EQ(c.config.layer[4].window, 512);
  EXPECT_EQ(c.config.layer[5].window, 0);
  EXPECT_EQ(c.config.rope[0].base, 1000000.0f);
  EXPECT_EQ(c.config.rope[1].base, 10000.0f);
  EXPECT_FLOAT_EQ(c.config.attention_scale, 0.0625f);
}

}  // namespace
}  // namespace baton
