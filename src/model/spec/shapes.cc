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

const std::vector<Named>& Shapes() {
  constexpr int64_t kContext = (int64_t{1} << 20) + 4096;
  static const std::vector<Named> shapes = {
      {"llama-1b",  // Llama 3.2 1B
       {.layers = 16,
        .width = 2048,
        .heads = 32,
        .kv_heads = 8,
        .head_dim = 64,
        .ffn_width = 8192,
        .vocab = 128256,
        .context = kContext,
        .weights = DType::kQ4_0,
        .tied_output = true}},
      {"llama-8b",  // Llama 3.1 8B
       {.layers = 32,
        .width = 4096,
        .heads = 32,
        .kv_heads = 8,
        .head_dim = 128,
        .ffn_width = 14336,
        .vocab = 128256,
        .context = kContext,
        .weights = DType::kQ4_0,
        .tied_output = false}},
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
  if (m.architecture != s.architecture)
    return Error::InvalidArgument("expected a {} model, got {}", s.architecture, m.architecture);
  if (expected.empty()) return Status::Ok();
  return Error::InvalidArgument("expected {}, got {}", expected, got);
}

}  // namespace baton
