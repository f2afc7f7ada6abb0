// A setting of a model is used, an error, or listed as ignored; never silently dropped.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "formats/hf_config.h"
#include "model/spec/architectures.h"
#include "model/spec/config.h"

namespace baton {
namespace {

std::string LlamaJson(const std::string& more, const std::string& type = "llama") {
  return R"({"model_type":")" + type +
         R"(","num_hidden_layers":2,"hidden_size":64,"num_attention_heads":4,"num_key_value_heads":2,
    "intermediate_size":96,"max_position_embeddings":512,"vocab_size":300)" +
         (more.empty() ? "" : "," + more) + "}";
}

Result<ModelConfig> Read(const std::string& json) {
  BATON_ASSIGN(const Metadata m, ParseHfConfig(json));
  BATON_ASSIGN(const Architecture* a, FindArchitecture(FileKind::kHuggingFace, m));
  return ReadConfig(FileKind::kHuggingFace, *a, m);
}

ModelConfig MustRead(const std::string& more, const std::string& type = "llama") {
  Result<ModelConfig> c = Read(LlamaJson(more, type));
  EXPECT_TRUE(c.ok()) << more << ": " << c.error().ToString();
  return c.ok() ? std::move(c).value() : ModelConfig{.rope = {{}, {}}};
}

std::string ErrorOf(const std::string& more, const std::string& type = "llama") {
  const Result<ModelConfig> c = Read(LlamaJson(more, type));
  return c.ok() ? "no error" : c.error().ToString();
}

Metadata LlamaGguf() {
  Metadata m;
  m.values = {{"general.architecture", std::string("llama")},
              {"llama.block_count", int64_t{2}},
              {"llama.context_length", int64_t{512}},
              {"llama.embedding_length", int64_t{64}},
              {"llama.feed_forward_length", int64_t{96}},
              {"llama.attention.head_count", int64_t{4}},
              {"llama.vocab_size", int64_t{300}}};
  return m;
}

Result<ModelConfig> ReadGguf(const std::string& key, MetaValue value) {
  Metadata m = LlamaGguf();
  m.values[key] = std::move(value);
  BATON_ASSIGN(const Architecture* a, FindArchitecture(FileKind::kGguf, m));
  return ReadConfig(FileKind::kGguf, *a, m);
}

TEST(Keys, NumbersMayBeText) {
  EXPECT_EQ(MustRead(R"("rope_theta":"500000")").rope[0].base, 500000.0f);
  EXPECT_EQ(MustRead(R"("head_dim":"32")").head_dim, 32);
  EXPECT_EQ(MustRead(R"("head_dim":32.0)").head_dim, 32);
  EXPECT_EQ(MustRead(R"("rope_scaling":{"type":"linear","factor":"4"})").rope[0].factor, 4.0f);
  EXPECT_TRUE(MustRead(R"("tie_word_embeddings":"true")").tied_output);
  const auto gguf = ReadGguf("llama.rope.freq_base", std::string("500000"));
  ASSERT_TRUE(gguf.ok());
  EXPECT_EQ(gguf->rope[0].base, 500000.0f);
  EXPECT_NE(ErrorOf(R"("rope_theta":"much")").find("rope_theta is 'much', expected a number"),
            std::string::npos);
  EXPECT_NE(ErrorOf(R"("rope_theta":[1])").find("rope_theta is a list"), std::string::npos);
  EXPECT_NE(ErrorOf(R"("rope_theta":Infinity)").find("rope_theta"), std::string::npos);
  EXPECT_NE(ErrorOf(R"("tie_word_embeddings":"perhaps")").find("tie_word_embeddings"),
            std::string::npos);
}

