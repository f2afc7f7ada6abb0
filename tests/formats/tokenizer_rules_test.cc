// Rules of tokenizers beyond merging: added tokens, normal forms, patterns, files beside
// tokenizer.json, and time.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "formats/bpe_split.h"
#include "formats/normalizer.h"
#include "formats/printable.h"
#include "formats/split_pattern.h"
#include "formats/tokenizer.h"
#include "formats/tokenizer_spec.h"

namespace baton {
namespace {

using Ids = std::vector<int32_t>;
using Words = std::vector<std::string_view>;

Words SplitBy(const SplitRule& rule, std::string_view text) {
  const auto splitter = WordSplitter::Make({rule});
  EXPECT_TRUE(splitter.ok()) << splitter.error().ToString();
  return splitter.ok() ? splitter->Split(text) : Words{};
}

TEST(Patterns, OnigurumaIsTranslated) {
  EXPECT_EQ(SplitBy({"[a-z&&[^l]]+"}, "hello"), (Words{"he", "ll", "o"}));
  EXPECT_EQ(SplitBy({"[^a-z&&[^x]]+"}, "abx12"), (Words{"ab", "x12"}));
  EXPECT_EQ(SplitBy({R"(\h+)"}, "beg face"), (Words{"be", "g ", "face"}));
  EXPECT_EQ(SplitBy({"[a[0-9]]+"}, "a1b2"), (Words{"a1", "b", "2"}));
  EXPECT_EQ(SplitBy({"x{2}+"}, "xxxxx"), (Words{"xxxx", "x"}));  // repeats, is not possessive
  EXPECT_EQ(SplitBy({R"([^\S\n]+)"}, "a \n b"), (Words{"a", " ", "\n", " ", "b"}));
  EXPECT_EQ(SplitBy({R"(\s+$)"}, "a  \nb  "), (Words{"a", "  ", "\nb", "  "}));
  EXPECT_EQ(SplitBy({R"((?i)'s|x)"}, "it'S X"), (Words{"it", "'S", " ", "X"}));
  EXPECT_EQ(SplitBy({R"([\u4E00-\u9FA5]+)"}, "a\u4E16\u754Cb"), (Words{"a", "\u4E16\u754C", "b"}));
  // Empty matches cut as well.
  EXPECT_EQ(SplitBy({R"((?=b))"}, "abab"), (Words{"a", "ba", "b"}));
  for (const char* bad : {"(", "a)", "[a", "[a&&", R"(\1)", R"(\K)", R"(\G)", "*", "(?<n>a)",
                          "(?x)a", R"(\p{Nonesuch})", "[z-a]", "a\\", R"(\xFF)", "(?~a)", "\xFF"}) {
    const auto made = WordSplitter::Make({{bad}});
    ASSERT_FALSE(made.ok()) << bad;
    EXPECT_EQ(made.error().code(), Error::Code::kUnsupported) << bad;
  }
}

TEST(Patterns, MatchesAreKeptRemovedOrMerged) {
  using B = SplitRule::Behavior;
  const std::string text = "a--b-";
  EXPECT_EQ(SplitBy({"-", B::kIsolated}, text), (Words{"a", "-", "-", "b", "-"}));
  EXPECT_EQ(SplitBy({"-", B::kRemoved}, text), (Words{"a", "b"}));
  EXPECT_EQ(SplitBy({"-", B::kRemoved, true}, text), (Words{"-", "-", "-"}));
  EXPECT_EQ(SplitBy({"-", B::kMergedWithPrevious}, text), (Words{"a-", "-", "b-"}));
  EXPECT_EQ(SplitBy({"-", B::kMergedWithNext}, text), (Words{"a", "-", "-b", "-"}));
  EXPECT_EQ(SplitBy({"-", B::kContiguous}, text), (Words{"a", "--", "b", "-"}));
}

// Texts that would exceed the test's time limit if splitting were quadratic, or limited by steps.
TEST(Time, RunsOfOneClassAreLinearForEveryPreTokenizer) {
  std::string last;
  for (const std::string& name : PreTokenizerNames()) {
    const auto pre = PreTokenizerOf(name);
    ASSERT_TRUE(pre.ok());
    std::string patterns;
    for (const SplitRule& r : pre->rules) patterns += r.pattern + "\n";
    if (patterns == last) continue;
    last = patterns;
    const auto splitter = WordSplitter::Make(pre->rules);
    ASSERT_TRUE(splitter.ok()) << name << ": " << splitter.error().ToString();
    for (const char* unit : {" ", "\n", "a", "A", "1", "-", "\u4E00", "\u0301", "\u3000", " \n"}) {
      std::string text = "x";
      while (text.size() < 150000) text += unit;
      text += "1";
      size_t bytes = 0;
      for (std::string_view word : splitter->Split(text)) bytes += word.size();
      ASSERT_EQ(bytes, text.size()) << name;
    }
  }
}

TEST(Time, AMillionSpacesAreOneWord) {
  const auto pre = PreTokenizerOf("qwen2");
  const auto splitter = WordSplitter::Make(pre->rules);
  ASSERT_TRUE(splitter.ok());
  for (const size_t n : {size_t{1000800}, size_t{3000000}}) {
    const std::string text = "a" + std::string(n + 1, ' ') + "b";
    const Words words = splitter->Split(text);
    ASSERT_EQ(words.size(), 3u);
    EXPECT_EQ(words[1].size(), n);
  }
}

TEST(Time, HostilePatternsGiveUp) {
  for (const char* pattern : {"(a+)+$", "(a|aa)+b", "(a*)*c|(a?){40}d"}) {
    const auto slow = WordSplitter::Make({{pattern}});
    ASSERT_TRUE(slow.ok()) << slow.error().ToString();
    const std::string text = std::string(100000, 'a') + "!";
    size_t bytes = 0;
    for (std::string_view word : slow->Split(text)) bytes += word.size();
    EXPECT_EQ(bytes, text.size());
  }
}

TEST(Normal, FormsAreUnicodes) {
  EXPECT_EQ(Normalize("cafe\u0301", NormalForm::kNfc), "caf\u00E9");
  EXPECT_EQ(Normalize("caf\u00E9", NormalForm::kNfd), "cafe\u0301");
  EXPECT_EQ(Normalize("\uFB01\u00B2", NormalForm::kNfkc), "fi2");
  EXPECT_EQ(Normalize("\u1100\u1161\u11A8", NormalForm::kNfc), "\uAC01");
  EXPECT_EQ(Normalize("q\u0307\u0323", NormalForm::kNfc), "q\u0323\u0307");
  EXPECT_EQ(Normalize("e\xFF\u0301", NormalForm::kNfc), "e\xFF\u0301");  // not UTF-8
  // Marks in descending classes: a sort that compares neighbours would be quadratic.
  std::string marks = "a";
  for (int i = 0; i < 300000; ++i) marks += i % 2 ? "\u0316" : "\u0301";
  EXPECT_EQ(Normalize(marks, NormalForm::kNfc).size(), marks.size() - 1);
}

// The bytes and some tokens; `added` are objects of added_tokens.
std::string Json(const std::string& added, const std::string& more = R"("normalizer": null)") {
  nlohmann::json vocab = nlohmann::json::object();
  int id = 0;
  for (char c = 'a'; c <= 'z'; ++c) vocab[std::string(1, c)] = id++;               // 0 to 25
  for (const char* t : {"\u0120", "<", ">", "\u00C3", "\u00A9"}) vocab[t] = id++;  // 26 to 30
  return fmt::format(R"({{"added_tokens": [{}], {}, "pre_tokenizer": {{"type": "ByteLevel",
    "add_prefix_space": false}}, "model": {{"type": "BPE", "vocab": {}, "merges": []}}}})",
                     added, more, vocab.dump());
}

