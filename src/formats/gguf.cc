#include "formats/gguf.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <set>
#include <type_traits>
#include <utility>

#include "formats/lfs_pointer.h"
#include "formats/printable.h"

static_assert(std::endian::native == std::endian::little, "GGUF is read in place");

namespace baton {
namespace {

// Far above any real model, but small enough to be harmless: the largest vocabularies have 262,144
// entries.
constexpr uint64_t kMaxKeyBytes = 1024;
constexpr uint64_t kMaxStringBytes = 16 << 20;
constexpr uint64_t kMaxArrayElements = 8 << 20;
constexpr uint64_t kMaxTotalElements = 32 << 20;
constexpr uint64_t kMaxTensors = 1 << 16;
constexpr uint64_t kMaxKeys = 1 << 16;
constexpr uint64_t kMaxAlignment = 1 << 20;

enum ValueType : uint32_t {
  kUint8,
  kInt8,
  kUint16,
  kInt16,
  kUint32,
  kInt32,
  kFloat32,
  kBool,
  kString,
  kArray,
  kUint64,
  kInt64,
  kFloat64,
};

struct TypeRow {
  uint32_t id;
  DType dtype;
};
constexpr TypeRow kTypes[] = {
    {0, DType::kF32},   {1, DType::kF16},     {30, DType::kBF16},   {2, DType::kQ4_0},
    {3, DType::kQ4_1},  {6, DType::kQ5_0},    {7, DType::kQ5_1},    {8, DType::kQ8_0},
    {10, DType::kQ2_K}, {11, DType::kQ3_K},   {12, DType::kQ4_K},   {13, DType::kQ5_K},
    {14, DType::kQ6_K}, {20, DType::kIQ4_NL}, {23, DType::kIQ4_XS}, {39, DType::kMXFP4},
};

// Names of the types Baton does not read, for the error message only.
std::string_view ForeignTypeName(uint32_t id) {
  switch (id) {
    case 9:
      return "Q8_1";
    case 15:
      return "Q8_K";
    case 16:
      return "IQ2_XXS";
    case 17:
      return "IQ2_XS";
    case 18:
      return "IQ3_XXS";
    case 19:
      return "IQ1_S";
    case 21:
      return "IQ3_S";
    case 22:
      return "IQ2_S";
    case 24:
      return "I8";
    case 25:
      return "I16";
    case 26:
      return "I32";
    case 27:
      return "I64";
    case 28:
      return "F64";
    case 29:
      return "IQ1_M";
    case 34:
      return "TQ1_0";
    case 35:
      return "TQ2_0";
    default:
      return "unknown";
  }
}

Result<DType> TypeOf(uint32_t id, std::string_view tensor) {
  for (const TypeRow& row : kTypes) {
    if (row.id == id) return row.dtype;
  }
  std::string known;
  for (const TypeRow& row : kTypes) known += fmt::format(" {}", Info(row.dtype).name);
  return Error::Unsupported("tensor '{}' has type {} ({}); supported:{}", Printable(tensor), id,
                            ForeignTypeName(id), known)
      .Hint("convert the model to one of these, for example Q4_K or Q8_0");
}

class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  uint64_t pos() const { return pos_; }
  uint64_t left() const { return bytes_.size() - pos_; }

  template <typename T>
  Result<T> Read(std::string_view what) {
    if (left() < sizeof(T)) return Truncated(sizeof(T), what);
    T value;
    std::memcpy(&value, bytes_.data() + pos_, sizeof(T));
    pos_ += sizeof(T);
    return value;
  }

  Result<std::string_view> String(uint64_t max_bytes, std::string_view what) {
    BATON_ASSIGN(const uint64_t size, Read<uint64_t>(what));
    if (size > max_bytes)
      return Error::Corrupt("offset {}: {} of {} bytes, limit {}", pos_ - 8, what, size, max_bytes);
    if (size > left()) return Truncated(size, what);
    std::string_view s(reinterpret_cast<const char*>(bytes_.data() + pos_), size);
    pos_ += size;
    return s;
  }