TEST(Keys, WhatMayChangeResultsIsAnError) {
  for (const char* more :
       {R"("residual_multiplier":0.22)", R"("logits_scaling":8.0)", R"("rope_ratio":2)",
        R"("no_rope_layers":[1,0])", R"("num_experts":8)", R"("use_qk_norm":true)",
        R"("mlp_bias":true)", R"("quantization_config":{"bits":4})",
        R"("partial_rotary_factor":0.5)",
        R"("rope_parameters":{"rope_type":"default","partial_rotary_factor":0.5})",
        R"("rope_scaling":{"type":"linear","factor":2,"mrope_section":[1,2]})",
        R"("rope_scaling":{"factor":2.0})", R"("rope_scaling":["linear",2])",
        R"("no_rope_layers":[0,0])", R"("clip_qkv":8.0)", R"("use_dynamic_ntk":true)",
        R"("use_logn_attn":true)", R"("position_embedding_type":"alibi")"}) {
    const std::string e = ErrorOf(more);
    const std::string text(more);
    EXPECT_NE(e, "no error") << more;
    EXPECT_NE(e.find(text.substr(1, text.find('"', 1) - 1)), std::string::npos) << e;
  }
  for (const char* key : {"llama.residual_scale", "llama.rope.dimension_sections",
                          "llama.attention.temperature_scale", "llama.nonesuch"}) {
    const auto c = ReadGguf(key, 2.5);
    ASSERT_FALSE(c.ok()) << key;
    EXPECT_NE(c.error().ToString().find(key), std::string::npos);
    EXPECT_EQ(c.error().code(), Error::Code::kUnsupported);
  }
}

TEST(Keys, ValuesOfAnotherKindAreErrors) {
  for (const auto& [more, message] : std::vector<std::pair<std::string, std::string>>{
           {R"("hidden_act":5)", "hidden_act is 5, expected a text"},
           {R"("layer_types":"full_attention")",
            "layer_types is 'full_attention', expected a list"},
           {R"("rope_scaling":{"rope_type":3})", "rope_scaling.rope_type is 3, expected a text"},
           {R"("rope_scaling":{"type":"yarn"})", "rope_scaling.factor is missing"},
           {R"("rope_scaling":{"type":"llama3","factor":null})", "rope_scaling.factor is missing"},
           {R"("rope_scaling":{"type":"linear","factor":0})", "rope_scaling.factor is 0"}})
    EXPECT_NE(ErrorOf(more).find(message), std::string::npos) << ErrorOf(more);
  EXPECT_FALSE(ReadGguf("llama.rope.scaling.type", int64_t{3}).ok());
}

TEST(Keys, WindowsCanBeTurnedOff) {
  EXPECT_EQ(MustRead(R"("sliding_window":16)", "mistral").layer[0].window, 16);
  EXPECT_EQ(
      MustRead(R"("sliding_window":16,"use_sliding_window":false)", "mistral").layer[0].window, 0);
  EXPECT_NE(ErrorOf(R"("sliding_window":16,"use_sliding_window":false)", "gemma3_text")
                .find("use_sliding_window"),
            std::string::npos);
}

TEST(Keys, WhatCannotIsListed) {
  const ModelConfig c = MustRead(
      R"("my_note":"x","limit":[0.0,Infinity],"attention_dropout":0.1,"residual_multiplier":1.0,
         "mlp_bias":false,"rope_interleaved":false,"use_cache":true,"torch_dtype":"float32",
         "num_experts":0,"big":18446744073709551616)");
  EXPECT_EQ(c.ignored_keys,
            (std::vector<std::string>{"big", "limit", "mlp_bias", "my_note", "num_experts",
                                      "residual_multiplier", "rope_interleaved"}));
  const auto gguf = ReadGguf("someone.note", std::string("x"));
  ASSERT_TRUE(gguf.ok());
  EXPECT_EQ(gguf->ignored_keys, std::vector<std::string>{"someone.note"});
  ASSERT_TRUE(ReadGguf("llama.expert_count", int64_t{0}).ok());
  ASSERT_TRUE(ReadGguf("llama.rope.scaling.finetuned", true).ok());
}

// Keys that published folders have besides their sizes.
TEST(Keys, UsualConfigsHaveNothingToRefuse) {
  MustRead(R"("architectures":["LlamaForCausalLM"],"attention_bias":false,"attention_dropout":0.0,
      "hidden_act":"silu","initializer_range":0.02,"is_llama_config":true,"mlp_bias":false,
      "pretraining_tp":1,"rms_norm_eps":1e-05,"rope_interleaved":false,"rope_scaling":null,
      "rope_theta":100000,"tie_word_embeddings":true,"torch_dtype":"bfloat16","use_cache":true,
      "transformers.js_config":{"kv_cache_dtype":{"q4f16":"float16"}},"tensor_parallel_degree":1)");
  MustRead(R"("sliding_window":null,"rope_theta":1000000.0,"max_window_layers":28,
      "use_sliding_window":false,"use_mrope":false,"hidden_act":"silu","attention_bias":true)",
           "qwen2");
  MustRead(R"("attn_logit_softcapping":null,"cache_implementation":"hybrid","head_dim":16,
      "final_logit_softcapping":null,"hidden_activation":"gelu_pytorch_tanh",
      "query_pre_attn_scalar":16,"rope_local_base_freq":10000.0,"rope_scaling":null,
      "rope_theta":1000000.0,"sliding_window":16,"_sliding_window_pattern":6,
      "layer_types":["sliding_attention","full_attention"],"use_bidirectional_attention":false)",
           "gemma3_text");
  MustRead(R"("rope_parameters":{"rope_theta":500000.0,"rope_type":"llama3","factor":8.0,
      "low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":64})");
  MustRead(R"("rope_scaling":{"factor":16.0,"original_max_position_embeddings":64,"type":"yarn",
      "finetuned":true},"no_rope_layers":[1,1],"position_embedding_type":"rope")");
}

