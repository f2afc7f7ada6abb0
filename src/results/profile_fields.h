// The fields of a profile (include/baton/profile.h), under their own names.
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "baton/profile.h"
#include "results/fields.h"

namespace baton::results {

void Fields(auto& v, SplitInfo& s) {
  v("name", s.name);
  v("context", s.context);
  v("text_tokens", s.text_tokens);
  v("scored_positions", s.scored_positions);
  v("probes", s.probes);
  v("probes_dense_finds", s.probes_dense_finds);
}

void Fields(auto& v, ProfileOptions& o) {
  v("texts", o.texts);
  v("context", o.context);
  v("probes", o.probes);
  v("seed", o.seed);
  v("budgets", o.budgets);
  v("windows", o.windows);
  v("sink", o.sink);
  v("recent", o.recent);
  v.Word("scope", o.scope, {"all", "group"});
  v.Word("pool", o.pool, {"sum", "max"});
  v("block", o.block);
}

void Fields(auto& v, KindLoss& k) {
  v("name", k.name);
  v("tokens", k.tokens);
  v("text", k.text);
  v("scan_text", k.scan_text);
  v("price_text", k.price_text);
  v("own_price_text", k.own_price_text);
  v("window_text", k.window_text);
}

void Fields(auto& v, Profile& p) {
  v("model_path", p.model_path);
  v("architecture", p.architecture);
  v("fingerprint", p.fingerprint);
  v("layers", p.layers);
  v("heads", p.heads);
  v("kv_heads", p.kv_heads);
  v("head_dim", p.head_dim);
  v("model_window", p.model_window);
  v.Object("options", [&](auto& options) { Fields(options, p.options); });
  v("text_sha256", p.text_sha256);
  v.NonEmpty("splits", p.splits);
  v("kinds", p.kinds);
  v("seconds", p.seconds);
  const auto n = static_cast<size_t>(std::max(p.layers, 0));
  const size_t budgets = p.options.budgets.size(), windows = p.options.windows.size();
  v.Sized("text", p.text, budgets, n * n);
  v.Sized("answer", p.answer, budgets, n * n);
  v.Sized("worst", p.worst, budgets, n * n);
  v.Sized("scan_text", p.scan_text, budgets, n);
  v.Sized("scan_answer", p.scan_answer, budgets, n);
  v.Sized("overlap", p.overlap, n * n);
  v.Sized("overlap_unforced", p.overlap_unforced, n * n);
  v.Sized("rnmse", p.rnmse, n);
  v.Sized("own_kl", p.own_kl, n);
  v.Sized("price_text", p.price_text, n);
  v.Sized("price_answer", p.price_answer, n);
  v.Sized("own_price_text", p.own_price_text, n);
  v.Sized("own_price_answer", p.own_price_answer, n);
  v.Sized("window_text", p.window_text, windows, n);
  v.Sized("window_answer", p.window_answer, windows, n);
  v.Object("costs", [&](auto& costs) {
    costs("full", p.costs.full);
    costs("select", p.costs.select);
    costs("rest_of_step", p.costs.rest_of_step);
    costs("scan", p.costs.scan);
    costs("reuse", p.costs.reuse);
    costs("window", p.costs.window);
  });
}

// Finds the first list that holds another number of items than the profile calls for.
class SizeCheck {
 public:
  std::string key;              // of that list; empty: none
  size_t held = 0;              // numbers in it
  std::optional<size_t> lists;  // called for: so many lists (none: one plain list)
  size_t numbers = 0;           // of so many numbers

  SizeCheck(const Profile& profile, bool may_be_empty) : may_be_empty_(may_be_empty) {
    Fields(*this, const_cast<Profile&>(profile));
  }
  void operator()(const char*, auto&) {}
  void NonEmpty(const char*, auto&) {}
  void Word(const char*, auto&, std::initializer_list<const char*>) {}
  void Object(const char*, const auto& fields) { fields(*this); }
  void Sized(const char* name, const std::vector<float>& list, size_t wanted) {
    if (list.size() != wanted) Note(name, list.empty(), list.size(), {}, wanted);
  }
  void Sized(const char* name, const std::vector<std::vector<float>>& all, size_t count,
             size_t wanted) {
    bool good = all.size() == count;
    size_t sum = 0;
    for (const auto& list : all) good = good && list.size() == wanted, sum += list.size();
    if (!good) Note(name, all.empty(), sum, count, wanted);
  }

 private:
  void Note(const char* name, bool empty, size_t sum, std::optional<size_t> count, size_t wanted) {
    if (!key.empty() || (empty && may_be_empty_)) return;
    key = name, held = sum, lists = count, numbers = wanted;
  }
  bool may_be_empty_;
};

}  // namespace baton::results