  Error Truncated(uint64_t need, std::string_view what) const {
    return Error::Corrupt("offset {}: {} needs {} bytes, the file has {} left", pos_, what, need,
                          left())
        .Hint("the file is truncated or damaged; download it again");
  }

 private:
  std::span<const std::byte> bytes_;
  uint64_t pos_ = 0;
};

template <typename T>
Result<MetaValue> ReadInteger(Reader& r, std::string_view what) {
  BATON_ASSIGN(const T v, r.Read<T>(what));
  if (!std::in_range<int64_t>(v)) return Error::Unsupported("{} is {}, above 2^63 - 1", what, v);
  return MetaValue(static_cast<int64_t>(v));
}

template <typename T>
Result<MetaValue> ReadNumbers(Reader& r, uint64_t count, std::string_view what) {
  if (count > r.left() / sizeof(T)) return r.Truncated(count * sizeof(T), what);
  using Wide = std::conditional_t<std::is_floating_point_v<T>, double, int64_t>;
  std::vector<Wide> values;
  values.reserve(count);
  for (uint64_t i = 0; i < count; ++i) {
    BATON_ASSIGN(const T v, r.Read<T>(what));
    if constexpr (std::is_integral_v<T>) {
      if (!std::in_range<int64_t>(v))
        return Error::Unsupported("{} holds {}, above 2^63 - 1", what, v);
    }
    values.push_back(static_cast<Wide>(v));
  }
  return MetaValue(std::move(values));
}

Result<MetaValue> ReadStrings(Reader& r, uint64_t count, std::string_view what) {
  if (count > r.left() / 8) return r.Truncated(count * 8, what);  // each has an 8-byte length
  std::vector<std::string> values;
  values.reserve(count);
  for (uint64_t i = 0; i < count; ++i) {
    BATON_ASSIGN(const std::string_view s, r.String(kMaxStringBytes, what));
    values.emplace_back(s);
  }
  return MetaValue(std::move(values));
}

Result<MetaValue> ReadArray(Reader& r, uint64_t& total_elements, const std::string& what) {
  BATON_ASSIGN(const uint32_t type, r.Read<uint32_t>(what));
  BATON_ASSIGN(const uint64_t count, r.Read<uint64_t>(what));
  if (count > kMaxArrayElements || total_elements + count > kMaxTotalElements)
    return Error::Corrupt("offset {}: {} has {} elements, limit {} in one array and {} in all",
                          r.pos() - 8, what, count, kMaxArrayElements, kMaxTotalElements);
  total_elements += count;
  switch (type) {
    case kUint8:
    case kBool:
      return ReadNumbers<uint8_t>(r, count, what);
    case kInt8:
      return ReadNumbers<int8_t>(r, count, what);
    case kUint16:
      return ReadNumbers<uint16_t>(r, count, what);
    case kInt16:
      return ReadNumbers<int16_t>(r, count, what);
    case kUint32:
      return ReadNumbers<uint32_t>(r, count, what);
    case kInt32:
      return ReadNumbers<int32_t>(r, count, what);
    case kUint64:
      return ReadNumbers<uint64_t>(r, count, what);
    case kInt64:
      return ReadNumbers<int64_t>(r, count, what);
    case kFloat32:
      return ReadNumbers<float>(r, count, what);
    case kFloat64:
      return ReadNumbers<double>(r, count, what);
    case kString:
      return ReadStrings(r, count, what);
    case kArray:
      return Error::Unsupported("offset {}: {} is an array of arrays", r.pos() - 12, what);
    default:
      return Error::Corrupt("offset {}: {} has element type {}, expected 0 to 12", r.pos() - 12,
                            what, type);
  }
}

Result<MetaValue> ReadValue(Reader& r, uint64_t& total_elements, const std::string& what) {
  BATON_ASSIGN(const uint32_t type, r.Read<uint32_t>(what));
  switch (type) {
    case kUint8:
      return ReadInteger<uint8_t>(r, what);
    case kInt8:
      return ReadInteger<int8_t>(r, what);
    case kUint16:
      return ReadInteger<uint16_t>(r, what);
    case kInt16:
      return ReadInteger<int16_t>(r, what);
    case kUint32:
      return ReadInteger<uint32_t>(r, what);
    case kInt32:
      return ReadInteger<int32_t>(r, what);
    case kUint64:
      return ReadInteger<uint64_t>(r, what);
    case kInt64:
      return ReadInteger<int64_t>(r, what);
    case kFloat32: {
      BATON_ASSIGN(const float v, r.Read<float>(what));
      return MetaValue(static_cast<double>(v));
    }
    case kFloat64: {
      BATON_ASSIGN(const double v, r.Read<double>(what));
      return MetaValue(v);
    }
    case kBool: {
      BATON_ASSIGN(const uint8_t v, r.Read<uint8_t>(what));
      return MetaValue(v != 0);
    }
    case kString: {
      BATON_ASSIGN(const std::string_view s, r.String(kMaxStringBytes, what));
      return MetaValue(std::string(s));
    }
    case kArray:
      return ReadArray(r, total_elements, what);
    default:
      return Error::Corrupt("offset {}: {} has type {}, expected 0 to 12", r.pos() - 4, what, type);
  }
}

Status ReadMetadata(Reader& r, uint64_t count, Metadata& metadata) {
  uint64_t total_elements = 0;
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t at = r.pos();
    BATON_ASSIGN(const std::string_view key,
                 r.String(kMaxKeyBytes, fmt::format("metadata key {}", i)));
    if (key.empty()) return Error::Corrupt("offset {}: metadata key {} is empty", at, i);
    const std::string what = fmt::format("metadata key '{}'", Printable(key));
    BATON_ASSIGN(MetaValue value, ReadValue(r, total_elements, what));
    if (!metadata.values.emplace(key, std::move(value)).second)
      return Error::Corrupt("offset {}: {} appears twice", at, what);
  }
  return Status::Ok();
}

