// Random texts must give the ids of Hugging Face `tokenizers` (tests/golden/README.md); the long
// comparison is scripts/fuzz-tokenizers.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "formats/bpe_split.h"
#include "formats/gguf.h"
#include "formats/tokenizer.h"

namespace baton {
namespace {

using Json = nlohmann::json;
const std::string kGolden = "tests/golden/tokenizers/";

std::vector<Json> Lines(const std::string& path) {
  std::vector<Json> lines;
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) lines.push_back(Json::parse(line));
  return lines;
}

void ExpectSameIds(const Tokenizer& tokenizer, const std::string& kind) {
  const std::vector<Json> cases = Lines(kGolden + kind + "/cases.jsonl");
  EXPECT_GE(cases.size(), 60u) << kind;
  for (const Json& c : cases) {
    EXPECT_EQ(tokenizer.Encode(c[0].get<std::string>(), {.special = true}),
              c[1].get<std::vector<int32_t>>())
        << kind << ": " << c[0];
  }
}

TEST(HuggingFace, FoldersOfEveryKindGiveTheSameIds) {
  int kinds = 0;
  for (const auto& entry : std::filesystem::directory_iterator(kGolden)) {
    if (!std::filesystem::exists(entry.path() / "tokenizer.json")) continue;
    const auto tokenizer = Tokenizer::FromFolder(entry.path());
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().ToString();
    ExpectSameIds(*tokenizer, entry.path().filename());
    ++kinds;
  }
  EXPECT_GE(kinds, 16);
}

TEST(HuggingFace, GgufFilesGiveTheSameIds) {
  const std::map<std::string, std::string> files = {
      {"smollm2", "models/SmolLM2-135M-Instruct.Q4_1.gguf"},
      {"gemma3", "models/gemma-3-270m-q4_k_m.gguf"}};
  int found = 0;
  for (const auto& [kind, path] : files) {
    const auto file = MappedFile::Open(path);
    if (!file.ok()) continue;
    const auto gguf = ParseGguf(file->bytes());
    ASSERT_TRUE(gguf.ok()) << gguf.error().ToString();
    const auto tokenizer = Tokenizer::FromGguf(gguf->metadata);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().ToString();
    ExpectSameIds(*tokenizer, kind);
    ++found;
  }
  if (found == 0) GTEST_SKIP() << "needs a model: scripts/get-model smollm2 gemma3";
}

TEST(HuggingFace, PreTokenizersOfGgufGiveTheSameWords) {
  std::map<std::string, std::optional<WordSplitter>> splitters;
  for (const Json& c : Lines(kGolden + "words.jsonl")) {
    const std::string name = c[0], text = c[1];
    std::optional<WordSplitter>& splitter = splitters[name];
    if (!splitter) {
      const auto pre = PreTokenizerOf(name);
      ASSERT_TRUE(pre.ok()) << pre.error().ToString();
      auto made = WordSplitter::Make(pre->rules);
      ASSERT_TRUE(made.ok()) << name << ": " << made.error().ToString();
      splitter.emplace(std::move(*made));
    }
    std::vector<std::string> words;
    for (std::string_view word : splitter->Split(text)) words.emplace_back(word);
    EXPECT_EQ(words, c[2].get<std::vector<std::string>>()) << name << ": " << c[1];
  }
  EXPECT_GE(splitters.size(), 20u);
}

}  // namespace
}  // namespace baton