Tokenizer Make(const std::string& json) {
  const auto spec = SpecFromJson(json);
  EXPECT_TRUE(spec.ok()) << spec.error().ToString();
  auto made = Tokenizer::FromSpec(*spec);
  EXPECT_TRUE(made.ok()) << made.error().ToString();
  return std::move(made).value();
}

TEST(Added, FlagsSayWhatTheyTakeAndWhereTheyStand) {
  const auto with = [](const char* flag) {
    return Make(Json(fmt::format(R"({{"id": 40, "content": "<x>", "{}": true}})", flag)));
  };
  EXPECT_EQ(with("lstrip").Encode("a  <x> b"), (Ids{0, 40, 26, 1}));
  EXPECT_EQ(with("rstrip").Encode("a <x> \n b"), (Ids{0, 26, 40, 1}));
  EXPECT_EQ(with("single_word").Encode("a<x>b"), (Ids{0, 27, 23, 28, 1}));
  EXPECT_EQ(with("single_word").Encode("<x> b"), (Ids{40, 26, 1}));
}

TEST(Added, NormalisedTokensAreFoundInNormalisedText) {
  const Tokenizer t = Make(Json(R"({"id": 40, "content": "e\u0301", "normalized": true},
                                   {"id": 41, "content": "z\u0301", "normalized": false})",
                                R"("normalizer": {"type": "NFC"})"));
  EXPECT_EQ(t.Encode("e\u0301"), Ids{40});
  EXPECT_EQ(t.Encode("\u00E9"), Ids{40});
  EXPECT_EQ(t.Encode("z\u0301"), Ids{41});
  EXPECT_EQ(t.Encode("\u017A"), Ids{});  // composed: other text, whose bytes this vocabulary lacks
}