// A tensor with its offset in the data section, whose start is not known yet.
struct Placed {
  TensorInfo info;
  uint64_t offset;
};

Result<Placed> ReadTensorInfo(Reader& r, uint64_t index) {
  const uint64_t at = r.pos();
  BATON_ASSIGN(const std::string_view name,
               r.String(kMaxKeyBytes, fmt::format("name of tensor {}", index)));
  if (name.empty()) return Error::Corrupt("offset {}: tensor {} has no name", at, index);
  const std::string what = fmt::format("tensor '{}'", Printable(name));
  BATON_ASSIGN(const uint32_t rank, r.Read<uint32_t>(what));
  if (rank < 1 || rank > 4)
    return Error::Corrupt("offset {}: {} has {} dimensions, expected 1 to 4", r.pos() - 4, what,
                          rank);
  std::vector<int64_t> shape(rank);
  int64_t elements = 1;
  for (uint32_t d = 0; d < rank; ++d) {
    BATON_ASSIGN(const uint64_t n, r.Read<uint64_t>(what));
    // Blocks take more bytes than an eighth of their elements, so 2^48 elements cannot be in any
    // file.
    if (n == 0 || n > (uint64_t{1} << 48) ||
        __builtin_mul_overflow(elements, static_cast<int64_t>(n), &elements) ||
        elements > (int64_t{1} << 48))
      return Error::Corrupt("offset {}: {} has dimension {}, expected 1 to 2^48 elements in all",
                            r.pos() - 8, what, n);
    shape[rank - 1 - d] = static_cast<int64_t>(n);
  }
  BATON_ASSIGN(const uint32_t type, r.Read<uint32_t>(what));
  BATON_ASSIGN(const DType dtype, TypeOf(type, name));
  BATON_ASSIGN(const uint64_t offset, r.Read<uint64_t>(what));
  const int block = Info(dtype).block_elements;
  if (shape.back() % block != 0)
    return Error::Corrupt("{} of type {} has rows of {} values, expected a multiple of {}", what,
                          Info(dtype).name, shape.back(), block);
  Placed placed{.info = {.name = std::string(name), .dtype = dtype, .shape = std::move(shape)},
                .offset = offset};
  placed.info.bytes = BytesOf(dtype, elements);
  return placed;
}

