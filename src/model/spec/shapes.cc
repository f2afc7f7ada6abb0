// Shapes of well-known models, for WriteSyntheticGguf.
#include <utility>
#include <vector>

#include "model/spec/synthetic.h"

namespace baton {
namespace {

struct Named {
  std::string_view name;
  SyntheticSpec spec;
};

constexpr int64_t kContext = (int64_t{1} << 20) + 4096;

std::string Repeated(std::string_view part, int times) {
  std::string s;
  for (int i = 0; i < times; ++i) s += part;
  return s;
}

// The 4B models of arXiv 2606.06467: one shape, three ways to attend.
SyntheticSpec FourBillion(const std::string& architecture, const std::string& layout) {
  return {.architecture = architecture,
          .layers = 32,
          .width = 2560,
          .heads = 20,
          .kv_heads = 4,
          .head_dim = 128,
          .ffn_width = 7680,
          .vocab = 128256,
          .context = kContext,
          .window = 512,
          .weights = DType::kQ4_0,
          .tied_output = false,
          .layout = layout,
          .rope = "WF",
          .qk_norm = true,
          .note = "the vocabulary is not published: that of Llama 3"};
}

SyntheticSpec Clsa() {
  SyntheticSpec s = FourBillion("baton-clsa", Repeated("W", 16) + Repeated("I", 16));
  s.exit_layer = 16;
  s.top_k = 2048;
  s.index_dim = 128;
  s.note += ", and the indexer's key size: that of a head";
  return s;
}

SyntheticSpec Yoco() {
  SyntheticSpec s = FourBillion("baton-clsa", Repeated("W", 16) + Repeated("D", 16));
  s.exit_layer = 16;
  return s;
}

// arXiv 2602.03560.
SyntheticSpec HySparse(int layers, const std::string& layout) {
  return {.architecture = "baton-hysparse",
          .layers = layers,
          .head_dim = 128,
          .context = kContext,
          .window = 128,
          .weights = DType::kQ4_0,
          .tied_output = false,
          .layout = layout,
          .rope = "FS",
          .gated = "S",
          .sinks = "S",
          .top_k = 1024,
          .block = 64,
          .scope = Scope::kGroup};
}

// The first and the last layer are full, and every fourth between; which are is not published.
SyntheticSpec HySparse7b() {
  SyntheticSpec s = HySparse(36, Repeated("FSSS", 8) + "FSSF");
  s.width = 4096;
  s.heads = 32;
  s.kv_heads = 8;
  s.ffn_width = 9216;
  s.vocab = 128256;
  s.note = "the FFN is not published: 9,216 makes about 7 billion parameters";
  return s;
}

// Experts are not run here. Another 80B-A3B model of this width runs 10 routed experts and a shared
// one of 512 each for a token (Qwen3-Next-80B-A3B): one FFN of 11 * 512 reads as many weights.
constexpr int64_t kActiveFfn = 11 * 512;
constexpr const char* kActiveNote =
    "a dense FFN of 5,632 stands in for the active experts (11 of 512); attention is the model's";

SyntheticSpec HySparse80b() {
  SyntheticSpec s = HySparse(49, Repeated("FSSSSSSSSSSS", 4) + "F");
  s.width = 2048;
  s.heads = 64;
  s.kv_heads = 4;
  s.ffn_width = kActiveFfn;
  s.vocab = 151936;
  s.note = kActiveNote;
  return s;
}

// arXiv 2609.26368.
SyntheticSpec HySparse2() {
  return {.architecture = "baton-hysparse2",
          .layers = 49,
          .width = 2048,
          .heads = 64,
          .kv_heads = 1,
          .head_dim = 256,
          .ffn_width = kActiveFfn,
          .vocab = 151936,
          .context = kContext,
          .window = 128,
          .weights = DType::kQ4_0,
          .tied_output = false,
          .layout = Repeated("W", 12) + "F" + Repeated("W", 12) + Repeated("CRRRRR", 4),
          .rope = "W",
          .gated = "WR",
          .sinks = "WR",
          .rope_dims = 64,
          .exit_layer = 25,
          .top_k = 1024,
          .recent = 128,
          .note = kActiveNote};
}

SyntheticSpec Dense(std::string_view architecture, int layers, int64_t width, int64_t head_dim,
                    int64_t ffn_width, int64_t vocab, bool tied) {
  return {.architecture = std::string(architecture),
          .layers = layers,
          .width = width,
          .heads = 32,
          .kv_heads = 8,
          .head_dim = head_dim,
          .ffn_width = ffn_width,
          .vocab = vocab,
          .context = kContext,
          .weights = DType::kQ4_0,
          .tied_output = tied};
}

const std::vector<Named>& Shapes() {
  static const std::vector<Named> shapes = {
      // Llama 3.2 1B, Llama 3.1 8B, Qwen 3 8B
      {"llama-1b", Dense("llama", 16, 2048, 64, 8192, 128256, true)},
      {"llama-8b", Dense("llama", 32, 4096, 128, 14336, 128256, false)},
      {"qwen3-8b", Dense("qwen3", 36, 4096, 128, 12288, 151936, false)},
      {"clsa-4b", Clsa()},
      {"yoco-4b", Yoco()},
      {"transformer-4b", FourBillion("baton-dense", Repeated("F", 32))},
      {"hysparse-7b", HySparse7b()},
      {"hysparse-80b-dense-ffn", HySparse80b()},
      {"hysparse2-80b-dense-ffn", HySparse2()},
  };
  return shapes;
}

}  // namespace

Result<SyntheticSpec> NamedShape(std::string_view name) {
  for (const Named& s : Shapes()) {
    if (s.name == name) return s.spec;
  }
  return Error::InvalidArgument("expected one of the shapes {}, got {}", ShapeNames(), name);
}

std::string ShapeNames() {
  std::string names;
  for (const Named& s : Shapes()) names += fmt::format("{}{}", names.empty() ? "" : ", ", s.name);
  return names;
}

Status CheckShape(const ModelConfig& m, const SyntheticSpec& s) {
  std::string expected, got;
  const auto compare = [&](std::string_view what, int64_t model, int64_t shape) {
    if (model == shape) return;
    expected += fmt::format("{}{} {}", expected.empty() ? "" : ", ", what, shape);
    got += fmt::format("{}{}", got.empty() ? "" : ", ", model);
  };
  compare("layers", m.layers, s.layers);
  compare("width", m.width, s.width);
  compare("heads", m.heads, s.heads);
  compare("KV heads", m.kv_heads, s.kv_heads);
  compare("head size", m.head_dim, s.head_dim);
  compare("FFN width", m.ffn_width, s.ffn_width);
  compare("vocabulary", m.vocab, s.vocab);
  if (const std::string layout = LayoutOf(m); layout != s.layout) {
    expected += fmt::format("{}layout {}", expected.empty() ? "" : ", ", s.layout);
    got += fmt::format("{}{}", got.empty() ? "" : ", ", layout);
  }
  if (m.architecture != s.architecture)
    return Error::InvalidArgument("expected a {} model, got {}", s.architecture, m.architecture);
  if (expected.empty()) return Status::Ok();
  return Error::InvalidArgument("expected {}, got {}", expected, got);
}

}  // namespace baton
