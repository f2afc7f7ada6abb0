#include <cmath>
#include <nlohmann/json.hpp>

#include "formats/dequantize.h"
#include "formats/gguf_writer.h"
#include "formats/hf_config.h"
#include "model/spec/checkpoint.h"
#include "train/program/commands.h"
#include "train/program/data.h"

namespace baton::train {
namespace {

using nlohmann::json;

struct ExportFlags {
  std::string model, out;
};

// Blocks of 32: a half-precision scale, then bytes.
std::vector<std::byte> ToQ8(const std::vector<float>& values) {
  constexpr size_t kBlock = 32, kBytes = 34;
  std::vector<std::byte> out(values.size() / kBlock * kBytes);
  for (size_t b = 0; b < values.size() / kBlock; ++b) {
    const float* v = values.data() + b * kBlock;
    float largest = 0;
    for (size_t i = 0; i < kBlock; ++i) largest = std::max(largest, std::fabs(v[i]));
    const uint16_t scale = FloatToHalf(largest / 127);
    const float step = HalfToFloat(scale);
    std::memcpy(out.data() + b * kBytes, &scale, sizeof scale);
    for (size_t i = 0; i < kBlock; ++i) {
      const float q = step > 0 ? std::nearbyint(v[i] / step) : 0;
      out[b * kBytes + 2 + i] =
          static_cast<std::byte>(static_cast<int8_t>(std::clamp(q, -127.0f, 127.0f)));
    }
  }
  return out;
}

// The keys of a byte-level tokenizer.json.
Result<Metadata> TokenizerKeys(const std::string& folder) {
  BATON_ASSIGN(const std::string text, ReadFileText(folder + "/tokenizer.json"));
  const json t = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!t.is_object() || !t.contains("model") || t["model"].value("type", "") != "BPE")
    return Error::Unsupported("{}/tokenizer.json: no byte-pair model", folder);
  constexpr int64_t kNormal = 1, kControl = 3;
  const json& vocab = t["model"]["vocab"];
  std::vector<std::string> tokens(vocab.size());
  std::vector<int64_t> types(vocab.size(), kNormal);
  for (const auto& [name, id] : vocab.items()) tokens.at(id.get<size_t>()) = name;
  for (const json& added : t["added_tokens"]) types.at(added["id"].get<size_t>()) = kControl;
  std::vector<std::string> merges;
  for (const json& m : t["model"]["merges"]) merges.push_back(m.get<std::string>());
  Metadata m;
  m.values = {{"tokenizer.ggml.model", std::string("gpt2")},
              {"tokenizer.ggml.pre", std::string("gpt-2")},
              {"tokenizer.ggml.tokens", tokens},
              {"tokenizer.ggml.token_type", types},
              {"tokenizer.ggml.merges", merges},
              {"tokenizer.ggml.bos_token_id", int64_t{1}},
              {"tokenizer.ggml.eos_token_id", int64_t{0}},
              {"tokenizer.ggml.add_bos_token", false}};
  return m;
}

void AddTensor(GgufWriter& writer, const std::string& name, const TensorInfo& t) {
  std::vector<float> values(static_cast<size_t>(t.elements()));
  Dequantize(t.dtype, t.data, 0, t.elements(), values.data());
  const bool blocks = t.shape.size() == 2 && t.shape[1] % 32 == 0;
  if (blocks) return writer.AddTensor(name, DType::kQ8_0, t.shape, ToQ8(values));
  const auto* bytes = reinterpret_cast<const std::byte*>(values.data());
  writer.AddTensor(name, DType::kF32, t.shape, {bytes, bytes + values.size() * sizeof(float)});
}

Status Export(const ExportFlags& flags) {
  BATON_ASSIGN(const Checkpoint checkpoint, Checkpoint::Open(flags.model));
  if (checkpoint.config.plan.empty())
    return Error::Unsupported("{}: a {} model; only trained-sparse ones are converted", flags.model,
                              checkpoint.config.architecture);
  BATON_ASSIGN(const Metadata config, ReadHfConfig(flags.model + "/config.json"));
  BATON_ASSIGN(const Metadata tokenizer, TokenizerKeys(flags.model));
  GgufWriter writer;
  writer.Set(config);
  writer.Set(tokenizer);
  for (const TensorSlot& slot : TensorSlots(checkpoint.config)) {
    if (slot.rule->need == Need::kUnlessTied && checkpoint.config.tied_output) continue;
    const TensorSet& set = IsPerLayer(slot.rule->role)
                               ? checkpoint.layers[static_cast<size_t>(slot.layer)]
                               : checkpoint.model;
    AddTensor(writer, slot.rule->Name(FileKind::kGguf, slot.layer), *set[slot.rule->role]);
  }
  return writer.WriteFile(flags.out);
}

}  // namespace

void AddExport(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("export", "A trained folder to one GGUF file, Q8_0");
  auto flags = std::make_shared<ExportFlags>();
  command->add_option("MODEL", flags->model, "Folder")->required();
  command->add_option("-o,--out", flags->out, "GGUF file")->required();
  command->callback([flags, &action] { action = [flags] { return Export(*flags); }; });
}

}  // namespace baton::train
