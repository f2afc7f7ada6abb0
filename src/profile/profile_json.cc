// Profiles on disk: the fields of struct Profile under their own names.
#include <algorithm>
#include <cmath>
#include <concepts>
#include <initializer_list>
#include <limits>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "base/atomic_file.h"
#include "baton/profile.h"
#include "profile/corpus.h"

namespace baton {
namespace {

using nlohmann::json;

json Numbers(const std::vector<std::vector<float>>& tables) {
  json out = json::array();
  for (const auto& t : tables) out.push_back(t);
  return out;
}

// Each returns whether the value is one of T. The library's own conversions would take 1.5 for an
// integer and let a number out of range become any other.
template <std::integral T>
bool Read(const json& value, T& to) {
  if (!value.is_number_integer()) return false;
  const bool fits = value.is_number_unsigned() ? std::in_range<T>(value.get<uint64_t>())
                                               : std::in_range<T>(value.get<int64_t>());
  if (fits) to = value.get<T>();
  return fits;
}
template <std::floating_point T>
bool Read(const json& value, T& to) {
  if (!value.is_number()) return false;
  const auto number = value.get<double>();
  if (!(std::abs(number) <= std::numeric_limits<T>::max())) return false;
  to = static_cast<T>(number);
  return true;
}
bool Read(const json& value, std::string& to) {
  if (!value.is_string()) return false;
  to = value.get<std::string>();
  return true;
}
template <typename T>
bool Read(const json& value, std::vector<T>& to) {
  if (!value.is_array()) return false;
  to.resize(value.size());
  for (size_t i = 0; i < to.size(); ++i)
    if (!Read(value[i], to[i])) return false;
  return true;
}

// Reads the fields of one object; the first problem is kept.
class Reader {
 public:
  Reader(const json& object, std::string path) : object_(object), path_(std::move(path)) {}

  template <typename T>
  void Get(const char* key, T& to) {
    if (!error_.empty()) return;
    const auto it = object_.find(key);
    if (it == object_.end()) return Fail(key, "is missing");
    if (!Read(*it, to)) Fail(key, "is of the wrong kind, or a number in it is out of range");
  }
  void Count(const char* key, std::integral auto& to) {
    Get(key, to);
    if (to < 1) Fail(key, "must be at least 1");
  }
  // The index in `names` of the word under `key`.
  int Word(const char* key, std::initializer_list<std::string_view> names) {
    std::string word;
    Get(key, word);
    const auto it = std::find(names.begin(), names.end(), word);
    if (it == names.end()) Fail(key, fmt::format("must be one of: {}", fmt::join(names, ", ")));
    return it == names.end() ? 0 : static_cast<int>(it - names.begin());
  }
  const json* Object(const char* key) {
    const auto it = object_.find(key);
    if (it == object_.end() || !it->is_object()) {
      Fail(key, "must be an object");
      return nullptr;
    }
    return &*it;
  }
  void Fail(const std::string& key, const std::string& what) {
    if (error_.empty()) error_ = fmt::format("\"{}\" {}", key, what);
  }
  void Tables(const char* key, std::vector<std::vector<float>>& to, size_t count, size_t size) {
    Get(key, to);
    bool good = to.size() == count;
    for (const auto& t : to) good = good && t.size() == size;
    if (!good) Fail(key, fmt::format("must hold {} lists of {} numbers", count, size));
  }
  void List(const char* key, std::vector<float>& to, size_t size) {
    Get(key, to);
    if (to.size() != size) Fail(key, fmt::format("must hold {} numbers", size));
  }
  Status status() const {
    if (error_.empty()) return Status::Ok();
    return Error::Corrupt("{}: not a usable profile: {}", path_, error_)
        .Hint("make it again with baton profile");
  }

