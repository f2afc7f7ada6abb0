#include "model/spec/synthetic.h"

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <utility>
#include <vector>

#include "base/check.h"
#include "formats/byte_tokenizer.h"
#include "formats/gguf_writer.h"
#include "formats/hf_config.h"
#include "formats/safetensors.h"
#include "model/spec/architectures.h"

namespace baton {
namespace {

constexpr double kRopeBase = 10000.0;
constexpr double kNormEps = 1e-5;

// SplitMix64's finaliser: a counter becomes a random number, so any element can be made on its own.
uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

uint64_t HashName(const std::string& name) {  // FNV-1a
  uint64_t h = 0xcbf29ce484222325u;
  for (char c : name) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return h;
}

// The values of one tensor in the order of the GGUF file, whatever file they go to.
struct Values {
  uint64_t stream;
  TensorRole role;
  int64_t inputs;

  Values(const SyntheticSpec& spec, const TensorRule& rule, int layer, int64_t inputs)
      : stream(Mix(spec.seed ^ HashName(rule.Name(FileKind::kGguf, layer)))),
        role(rule.role),
        inputs(inputs) {}

  float Deviation() const { return 1.0f / std::sqrt(static_cast<float>(inputs)); }

  float At(int64_t index) const {
    const uint64_t h = Mix(stream + static_cast<uint64_t>(index));
    const float unit = static_cast<float>(static_cast<int32_t>(h >> 32)) * 0x1p-31f;  // [-1, 1)
    switch (role) {
      case TensorRole::kOutputNorm:
      case TensorRole::kAttnNorm:
      case TensorRole::kFfnNorm:
      case TensorRole::kPostAttnNorm:
      case TensorRole::kPostFfnNorm:
      case TensorRole::kQNorm:
      case TensorRole::kKNorm:
      case TensorRole::kMemoryNorm:
      case TensorRole::kMemoryKNorm:
      case TensorRole::kBridgeNorm:
        // Multiples of 1/64 near one: exact in bf16, with and without Gemma's +1.
        return 1.0f + std::round(unit * 8.0f) / 64.0f;
      case TensorRole::kAttnSinks:
      case TensorRole::kAttnSinksLocal:
        return std::round(unit * 64.0f) / 64.0f;
      case TensorRole::kQBias:
      case TensorRole::kKBias:
      case TensorRole::kVBias:
        return std::round(unit * 16.0f) / 64.0f;
      default:
        return unit * std::sqrt(3.0f) *
               Deviation();  // uniform: variance is a third of the bound's square
    }
  }
};

void Encode(DType dtype, float v, std::byte* out) {
  if (dtype == DType::kF32) {
    std::memcpy(out, &v, 4);
    return;
  }
  const uint16_t bits = dtype == DType::kBF16 ? ToBf16(v).bits : FloatToHalf(v);
  std::memcpy(out, &bits, 2);
}

// Quants are random bits; the scale's sign alternates at random because Q4_0 reaches from -8 to 7,
// and a common mean over thousands of inputs would drown the signal.
void FillBlocks(DType dtype, const Values& values, int64_t offset, std::span<std::byte> out) {
  const int block_bytes = Info(dtype).block_bytes;
  const float quant_deviation =
      dtype == DType::kQ8_0 ? 73.9f : 4.61f;  // uniform over 256 and over 16 levels
  const uint16_t scale = FloatToHalf(values.Deviation() / quant_deviation);
  uint64_t block = static_cast<uint64_t>(offset / block_bytes);
  for (size_t at = 0; at < out.size(); at += static_cast<size_t>(block_bytes), ++block) {
    std::byte* b = out.data() + at;
    uint64_t h = Mix(values.stream + block * 8);
    const uint16_t d = static_cast<uint16_t>(scale | (h & 1) << 15);
    std::memcpy(b, &d, 2);
    for (int i = 2; i < block_bytes; i += 8) {
      h = Mix(h);
      std::memcpy(b + i, &h, 8);
    }
  }
}

// An unknown architecture fails like one in a file.
Result<const Architecture*> RowOf(const SyntheticSpec& s) {
  for (const Architecture& a : Architectures()) {
    if (a.name == s.architecture) return &a;
  }
  Metadata m;
  m.values["general.architecture"] = s.architecture;
  return FindArchitecture(FileKind::kGguf, m);
}

struct SyntheticTensor {
  const TensorRule* rule;
  int layer;
  std::vector<int64_t> shape;
};

// The model from which both kinds of file are written.
struct Model {
  const Architecture* architecture = nullptr;
  ModelConfig config;
  std::vector<SyntheticTensor> tensors;
};

Result<Model> MakeModel(const SyntheticSpec& spec, FileKind kind, const Metadata& metadata) {
  if (spec.vocab < kMinByteVocab)
    return Error::InvalidArgument("vocabulary of {}, expected at least {}", spec.vocab,
                                  kMinByteVocab);
  Model m;
  BATON_ASSIGN(m.architecture, RowOf(spec));
  BATON_ASSIGN(m.config, ReadConfig(kind, *m.architecture, metadata));
  m.config.vocab = spec.vocab;
  for (const TensorSlot& slot : TensorSlots(m.config)) {
    const Need need = slot.rule->need;
    if (need == Need::kOptional || (need == Need::kUnlessTied && spec.tied_output)) continue;
    m.tensors.push_back({slot.rule, slot.layer, slot.rule->Shape(m.config)});
  }
  return m;
}

Result<Metadata> GgufMetadata(const SyntheticSpec& s) {
  BATON_ASSIGN(const Architecture* a, RowOf(s));
  Metadata m;
  if (s.vocab >= kMinByteVocab && s.vocab <= (1 << 22)) m = ByteTokenizerMetadata(s.vocab);
  if (a->native) {
    BATON_ASSIGN(Metadata native, NativeMetadata(s, *a));
    m.values.merge(native.values);
    return m;
  }
  const std::string p = std::string(a->gguf_name) + ".";
  m.values["general.architecture"] = std::string(a->gguf_name);
  m.values["general.name"] = fmt::format("synthetic {}", s.architecture);
  m.values[p + "block_count"] = static_cast<int64_t>(s.layers);
  m.values[p + "context_length"] = s.context;
  m.values[p + "embedding_length"] = s.width;
  m.values[p + "feed_forward_length"] = s.ffn_width;
  m.values[p + "attention.head_count"] = static_cast<int64_t>(s.heads);
  m.values[p + "attention.head_count_kv"] = static_cast<int64_t>(s.kv_heads);
  m.values[p + "attention.key_length"] = s.head_dim;
  m.values[p + "attention.value_length"] = s.head_dim;
  m.values[p + "rope.dimension_count"] = s.head_dim;
  m.values[p + "attention.layer_norm_rms_epsilon"] = kNormEps;
  m.values[p + "rope.freq_base"] = kRopeBase;
  m.values[p + "vocab_size"] = s.vocab;
  if (a->window == WindowRule::kEveryLayer || a->window == WindowRule::kFiveToOne)
    m.values[p + "attention.sliding_window"] = s.window;
  return m;
}

Result<Metadata> HfMetadata(const SyntheticSpec& s) {
  BATON_ASSIGN(const Architecture* a, RowOf(s));
  if (a->native) return NativeMetadata(s, *a);
  Metadata m;
  m.values["model_type"] = std::string(a->hf_type);
  m.values["num_hidden_layers"] = static_cast<int64_t>(s.layers);
  m.values["max_position_embeddings"] = s.context;
  m.values["hidden_size"] = s.width;
  m.values["intermediate_size"] = s.ffn_width;
  m.values["num_attention_heads"] = static_cast<int64_t>(s.heads);
  m.values["num_key_value_heads"] = static_cast<int64_t>(s.kv_heads);
  m.values["head_dim"] = s.head_dim;
  m.values["rms_norm_eps"] = kNormEps;
  m.values["rope_theta"] = kRopeBase;
  m.values["vocab_size"] = s.vocab;
  m.values["tie_word_embeddings"] = s.tied_output;
  m.values["bos_token_id"] = kByteBos;
  m.values["eos_token_id"] = kByteEos;
  m.values["hidden_act"] =
      std::string(a->activation == Activation::kSilu ? "silu" : "gelu_pytorch_tanh");
  if (a->window == WindowRule::kEveryLayer || a->window == WindowRule::kFiveToOne)
    m.values["sliding_window"] = s.window;
  return m;
}

// Converting a llama folder to GGUF moves rotary pair (i, i + D/2) of each head to (2i, 2i + 1);
// this is the way back.
int64_t GgufRow(const Model& m, TensorRole role, int64_t row) {
  if (!m.architecture->interleaved_in_gguf || (role != TensorRole::kQ && role != TensorRole::kK))
    return row;
  const int64_t d = m.config.head_dim, head = row / d, r = row % d;
  return head * d + (r < d / 2 ? 2 * r : 2 * (r - d / 2) + 1);
}

bool IsPlusOneNorm(const Model& m, const SyntheticTensor& t) {
  return m.config.norm_plus_one && t.rule->shape[1] == Dim::kNone;
}

SafetensorsEntry FolderTensor(const Model& m, const SyntheticSpec& spec, const SyntheticTensor& t) {
  const int64_t columns = t.shape.size() == 2 ? t.shape[1] : 1;
  const Values values(spec, *t.rule, t.layer, columns);
  SafetensorsEntry e{
      .name = t.rule->Name(TensorNames(FileKind::kHuggingFace, *m.architecture), t.layer),
      .dtype = spec.weights,
      .shape = t.shape};
  const int64_t size = Info(e.dtype).block_bytes;
  e.data.resize(static_cast<size_t>(t.shape[0] * columns * size));
  for (int64_t row = 0; row < t.shape[0]; ++row) {
    const int64_t from = GgufRow(m, t.rule->role, row);
    for (int64_t c = 0; c < columns; ++c) {
      const float v = values.At(from * columns + c) - (IsPlusOneNorm(m, t) ? 1.0f : 0.0f);
      Encode(e.dtype, v, e.data.data() + (row * columns + c) * size);
    }
  }
  return e;
}

Status WriteText(const std::string& path, const std::string& text) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out << text;
  out.close();
  if (!out) return Error::Io("{}: cannot write", path);
  return Status::Ok();
}

}  // namespace