Status PlaceTensors(std::span<const std::byte> bytes, uint64_t data_begin, uint64_t alignment,
                    std::vector<Placed>& placed) {
  const uint64_t data_bytes = data_begin < bytes.size() ? bytes.size() - data_begin : 0;
  std::vector<const Placed*> order;
  for (Placed& p : placed) {
    const std::string what = fmt::format("tensor '{}'", Printable(p.info.name));
    const uint64_t size = static_cast<uint64_t>(p.info.bytes);
    if (p.offset % alignment != 0)
      return Error::Corrupt("{} has offset {}, expected a multiple of {}", what, p.offset,
                            alignment);
    if (p.offset > data_bytes || size > data_bytes - p.offset)
      return Error::Corrupt("{} needs {} bytes at offset {} of the data, which has {}", what, size,
                            p.offset, data_bytes)
          .Hint("the file is truncated or damaged; download it again");
    p.info.data = bytes.data() + data_begin + p.offset;
    order.push_back(&p);
  }
  std::sort(order.begin(), order.end(),
            [](const Placed* a, const Placed* b) { return a->offset < b->offset; });
  for (size_t i = 1; i < order.size(); ++i) {
    if (order[i]->offset < order[i - 1]->offset + static_cast<uint64_t>(order[i - 1]->info.bytes))
      return Error::Corrupt("tensors '{}' and '{}' overlap", Printable(order[i - 1]->info.name),
                            Printable(order[i]->info.name));
  }
  return Status::Ok();
}

// What users take for models, by its first bytes.
constexpr std::pair<std::string_view, std::string_view> kOtherFiles[] = {
    {"lmgg", "a GGML file, GGUF's forerunner"},
    {"fmgg", "a GGML file, GGUF's forerunner"},
    {"tjgg", "a GGML file, GGUF's forerunner"},
    {"algg", "a GGML adapter"},
    {"PK\x03\x04", "a zip archive, such as PyTorch's .bin and .pt files"},
    {"\x80\x02", "a Python pickle, such as PyTorch's old .bin and .pt files"},
    {"\x89HDF", "an HDF5 file"},
    {"\x1f\x8b", "a gzip archive"},
    {"<!DOCTYPE", "a web page, perhaps the answer to a failed download"},
    {"<!doctype", "a web page, perhaps the answer to a failed download"},
    {"<html", "a web page, perhaps the answer to a failed download"}};

Result<int> ReadHeader(Reader& r, std::span<const std::byte> bytes) {
  const std::string_view start(reinterpret_cast<const char*>(bytes.data()),
                               std::min<size_t>(bytes.size(), 64));
  BATON_TRY(RefuseLfsPointer(start, "a GGUF file"));
  for (const auto& [magic, what] : kOtherFiles) {
    if (start.starts_with(magic))
      return Error::Unsupported("expected a GGUF file, got {}", what)
          .Hint("Baton reads GGUF files and folders with config.json and .safetensors files");
  }
  if (!start.starts_with("GGUF"))
    return Error::Corrupt(
               "expected a GGUF file (starting with 'GGUF'), got '{}' and {} bytes in all",
               Printable(start.substr(0, 4)), bytes.size())
        .Hint("Baton reads GGUF files and folders with config.json and .safetensors files");
  BATON_ASSIGN(const uint32_t magic, r.Read<uint32_t>("magic"));
  (void)magic;
  BATON_ASSIGN(const uint32_t version, r.Read<uint32_t>("version"));
  if (version != 2 && version != 3) {
    if (version == 0x02000000 || version == 0x03000000)
      return Error::Unsupported("big-endian GGUF file").Hint("convert it to little-endian");
    return Error::Unsupported("GGUF version {}, supported: 2, 3", version)
        .Hint("convert the model again");
  }
  return static_cast<int>(version);
}

}  // namespace