TEST(Keys, PythonsConstantsAreRead) {
  EXPECT_TRUE(
      Read(LlamaJson(R"("unused":Infinity,"b":[NaN,-Infinity],"c":"NaN \" Infinity")")).ok());
  const auto broken = ParseHfConfig("{\"a\": 1,\n\"b\": oops}");
  ASSERT_FALSE(broken.ok());
  EXPECT_NE(broken.error().ToString().find("line 2"), std::string::npos);
}

TEST(Rope, OldLinearKeyOfGgufCounts) {
  const auto c = ReadGguf("llama.rope.scale_linear", 4.0);
  ASSERT_TRUE(c.ok()) << c.error().ToString();
  EXPECT_EQ(c->rope[0].scaling, RopeConfig::Scaling::kLinear);
  EXPECT_EQ(c->rope[0].factor, 4.0f);
}

TEST(Rope, YarnBoundsAreRoundedUnlessTold) {
  const std::string yarn =
      R"("rope_scaling":{"rope_type":"yarn","factor":8.0,"original_max_position_embeddings":64)";
  const ModelConfig rounded = MustRead(yarn + "}"),
                    exact = MustRead(yarn + R"(,"truncate":false})");
  const std::vector<float> a = RopeFrequencies(rounded.rope[0], 64),
                           b = RopeFrequencies(exact.rope[0], 64);
  EXPECT_EQ(a.front(), b.front());
  EXPECT_NE(a, b);
  // By the formula: pairs between turns 32 and 1 over 64 positions.
  const auto pair = [](double turns) {
    return 64 * std::log(64 / (turns * 2 * M_PI)) / (2 * std::log(10000.0));
  };
  const double low = std::max(0.0, pair(32)), high = pair(1);
  for (int i = 0; i < 32; ++i) {
    const double f = std::pow(10000.0, -2.0 * i / 64);
    const double t = std::min(1.0, std::max(0.0, (i - low) / (high - low)));
    EXPECT_NEAR(b[static_cast<size_t>(i)], f * (1 - t) + f / 8 * t, 1e-6 * f) << i;
  }
}

TEST(Rope, EachKindOfLayerHasItsParameters) {
  const ModelConfig c = MustRead(
      R"("sliding_window":16,"layer_types":["sliding_attention","full_attention"],"rope_parameters":
      {"full_attention":{"rope_type":"linear","factor":8.0,"rope_theta":1000000.0},
       "sliding_attention":{"rope_type":"linear","factor":2.0,"rope_theta":20000.0}})",
      "gemma3_text");
  ASSERT_EQ(c.rope.size(), 2u);
  EXPECT_EQ(c.rope[0].base, 1000000.0f);
  EXPECT_EQ(c.rope[0].factor, 8.0f);
  EXPECT_EQ(c.rope[1].base, 20000.0f);
  EXPECT_EQ(c.rope[1].factor, 2.0f);
  EXPECT_EQ(c.layer[0].rope, 1);
  EXPECT_EQ(c.layer[1].rope, 0);
  EXPECT_NE(
      ErrorOf(R"("rope_theta":5000,"rope_parameters":{"rope_theta":6000})").find("rope_theta"),
      std::string::npos);
}

TEST(Names, HoldNothingThatATerminalObeys) {
  const auto c = ReadGguf("general.name", std::string("a\x1b[2Jb"));
  ASSERT_TRUE(c.ok());
  EXPECT_EQ(c->name, "a\\x1b[2Jb");
}

}  // namespace
}  // namespace baton
