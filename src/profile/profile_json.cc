// Profiles on disk: the fields of struct Profile under their own names.
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

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

// Reads fields with their kind checked; the first problem is kept.
class Reader {
 public:
  Reader(const json& object, std::string path) : object_(object), path_(std::move(path)) {}

  template <typename T>
  void Get(const char* key, T& to) {
    if (!error_.empty()) return;
    const auto it = object_.find(key);
    if (it == object_.end()) return Fail(key, "is missing");
    try {
      it->get_to(to);
    } catch (const json::exception&) {
      Fail(key, "is of the wrong kind");
    }
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
    for (const auto& t : to) good = good && t.size() == size && Finite(t);
    if (!good) Fail(key, fmt::format("must hold {} lists of {} finite numbers", count, size));
  }
  void List(const char* key, std::vector<float>& to, size_t size) {
    Get(key, to);
    if (to.size() != size || !Finite(to))
      Fail(key, fmt::format("must hold {} finite numbers", size));
  }
  Status status() const {
    if (error_.empty()) return Status::Ok();
    return Error::Corrupt("{}: not a usable profile: {}", path_, error_)
        .Hint("make it again with baton profile");
  }

 private:
  static bool Finite(const std::vector<float>& numbers) {
    return std::all_of(numbers.begin(), numbers.end(), [](float x) { return std::isfinite(x); });
  }
  const json& object_;
  std::string path_, error_;
};

void ReadOptions(Reader& r, ProfileOptions& o) {
  r.Get("texts", o.texts);
  r.Get("context", o.context);
  r.Get("probes", o.probes);
  r.Get("seed", o.seed);
  r.Get("budgets", o.budgets);
  r.Get("windows", o.windows);
  r.Get("sink", o.sink);
  r.Get("recent", o.recent);
  r.Get("block", o.block);
  std::string scope, pool;
  r.Get("scope", scope);
  r.Get("pool", pool);
  o.scope = scope == "group" ? Scope::kGroup : Scope::kAll;
  o.pool = pool == "max" ? Pool::kMax : Pool::kSum;
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
  r.Get("layers", p.layers);
  r.Get("heads", p.heads);
  r.Get("kv_heads", p.kv_heads);
  r.Get("head_dim", p.head_dim);
  r.Get("model_window", p.model_window);
  BATON_TRY(r.status());
  if (p.layers < 1 || p.layers > 1024 || p.model_window.size() != static_cast<size_t>(p.layers)) {
    r.Fail("layers", "must be between 1 and 1024 and match model_window");
  }
  if (const json* options = r.Object("options")) {
    Reader o(*options, path);
    ReadOptions(o, p.options);
    BATON_TRY(o.status());
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