TEST(Bos, IsNotDoubled) {
  TokenizerSpec spec = *SpecFromJson(Json(R"({"id": 40, "content": "<s>", "special": true})"));
  spec.bos = 40;
  spec.adds_bos = true;
  const auto t = Tokenizer::FromSpec(spec);
  ASSERT_TRUE(t.ok());
  EXPECT_EQ(t->Encode("<s>a", {.bos = true, .special = true}), (Ids{40, 0}));
  EXPECT_EQ(t->Encode("a", {.bos = true, .special = true}), (Ids{40, 0}));
  EXPECT_EQ(t->Encode("<s>", {.bos = true}), (Ids{40, 27, 18, 28}));  // plain text is no BOS
}

TEST(Gguf, AMissingPreTokenizerIsNoted) {
  Metadata m;
  m.values["tokenizer.ggml.model"] = std::string("gpt2");
  m.values["tokenizer.ggml.tokens"] = std::vector<std::string>{"a", "b"};
  m.values["tokenizer.ggml.merges"] = std::vector<std::string>{};
  const auto notes = [&] {
    const auto t = Tokenizer::FromGguf(m);
    EXPECT_TRUE(t.ok()) << t.error().ToString();
    return t.ok() ? t->notes() : std::vector<std::string>{};
  };
  ASSERT_EQ(notes().size(), 1u);
  EXPECT_NE(notes()[0].find("tokenizer.ggml.pre is missing"), std::string::npos);
  m.values["tokenizer.ggml.pre"] = std::string("default");
  EXPECT_EQ(notes().size(), 1u);
  for (const std::string& name : PreTokenizerNames()) {
    m.values["tokenizer.ggml.pre"] = name;
    EXPECT_EQ(notes().size(), name == "default" ? 1u : 0u) << name;
  }
}

