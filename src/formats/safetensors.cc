#include "formats/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string_view>
#include <utility>

#include "formats/hf_config.h"
#include "formats/lfs_pointer.h"
#include "formats/printable.h"

namespace baton {
namespace {

using nlohmann::json;

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the limit of the format itself
constexpr size_t kMaxRank = 4;

std::optional<DType> TypeOf(std::string_view name) {
  for (DType t : {DType::kF32, DType::kF16, DType::kBF16}) {
    if (Info(t).name == name) return t;
  }
  return std::nullopt;
}

std::optional<uint64_t> Unsigned(const json& j) {
  if (!j.is_number_unsigned()) return std::nullopt;
  return j.get<uint64_t>();
}

// Parses the header and notices names given twice, which a JSON object would silently drop.
Result<json> ParseHeader(std::string_view text) {
  std::set<std::string> names;
  std::string twice;
  const json::parser_callback_t watch = [&](int depth, json::parse_event_t event, json& value) {
    if (event == json::parse_event_t::key && depth == 1 &&
        !names.insert(value.get<std::string>()).second)
      twice = value.get<std::string>();
    return true;
  };
  json header = json::parse(text.begin(), text.end(), watch, /*allow_exceptions=*/false);
  if (!header.is_object()) return Error::Corrupt("the safetensors header is not a JSON object");
  if (!twice.empty()) return Error::Corrupt("tensor '{}' appears twice", Printable(twice));
  return header;
}

Result<TensorInfo> ReadEntry(const std::string& name, const json& j,
                             std::span<const std::byte> data) {
  const std::string what = fmt::format("tensor '{}'", Printable(name));
  if (!j.is_object() || !j.contains("dtype") || !j["dtype"].is_string() || !j.contains("shape") ||
      !j["shape"].is_array() || !j.contains("data_offsets") || !j["data_offsets"].is_array() ||
      j["data_offsets"].size() != 2)
    return Error::Corrupt("{}: expected {{dtype, shape, data_offsets: [begin, end]}}", what);
  const std::string type = j["dtype"].get<std::string>();
  const std::optional<DType> dtype = TypeOf(type);
  if (!dtype)
    return Error::Unsupported("{} has type {}; supported: F32 F16 BF16", what, Printable(type))
        .Hint("convert the model to BF16, or use a GGUF file of it");
  TensorInfo info{.name = name, .dtype = *dtype};
  if (j["shape"].size() > kMaxRank)
    return Error::Corrupt("{} has {} dimensions, limit {}", what, j["shape"].size(), kMaxRank);
  int64_t elements = 1;
  for (const json& d : j["shape"]) {
    const std::optional<uint64_t> n = Unsigned(d);
    if (!n || *n > (uint64_t{1} << 48) ||
        __builtin_mul_overflow(elements, static_cast<int64_t>(*n), &elements) ||
        elements > (int64_t{1} << 48))
      return Error::Corrupt("{} has a dimension that is no count, or more than 2^48 elements",
                            what);
    info.shape.push_back(static_cast<int64_t>(*n));
  }
  const std::optional<uint64_t> begin = Unsigned(j["data_offsets"][0]),
                                end = Unsigned(j["data_offsets"][1]);
  if (!begin || !end || *begin > *end || *end > data.size())
    return Error::Corrupt("{} lies outside the data of {} bytes", what, data.size())
        .Hint("the file is truncated or damaged; download it again");
  info.bytes = BytesOf(*dtype, elements);
  if (*end - *begin != static_cast<uint64_t>(info.bytes))
    return Error::Corrupt("{} has {} bytes, expected {} from its shape and type", what,
                          *end - *begin, info.bytes);
  info.data = data.data() + *begin;
  return info;
}

}  // namespace

Result<std::vector<TensorInfo>> ParseSafetensors(std::span<const std::byte> bytes,
                                                 SafetensorsMetadata* metadata) {
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  BATON_TRY(RefuseLfsPointer(text, "a safetensors file"));
  uint64_t header_bytes = 0;
  if (bytes.size() < 8)
    return Error::Corrupt("a safetensors file has at least 8 bytes, this has {}", bytes.size());
  std::memcpy(&header_bytes, bytes.data(), 8);
  if (header_bytes > kMaxHeaderBytes || header_bytes > bytes.size() - 8)
    return Error::Corrupt("safetensors header of {} bytes in a file of {}", header_bytes,
                          bytes.size())
        .Hint("the file is truncated, damaged or of another format");
  BATON_ASSIGN(const json header, ParseHeader(text.substr(8, header_bytes)));
  const std::span<const std::byte> data = bytes.subspan(8 + header_bytes);

  std::vector<TensorInfo> tensors;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") {
      if (metadata == nullptr || !entry.is_object()) continue;
      for (const auto& [key, value] : entry.items()) {
        if (value.is_string()) metadata->emplace(key, value.get<std::string>());
      }
      continue;
    }
    BATON_ASSIGN(TensorInfo info, ReadEntry(name, entry, data));
    tensors.push_back(std::move(info));
  }
  std::sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::pair(a.data, a.bytes) < std::pair(b.data, b.bytes);
  });
  for (size_t i = 1; i < tensors.size(); ++i) {
    if (tensors[i].data < tensors[i - 1].data + tensors[i - 1].bytes)
      return Error::Corrupt("tensors '{}' and '{}' overlap", Printable(tensors[i - 1].name),
                            Printable(tensors[i].name));
  }
  return tensors;
}