 private:
  const json& object_;
  std::string path_, error_;
};

void ReadOptions(Reader& r, ProfileOptions& o) {
  r.Get("texts", o.texts);
  r.Get("context", o.context);
  r.Get("probes", o.probes);
  r.Get("seed", o.seed);
  r.Get("sink", o.sink);
  r.Get("recent", o.recent);
  r.Get("block", o.block);
  r.Get("budgets", o.budgets);
  r.Get("windows", o.windows);
  o.scope = r.Word("scope", {"all", "group"}) == 0 ? Scope::kAll : Scope::kGroup;
  o.pool = r.Word("pool", {"sum", "max"}) == 0 ? Pool::kSum : Pool::kMax;
}

}  // namespace

std::string Profile::ToJson() const {
  const ProfileOptions& o = options;
  json splits_json = json::array();
  for (const SplitInfo& s : splits) {
    splits_json.push_back({{"name", s.name},
                           {"context", s.context},
                           {"text_tokens", s.text_tokens},
                           {"scored_positions", s.scored_positions},
                           {"probes", s.probes},
                           {"probes_dense_finds", s.probes_dense_finds}});
  }
  const json out = {{"format", "baton-profile"},
                    {"version", 1},
                    {"model_path", model_path},
                    {"architecture", architecture},
                    {"fingerprint", fingerprint},
                    {"layers", layers},
                    {"heads", heads},
                    {"kv_heads", kv_heads},
                    {"head_dim", head_dim},
                    {"model_window", model_window},
                    {"options",
                     {{"texts", o.texts},
                      {"context", o.context},
                      {"probes", o.probes},
                      {"seed", o.seed},
                      {"budgets", o.budgets},
                      {"windows", o.windows},
                      {"sink", o.sink},
                      {"recent", o.recent},
                      {"scope", o.scope == Scope::kAll ? "all" : "group"},
                      {"pool", o.pool == Pool::kSum ? "sum" : "max"},
                      {"block", o.block}}},
                    {"text_sha256", text_sha256},
                    {"splits", splits_json},
                    {"text", Numbers(text)},
                    {"answer", Numbers(answer)},
                    {"worst", Numbers(worst)},
                    {"scan_text", Numbers(scan_text)},
                    {"scan_answer", Numbers(scan_answer)},
                    {"overlap", overlap},
                    {"overlap_unforced", overlap_unforced},
                    {"rnmse", rnmse},
                    {"own_kl", own_kl},
                    {"price_text", price_text},
                    {"price_answer", price_answer},
                    {"own_price_text", own_price_text},
                    {"own_price_answer", own_price_answer},
                    {"window_text", Numbers(window_text)},
                    {"window_answer", Numbers(window_answer)},
                    {"costs",
                     {{"full", costs.full},
                      {"select", costs.select},
                      {"rest_of_step", costs.rest_of_step},
                      {"scan", costs.scan},
                      {"reuse", costs.reuse},
                      {"window", costs.window}}},
                    {"seconds", seconds}};
  return out.dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
}

Status Profile::Save(const std::string& path) const { return WriteFileAtomically(path, ToJson()); }

Result<Profile> Profile::Load(const std::string& path) {
  BATON_ASSIGN(std::string text_of_file, ReadText(path));
  return Parse(text_of_file, path);
}

Result<Profile> Profile::Parse(const std::string& text_of_file, const std::string& path) {
  const json in = json::parse(text_of_file, nullptr, false);
  if (!in.is_object() || in.value("format", json()) != json("baton-profile")) {
    return Error::Corrupt("{}: not a baton profile", path)
        .Hint("make one with: baton profile MODEL --text FILE -o profile.json");
  }
  if (in.value("version", json()) != json(1)) {
    return Error::Unsupported("{}: profile version {}, this program reads version 1", path,
                              in.value("version", json()).dump());
  }
  Profile p;
  Reader r(in, path);
  r.Get("model_path", p.model_path);
  r.Get("architecture", p.architecture);
  r.Get("fingerprint", p.fingerprint);
  r.Count("layers", p.layers);
  r.Count("heads", p.heads);
  r.Count("kv_heads", p.kv_heads);
  r.Count("head_dim", p.head_dim);
  r.Get("model_window", p.model_window);
  BATON_TRY(r.status());
  if (p.layers > 1024 || p.model_window.size() != static_cast<size_t>(p.layers)) {
    r.Fail("layers", "must be at most 1024 and match model_window");
  }
  if (const json* options = r.Object("options")) {
    Reader o(*options, path);
    ReadOptions(o, p.options);
    BATON_TRY(o.status());
    const Status good = p.options.Check();
    if (!good.ok()) r.Fail("options", fmt::format("cannot be: {}", good.error().message()));
  }
  BATON_TRY(r.status());
  const auto n = static_cast<size_t>(p.layers);
  const size_t budgets = p.options.budgets.size(), windows = p.options.windows.size();
  r.Get("text_sha256", p.text_sha256);
  r.Tables("text", p.text, budgets, n * n);
  r.Tables("answer", p.answer, budgets, n * n);
  r.Tables("worst", p.worst, budgets, n * n);
  r.Tables("scan_text", p.scan_text, budgets, n);
  r.Tables("scan_answer", p.scan_answer, budgets, n);
  r.List("overlap", p.overlap, n * n);
  r.List("overlap_unforced", p.overlap_unforced, n * n);
  r.List("rnmse", p.rnmse, n);
  r.List("own_kl", p.own_kl, n);
  r.List("price_text", p.price_text, n);
  r.List("price_answer", p.price_answer, n);
  r.List("own_price_text", p.own_price_text, n);
  r.List("own_price_answer", p.own_price_answer, n);
  r.Tables("window_text", p.window_text, windows, n);
  r.Tables("window_answer", p.window_answer, windows, n);
  r.Get("seconds", p.seconds);
  if (const json* costs = r.Object("costs")) {
    Reader c(*costs, path);
    c.Get("full", p.costs.full);
    c.Get("select", p.costs.select);
    c.Get("rest_of_step", p.costs.rest_of_step);
    c.Get("scan", p.costs.scan);
    c.Get("reuse", p.costs.reuse);
    c.Get("window", p.costs.window);
    BATON_TRY(c.status());
    if (p.costs.scan.size() != budgets || p.costs.reuse.size() != budgets ||
        p.costs.window.size() != windows) {
      r.Fail("costs", "must have one number per budget and window");
    }
  }
  if (const auto it = in.find("splits"); it != in.end() && it->is_array()) {
    for (const json& s : *it) {
      SplitInfo info;
      Reader sr(s, path);
      sr.Get("name", info.name);
      sr.Get("context", info.context);
      sr.Get("text_tokens", info.text_tokens);
      sr.Get("scored_positions", info.scored_positions);
      sr.Get("probes", info.probes);
      sr.Get("probes_dense_finds", info.probes_dense_finds);
      BATON_TRY(sr.status());
      p.splits.push_back(info);
    }
  }
  BATON_TRY(r.status());
  return p;
}

}  // namespace baton