Result<GgufFile> ParseGguf(std::span<const std::byte> bytes) {
  Reader r(bytes);
  GgufFile file;
  BATON_ASSIGN(file.version, ReadHeader(r, bytes));
  BATON_ASSIGN(const uint64_t tensor_count, r.Read<uint64_t>("tensor count"));
  BATON_ASSIGN(const uint64_t key_count, r.Read<uint64_t>("metadata count"));
  if (tensor_count > kMaxTensors)
    return Error::Corrupt("{} tensors, limit {}", tensor_count, kMaxTensors);
  if (key_count > kMaxKeys)
    return Error::Corrupt("{} metadata keys, limit {}", key_count, kMaxKeys);
  BATON_TRY(ReadMetadata(r, key_count, file.metadata));

  uint64_t alignment = 32;
  if (file.metadata.values.contains("general.alignment")) {
    const int64_t given = file.metadata.Int("general.alignment").value_or(0);
    if (given < 8 || given % 8 != 0 || static_cast<uint64_t>(given) > kMaxAlignment)
      return Error::Corrupt("general.alignment is {}, expected a multiple of 8 up to {}", given,
                            kMaxAlignment);
    alignment = static_cast<uint64_t>(given);
  }
  std::vector<Placed> placed;
  std::set<std::string, std::less<>> names;
  for (uint64_t i = 0; i < tensor_count; ++i) {
    BATON_ASSIGN(Placed p, ReadTensorInfo(r, i));
    if (!names.insert(p.info.name).second)
      return Error::Corrupt("tensor '{}' appears twice", Printable(p.info.name));
    placed.push_back(std::move(p));
  }
  const uint64_t data_begin = (r.pos() + alignment - 1) / alignment * alignment;
  BATON_TRY(PlaceTensors(bytes, data_begin, alignment, placed));
  file.tensors.reserve(placed.size());
  for (Placed& p : placed) file.tensors.push_back(std::move(p.info));
  return file;
}

namespace {
template <typename T>
const T* Get(const Metadata& m, std::string_view key) {
  const auto it = m.values.find(key);
  return it == m.values.end() ? nullptr : std::get_if<T>(&it->second);
}
}  // namespace

std::optional<int64_t> Metadata::Int(std::string_view key) const {
  if (const auto* v = Get<int64_t>(*this, key)) return *v;
  if (const auto* v = Get<bool>(*this, key)) return *v ? 1 : 0;
  return std::nullopt;
}
std::optional<double> Metadata::Float(std::string_view key) const {
  if (const auto* v = Get<double>(*this, key)) return *v;
  if (const auto* v = Get<int64_t>(*this, key)) return static_cast<double>(*v);
  return std::nullopt;
}
std::optional<bool> Metadata::Bool(std::string_view key) const {
  if (const auto* v = Get<bool>(*this, key)) return *v;
  return std::nullopt;
}
const std::string* Metadata::String(std::string_view key) const {
  return Get<std::string>(*this, key);
}
const std::vector<int64_t>* Metadata::Ints(std::string_view key) const {
  return Get<std::vector<int64_t>>(*this, key);
}
const std::vector<double>* Metadata::Floats(std::string_view key) const {
  return Get<std::vector<double>>(*this, key);
}
const std::vector<std::string>* Metadata::Strings(std::string_view key) const {
  return Get<std::vector<std::string>>(*this, key);
}

}  // namespace baton
