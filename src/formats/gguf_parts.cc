#include "formats/gguf_parts.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <set>
#include <utility>

#include "formats/printable.h"

namespace baton {
namespace {

constexpr int64_t kMaxParts = 99999;  // five digits

// The name before "-00001-of-00003.gguf".
std::optional<std::string> StemOf(const std::string& path, int64_t number, int64_t count) {
  const std::string tail = fmt::format("-{:05}-of-{:05}.gguf", number, count);
  if (!path.ends_with(tail)) return std::nullopt;
  return path.substr(0, path.size() - tail.size());
}

struct Part {
  MappedFile file;
  GgufFile gguf;
};

Result<Part> OpenPart(const std::string& path) {
  BATON_ASSIGN(MappedFile file, MappedFile::Open(path));
  Result<GgufFile> gguf = ParseGguf(file.bytes());
  if (!gguf.ok()) return std::move(gguf).error().At(path);
  return Part{std::move(file), std::move(*gguf)};
}

Status AddPart(const std::string& path, Part part, std::set<std::string>& names, GgufModel& model) {
  for (TensorInfo& t : part.gguf.tensors) {
    if (!names.insert(t.name).second)
      return Error::Corrupt("{}: tensor '{}' is in an earlier part too", path, Printable(t.name));
    model.tensors.push_back(std::move(t));
  }
  model.files.push_back(std::move(part.file));
  return Status::Ok();
}

}  // namespace

Result<GgufModel> OpenGgufModel(const std::string& path) {
  BATON_ASSIGN(Part given, OpenPart(path));
  GgufModel model;
  std::set<std::string> names;
  const int64_t count = given.gguf.metadata.Int("split.count").value_or(1);
  if (count <= 1) {
    model.metadata = std::move(given.gguf.metadata);
    BATON_TRY(AddPart(path, std::move(given), names, model));
    return model;
  }
  const int64_t number = given.gguf.metadata.Int("split.no").value_or(-1);
  if (count > kMaxParts || number < 0 || number >= count)
    return Error::Corrupt("{}: split.no is {} of split.count {}, expected 0 to {}", path, number,
                          count, std::min(count, kMaxParts) - 1);
  const std::optional<std::string> stem = StemOf(path, number + 1, count);
  if (!stem)
    return Error::InvalidArgument(
               "{}: part {} of {} of a model, expected a name that ends in "
               "-{:05}-of-{:05}.gguf",
               path, number + 1, count, number + 1, count)
        .Hint("give all parts the names that they were published under");
  int64_t expected = -1;
  for (int64_t i = 0; i < count; ++i) {
    const std::string name = fmt::format("{}-{:05}-of-{:05}.gguf", *stem, i + 1, count);
    Result<Part> part = OpenPart(name);
    if (!part.ok())
      return std::move(part).error().Hint(
          fmt::format("all {} parts of the model must lie in one folder", count));
    const Metadata& m = part->gguf.metadata;
    if (m.Int("split.no") != i || m.Int("split.count") != count)
      return Error::Corrupt("{}: split.no is {} and split.count {}, expected {} and {}", name,
                            m.Int("split.no").value_or(-1), m.Int("split.count").value_or(-1), i,
                            count);
    if (i == 0) {
      expected = m.Int("split.tensors.count").value_or(-1);
      model.metadata = std::move(part->gguf.metadata);
    }
    BATON_TRY(AddPart(name, std::move(*part), names, model));
  }
  if (expected >= 0 && std::ssize(model.tensors) != expected)
    return Error::Corrupt("{}: the {} parts have {} tensors, expected {}", path, count,
                          model.tensors.size(), expected);
  return model;
}

}  // namespace baton
