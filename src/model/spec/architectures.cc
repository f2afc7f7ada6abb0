#include "model/spec/architectures.h"

#include <initializer_list>

#include "base/check.h"
#include "formats/printable.h"
#include "model/spec/router.h"

namespace baton {
namespace {

constexpr std::string_view kClsaKeys[] = {"memory.input_layer", "memory.qk_norm",
                                          "indexer.head_count", "indexer.key_length",
                                          "indexer.scale",      "indexer.dtype"};
constexpr std::string_view kHySparseKeys[] = {"residual.streams"};
constexpr std::string_view kHySparse2Keys[] = {"residual.streams", "bridge.norm"};

constexpr uint32_t Mask(std::initializer_list<Role> roles) {
  uint32_t mask = 0;
  for (Role r : roles) mask |= 1u << static_cast<int>(r);
  return mask;
}

constexpr Architecture kArchitectures[] = {
    {
        .name = "llama",
        .gguf_name = "llama",
        .hf_type = "llama",
        .interleaved_in_gguf = true,
    },
    {
        // GGUF has no name for it: there, a llama file with a sliding window is a Mistral.
        .name = "mistral",
        .gguf_name = "llama",
        .hf_type = "mistral",
        .window = WindowRule::kEveryLayer,
        .interleaved_in_gguf = true,
    },
    {
        .name = "qwen2",
        .gguf_name = "qwen2",
        .hf_type = "qwen2",
        .window = WindowRule::kUpperLayers,
        .attention_bias = true,
    },
    {
        .name = "qwen3",
        .gguf_name = "qwen3",
        .hf_type = "qwen3",
        .window = WindowRule::kUpperLayers,
        .qk_norm = true,
    },
    {
        .name = "gemma3",
        .gguf_name = "gemma3",
        .hf_type = "gemma3_text",
        .window = WindowRule::kFiveToOne,
        .activation = Activation::kGeluTanh,
        .qk_norm = true,
        .post_norms = true,
        .scaled_embedding = true,
        .norm_plus_one_in_hf = true,
        .tied_by_default_in_hf = true,
        .default_rope_base = 1000000.0,
        .local_rope_base = 10000.0,
    },
    {
        .name = "baton-dense",
        .gguf_name = "baton-dense",
        .native = true,
        .roles = Mask({Role::kFull, Role::kWindow}),
    },
    {
        .name = "baton-clsa",
        .gguf_name = "baton-clsa",
        .native = true,
        .own_keys = kClsaKeys,
        .roles =
            Mask({Role::kWindow, Role::kCrossDense, Role::kCrossIndex, Role::kCrossIndexLocal}),
    },
    {
        .name = "baton-hysparse",
        .gguf_name = "baton-hysparse",
        .native = true,
        .own_keys = kHySparseKeys,
        .roles = Mask({Role::kFull, Role::kSparse}),
    },
    {
        .name = "baton-hysparse2",
        .gguf_name = "baton-hysparse2",
        .native = true,
        .own_keys = kHySparse2Keys,
        .roles = Mask(
            {Role::kWindow, Role::kFull, Role::kCrossFull, Role::kSparseShared, Role::kSparse}),
    },
};

std::string KnownNames() {
  std::string names;
  for (const Architecture& a : kArchitectures)
    names += (names.empty() ? "" : ", ") + std::string(a.name);
  return names;
}

const Architecture* ByName(std::string_view name) {
  for (const Architecture& a : kArchitectures) {
    if (a.name == name) return &a;
  }
  return nullptr;
}

}  // namespace

std::span<const Architecture> Architectures() { return kArchitectures; }

Result<const Architecture*> FindArchitecture(FileKind kind, const Metadata& m) {
  const char* key = kind == FileKind::kGguf ? "general.architecture" : "model_type";
  const std::string* given = m.String(key);
  if (kind == FileKind::kHuggingFace && !RoutedBackbone(m).empty())
    return ByName(RoutedBackbone(m));
  if (kind == FileKind::kHuggingFace && given == nullptr) {
    given = m.String("general.architecture");
    for (const Architecture& a : kArchitectures) {
      if (given != nullptr && a.native && *given == a.gguf_name) return &a;
    }
  }
  if (given == nullptr)
    return Error::Corrupt("{} is missing or no string", key)
        .Hint("the supported ones are: " + KnownNames());
  if (kind == FileKind::kGguf && *given == "llama" &&
      m.Int("llama.attention.sliding_window").value_or(0) > 0)
    return ByName("mistral");
  for (const Architecture& a : kArchitectures) {
    const std::string_view name = kind == FileKind::kGguf ? a.gguf_name : a.hf_type;
    if (!name.empty() && *given == name) return &a;
  }
  Error error =
      Error::Unsupported("architecture '{}'; supported: {}", Printable(*given), KnownNames());
  if (*given == "gemma3")  // only in folders: there, it is the model with images
    return std::move(error).Hint(
        "this is Gemma 3 with a vision part; use its text-only form (gemma3_text) or a GGUF file");
  return error;
}

}  // namespace baton