Status WriteSyntheticGguf(const std::string& path, const SyntheticSpec& spec,
                          const GgufWriteOptions& options) {
  BATON_ASSIGN(const Metadata metadata, GgufMetadata(spec));
  BATON_ASSIGN(const Model m, MakeModel(spec, FileKind::kGguf, metadata));
  const DTypeInfo info = Info(spec.weights);
  const bool packed = spec.weights == DType::kQ8_0 || spec.weights == DType::kQ4_0;
  if (!packed && (info.block_elements != 1 || spec.weights == DType::kI8))
    return Error::Unsupported("synthetic weights of type {}; supported: F32 F16 BF16 Q8_0 Q4_0",
                              info.name);
  GgufWriter writer;
  writer.Set(metadata);
  for (const SyntheticTensor& t : m.tensors) {
    const DType dtype = t.shape.size() == 2 ? spec.weights : DType::kF32;
    if (t.shape.back() % Info(dtype).block_elements != 0)
      return Error::InvalidArgument("{}: rows of {} values, {} needs a multiple of {}",
                                    t.rule->Name(FileKind::kGguf, t.layer), t.shape.back(),
                                    info.name, info.block_elements);
    const Values values(spec, *t.rule, t.layer, t.shape.size() == 2 ? t.shape[1] : 1);
    writer.AddTensor(t.rule->Name(FileKind::kGguf, t.layer), dtype, t.shape,
                     [values, dtype](int64_t offset, std::span<std::byte> out) {
                       const int64_t size = Info(dtype).block_bytes;
                       if (Info(dtype).block_elements != 1)
                         return FillBlocks(dtype, values, offset, out);
                       for (int64_t i = 0; i < static_cast<int64_t>(out.size()) / size; ++i)
                         Encode(dtype, values.At(offset / size + i), out.data() + i * size);
                     });
  }
  return writer.WriteFile(path, options);
}

