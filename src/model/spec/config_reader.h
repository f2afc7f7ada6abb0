// Typed, range-checked access to a file's metadata. It records which keys were read: a key that was
// not read may change what the model computes.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "formats/gguf.h"
#include "model/spec/architectures.h"

namespace baton {

// The same fact under its two names; GGUF names follow the architecture's prefix. Empty: that kind
// of file has no such fact.
struct ConfigKey {
  std::string gguf;
  std::string hf;
};

class ConfigReader {
 public:
  ConfigReader(FileKind kind, const Architecture& a, const Metadata& m)
      : kind_(kind), prefix_(std::string(a.gguf_name) + "."), m_(m) {}

  bool gguf() const { return kind_ == FileKind::kGguf; }
  const Metadata& metadata() const { return m_; }
  std::string Name(const ConfigKey& k) const;
  bool Has(const ConfigKey& k) const { return m_.values.contains(Name(k)); }

  // Absent: nullopt. Numbers and booleans may be written as text. Corrupt: a value of another kind.
  Result<std::optional<double>> Float(const ConfigKey& k) const;
  Result<std::optional<bool>> Bool(const ConfigKey& k) const;
  // One value per layer is accepted if all are the same.
  Result<std::optional<int64_t>> Int(const ConfigKey& k, int64_t low, int64_t high) const;
  Result<int64_t> Required(const ConfigKey& k, int64_t low, int64_t high) const;
  Result<double> FloatOr(const ConfigKey& k, double otherwise, double low, double high) const;
  Result<bool> BoolOr(const ConfigKey& k, bool otherwise) const;
  // Absent: null. Corrupt: a value of another kind.
  Result<const std::string*> String(const ConfigKey& k) const;
  Result<const std::vector<std::string>*> Strings(const ConfigKey& k) const;
  // Absent, or of another kind: null.
  const std::vector<int64_t>* Ints(const ConfigKey& k) const;

  // NaN is outside every range.
  static Result<double> InRange(const std::string& name, double v, double low, double high);

  // Keys that begin with this count as read: in this file they change nothing.
  void Pass(const std::string& beginning) const;

  // The keys that were not read. Unsupported: some may change what the model computes; one error
  // lists these. The value: the others.
  Result<std::vector<std::string>> Unread() const;

 private:
  const MetaValue* Find(const ConfigKey& k) const;

  FileKind kind_;
  std::string prefix_;
  const Metadata& m_;
  mutable std::set<std::string, std::less<>> read_;
};

}  // namespace baton