TEST(Gguf, IdsAndFlagsMayBeText) {
  Metadata m;
  m.values["tokenizer.ggml.model"] = std::string("gpt2");
  m.values["tokenizer.ggml.pre"] = std::string("gpt-2");
  m.values["tokenizer.ggml.tokens"] = std::vector<std::string>{"a", "b"};
  m.values["tokenizer.ggml.merges"] = std::vector<std::string>{};
  m.values["tokenizer.ggml.bos_token_id"] = std::string("1");
  m.values["tokenizer.ggml.eos_token_id"] = std::string("0");
  m.values["tokenizer.ggml.add_bos_token"] = std::string("true");
  const auto t = Tokenizer::FromGguf(m);
  ASSERT_TRUE(t.ok()) << t.error().ToString();
  EXPECT_TRUE(t->IsEndOfGeneration(0));
  EXPECT_EQ(t->Encode("a", {.bos = true}), (Ids{1, 0}));
  for (const char* id : {"end", "", "1.5", "99999999999999999999"}) {
    m.values["tokenizer.ggml.eos_token_id"] = std::string(id);
    EXPECT_FALSE(Tokenizer::FromGguf(m).ok()) << id;
  }
  m.values["tokenizer.ggml.eos_token_id"] = int64_t{0};
  m.values["tokenizer.ggml.add_bos_token"] = int64_t{2};
  EXPECT_FALSE(Tokenizer::FromGguf(m).ok());
}

class Folder : public testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
  }
  void Write(const char* name, std::string_view text) {
    std::ofstream(path_ + "/" + name, std::ios::binary) << text;
  }
  std::string path_ = testing::TempDir() + "/tokenizer_rules_folder";
};

TEST_F(Folder, TokensWithoutRowsAreLeftOut) {
  Write("tokenizer.json", Json(R"({"id": 31, "content": "<x>"})"));
  const auto whole = Tokenizer::FromFolder(path_), cut = Tokenizer::FromFolder(path_, 31);
  ASSERT_TRUE(whole.ok() && cut.ok());
  EXPECT_EQ(whole->Encode("<x>"), Ids{31});
  EXPECT_EQ(cut->Encode("<x>"), (Ids{27, 23, 28}));
  EXPECT_EQ(cut->vocab_size(), 31);
  ASSERT_EQ(cut->notes().size(), 1u);
  EXPECT_NE(cut->notes()[0].find("<x>"), std::string::npos);
}

std::string Field(int number, const std::string& bytes) {
  return std::string(1, static_cast<char>(number << 3 | 2)) + static_cast<char>(bytes.size()) +
         bytes;
}

TEST_F(Folder, AddedTokensJsonCounts) {
  const std::string score = std::string("\x15\0\0\0\0", 5);
  std::string model;
  for (const auto& [text, type] : {std::pair("<unk>", 2), {"<s>", 3}, {"</s>", 3}, {"h", 1}})
    model += Field(1, Field(1, text) + score + "\x18" + static_cast<char>(type));
  model += Field(2, "\x18\x02") + Field(3, std::string("\x18\0\x20\0", 4));
  Write("tokenizer.model", model);
  Write("added_tokens.json", R"({"<|im_end|>": 5, "<|im_start|>": 4, "<tool>": 6})");
  Write("special_tokens_map.json", R"({"additional_special_tokens": ["<|im_start|>"],
                                       "eos_token": {"content": "</s>"}})");
  const auto t = Tokenizer::FromFolder(path_);
  ASSERT_TRUE(t.ok()) << t.error().ToString();
  EXPECT_EQ(t->Encode("<|im_start|>h<tool><|im_end|>", {.special = true}), (Ids{4, 3, 6, 5}));
  EXPECT_TRUE(t->IsControl(4));
  EXPECT_TRUE(t->IsEndOfGeneration(5));
  EXPECT_FALSE(t->IsControl(6));
  Write("added_tokens.json", R"({"<a>": "4"})");
  EXPECT_FALSE(Tokenizer::FromFolder(path_).ok());
  Write("added_tokens.json", R"({"<a>": 4000000})");
  EXPECT_FALSE(Tokenizer::FromFolder(path_).ok());
}

TEST(Displayable, NothingThatATerminalObeysIsLeft) {
  EXPECT_EQ(Displayable("a\x1b]0;owned\x07"), "a\\x1b]0;owned\\x07");
  EXPECT_EQ(Displayable("Müller 世界"), "Müller 世界");
  EXPECT_EQ(Displayable("\u009b2J\u202Ex\n\xFF"), "\\xc2\\x9b2J\\xe2\\x80\\xaex\\x0a\\xff");
}

}  // namespace
}  // namespace baton