namespace {

// Shard file -> the tensors it should hold.
Result<std::map<std::string, std::vector<std::string>>> ReadIndex(const std::string& path) {
  BATON_ASSIGN(const MappedFile file, MappedFile::Open(path));
  if (file.bytes().size() > kMaxHeaderBytes)
    return Error::Corrupt("{}: {} bytes, limit {}", path, file.bytes().size(), kMaxHeaderBytes);
  const auto* text = reinterpret_cast<const char*>(file.bytes().data());
  const json index =
      json::parse(text, text + file.bytes().size(), nullptr, /*allow_exceptions=*/false);
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object() ||
      index["weight_map"].empty())
    return Error::Corrupt("{}: expected a JSON object with a weight_map", path);
  std::map<std::string, std::vector<std::string>> shards;
  for (const auto& [tensor, shard] : index["weight_map"].items()) {
    if (!shard.is_string())
      return Error::Corrupt("{}: weight_map of '{}' is no file name", path, Printable(tensor));
    const std::string name = shard.get<std::string>();
    if (name.empty() || name.find('/') != std::string::npos || name == ".." ||
        name.find('\0') != std::string::npos)
      return Error::Corrupt("{}: shard '{}' is not a file in this folder", path, Printable(name));
    shards[name].push_back(tensor);
  }
  return shards;
}

// Shards without an index, by their names: PREFIX-00001-of-00003.safetensors.
Result<std::map<std::string, std::vector<std::string>>> FindShards(const std::string& folder) {
  namespace fs = std::filesystem;
  constexpr std::string_view kFirst = "-00001-of-";
  std::map<std::string, std::vector<std::string>> shards;
  std::error_code ignored;
  for (auto it = fs::directory_iterator(folder, ignored); it != fs::directory_iterator();
       it.increment(ignored)) {
    const std::string name = it->path().filename().string();
    const size_t at = name.find(kFirst);
    int count = 0;
    if (at == name.npos || !name.ends_with(".safetensors")) continue;
    const char* digits = name.data() + at + kFirst.size();
    if (std::from_chars(digits, name.data() + name.size(), count).ptr != digits + 5) continue;
    if (!shards.empty() || count < 1)
      return Error::Corrupt("{}: shards of several models and no model.safetensors.index.json",
                            folder);
    for (int i = 1; i <= count; ++i)
      shards[fmt::format("{}-{:05}-of-{:05}.safetensors", name.substr(0, at), i, count)] = {};
  }
  return shards;
}

}  // namespace

Result<SafetensorsFolder> OpenSafetensorsFolder(const std::string& folder) {
  namespace fs = std::filesystem;
  const std::string index = folder + "/model.safetensors.index.json";
  std::map<std::string, std::vector<std::string>> shards;
  std::error_code ignored;
  if (fs::exists(folder + "/model.safetensors", ignored)) {
    shards["model.safetensors"] = {};
  } else if (fs::exists(index, ignored)) {
    BATON_ASSIGN(shards, ReadIndex(index));
  } else {
    BATON_ASSIGN(shards, FindShards(folder));
  }
  if (shards.empty()) {
    return Error::NotFound("{}: neither model.safetensors nor model.safetensors.index.json", folder)
        .Hint("weights in .bin or .pt form are not read; convert them to safetensors or GGUF");
  }
  SafetensorsFolder out;
  std::set<std::string> names;
  for (const auto& [shard, promised] : shards) {
    const std::string path = folder + "/" + shard;
    Result<MappedFile> opened = MappedFile::Open(path);
    if (!opened.ok() && shards.size() > 1)
      return std::move(opened).error().Hint(
          fmt::format("the model has {} such files; download all into the folder", shards.size()));
    BATON_ASSIGN(MappedFile file, std::move(opened));
    SafetensorsMetadata metadata;
    Result<std::vector<TensorInfo>> tensors = ParseSafetensors(file.bytes(), &metadata);
    if (!tensors.ok()) return std::move(tensors).error().At(path);
    for (auto& [key, value] : metadata) {
      const auto [at, added] = out.metadata.emplace(key, value);
      if (!added && at->second != value && key.starts_with("baton."))
        return Error::Corrupt("{}: metadata '{}' differs from that of another shard", path,
                              Printable(key));
    }
    for (TensorInfo& t : *tensors) {
      if (!names.insert(t.name).second)
        return Error::Corrupt("{}: tensor '{}' is in two shards", path, Printable(t.name));
      out.tensors.push_back(std::move(t));
    }
    for (const std::string& name : promised) {
      if (!names.contains(name))
        return Error::Corrupt("{}: lacks tensor '{}' that the index promises", path,
                              Printable(name));
    }
    out.files.push_back(std::move(file));
  }
  return out;
}

Status WriteSafetensors(const std::string& path, const std::vector<SafetensorsEntry>& tensors,
                        const SafetensorsMetadata& metadata) {
  json header = json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  uint64_t offset = 0;
  for (const SafetensorsEntry& t : tensors) {
    header[t.name] = {{"dtype", std::string(Info(t.dtype).name)},
                      {"shape", t.shape},
                      {"data_offsets", {offset, offset + t.data.size()}}};
    offset += t.data.size();
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // the data starts 8-byte aligned
  const uint64_t size = text.size();
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(reinterpret_cast<const char*>(&size), 8);
  out << text;
  for (const SafetensorsEntry& t : tensors)
    out.write(reinterpret_cast<const char*>(t.data.data()),
              static_cast<std::streamsize>(t.data.size()));
  out.close();
  if (!out) return Error::Io("{}: cannot write", path);
  return Status::Ok();
}

}  // namespace baton
