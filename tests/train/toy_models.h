// Small models of every architecture that is trained, as folders, and what goes into them.
#pragma once

#include <ATen/Parallel.h>

#include <string>
#include <vector>

#include "formats/hf_config.h"
#include "tests/engine/native_test_util.h"
#include "train/trainer.h"

namespace baton::train {

// Toys are too small for threads, which wait for each other where test programs run side by side.
inline const bool kOneThread = [] {
  at::set_num_threads(1);
  return true;
}();

// A folder of random weights, its config as a model file.
inline std::string FolderOf(const SyntheticSpec& spec, const std::string& name) {
  const std::string path = test::Scratch().File(name);
  const Status written = WriteSyntheticFolder(path, spec);
  EXPECT_TRUE(written.ok()) << written.error().ToString();
  return path;
}

inline baton::Checkpoint OpenOrDie(const std::string& path) {
  auto checkpoint = baton::Checkpoint::Open(path);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.error().ToString();
  return std::move(checkpoint).value();
}

// What a toy learns from: ids of a vocabulary of `vocab`, eight to a document.
inline Tensor ToyText(int64_t vocab) {
  auto generator = at::detail::createCPUGenerator(1);
  Tensor text = torch::randint(8, vocab, {4096}, generator, torch::kInt32);
  text.slice(0, 0, text.size(0), 8).fill_(static_cast<int>(kDocumentToken));
  return text;
}

// The architectures' smallest forms with all their parts; windows of 8 see no more than a few
// pairs.
inline std::vector<SyntheticSpec> ToySpecs() {
  std::vector<SyntheticSpec> all;
  const auto add = [&](const std::string& architecture, const std::string& layout) {
    SyntheticSpec s = test::NativeSpec(architecture, layout);
    s.width = 64, s.heads = 2, s.kv_heads = 1, s.head_dim = 32, s.ffn_width = 96;
    s.window = 8, s.smear = true, s.qk_norm = true;
    all.push_back(s);
    return &all.back();
  };
  add("dense", "FF");
  add("dense", "WFW");
  SyntheticSpec* s = add("clsa", "WDD");
  s->exit_layer = 1, s->memory_qk_norm = true;
  s = add("clsa", "WII");
  s->exit_layer = 1, s->top_k = 24, s->index_dim = 16, s->memory_qk_norm = true;
  s = add("hysparse", "FSF");
  s->top_k = 24, s->block = 4, s->scope = Scope::kGroup;
  s = add("hysparse2", "WFCR");
  s->exit_layer = 2, s->top_k = 16, s->recent = 8;
  return all;
}

}  // namespace baton::train