Status WriteSyntheticFolder(const std::string& path, const SyntheticSpec& spec) {
  if (spec.weights != DType::kF32 && spec.weights != DType::kBF16)
    return Error::Unsupported("a synthetic folder of type {}; supported: F32 BF16",
                              Info(spec.weights).name);
  BATON_ASSIGN(const Metadata metadata, HfMetadata(spec));
  BATON_ASSIGN(const Model m, MakeModel(spec, FileKind::kHuggingFace, metadata));
  std::error_code ec;
  std::filesystem::create_directories(path, ec);
  if (ec) return Error::Io("{}: cannot create: {}", path, ec.message());
  std::vector<SafetensorsEntry> entries;
  for (const SyntheticTensor& t : m.tensors) entries.push_back(FolderTensor(m, spec, t));
  const bool native = m.architecture->native;
  const std::string config = native ? ToFlatConfig(metadata) : ToHfConfig(metadata);
  BATON_TRY(WriteText(path + "/config.json", config));
  BATON_TRY(WriteText(path + "/tokenizer.json", ByteTokenizerJson(spec.vocab)));
  BATON_TRY(WriteText(path + "/tokenizer_config.json", ByteTokenizerConfigJson()));
  SafetensorsMetadata copy;
  if (native) copy["baton.config"] = config;
  return WriteSafetensors(path + "/model.safetensors", entries, copy);
}

}  // namespace baton
