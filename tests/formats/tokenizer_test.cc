#include "formats/tokenizer.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "formats/bpe_split.h"
#include "formats/tokenizer_spec.h"
#include "formats/unicode.h"

namespace baton {
namespace {

std::string ReadAll(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

class SmolLm2 : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    const std::string file = ReadAll("models/SmolLM2-135M-Instruct.Q4_1.gguf");
    if (file.empty()) return;
    const auto gguf = ParseGguf(std::as_bytes(std::span(file)));
    ASSERT_TRUE(gguf.ok()) << gguf.error().ToString();
    auto made = Tokenizer::FromGguf(gguf->metadata);
    ASSERT_TRUE(made.ok()) << made.error().ToString();
    tokenizer_ = new Tokenizer(std::move(made).value());
  }
  static void TearDownTestSuite() { delete tokenizer_; }
  void SetUp() override {
    if (tokenizer_ == nullptr) {
      GTEST_SKIP() << "needs models/SmolLM2-135M-Instruct.Q4_1.gguf: scripts/get-model smollm2";
    }
  }
  static Tokenizer* tokenizer_;
};
Tokenizer* SmolLm2::tokenizer_ = nullptr;

TEST_F(SmolLm2, PromptsHaveTheGoldenIds) {
  const auto golden = nlohmann::json::parse(ReadAll("tests/golden/smollm2-135m-q4_1.json"));
  for (const auto& prompt : golden["prompts"]) {
    const std::string text = prompt["text"];
    const std::vector<int32_t> want = prompt["ids"];
    EXPECT_EQ(tokenizer_->Encode(text, {.bos = true, .special = true}), want) << text;
    EXPECT_EQ(tokenizer_->Decode(want, true), text);
    const std::vector<int32_t> greedy = prompt["greedy16"];
    EXPECT_EQ(tokenizer_->Decode(greedy), prompt["greedy_text"].get<std::string>());
  }
}

TEST_F(SmolLm2, LicenceHasTheGoldenIds) {
  const std::string text = ReadAll("/usr/share/common-licenses/GPL-3");
  const auto golden = nlohmann::json::parse(ReadAll("tests/golden/smollm2-135m-q4_1.json"))["gpl3"];
  if (text.size() != golden["chars"]) GTEST_SKIP() << "needs Debian's common-licenses/GPL-3";
  const std::vector<int32_t> ids = tokenizer_->Encode(text);
  ASSERT_EQ(ids.size(), golden["tokens"]);
  EXPECT_EQ(std::vector(ids.begin(), ids.begin() + 32), golden["first32"].get<std::vector<int>>());
  EXPECT_EQ(std::vector(ids.end() - 8, ids.end()), golden["last8"].get<std::vector<int>>());
  EXPECT_EQ(tokenizer_->Decode(ids), text);
}

TEST_F(SmolLm2, KnowsItsControlTokens) {
  EXPECT_EQ(tokenizer_->vocab_size(), 49152);
  EXPECT_FALSE(tokenizer_->adds_bos());
  EXPECT_TRUE(tokenizer_->IsEndOfGeneration(2));  // <|im_end|>
  EXPECT_TRUE(tokenizer_->IsEndOfGeneration(0));  // <|endoftext|>
  EXPECT_FALSE(tokenizer_->IsEndOfGeneration(1));
  EXPECT_EQ(tokenizer_->Bytes(2), "");
  EXPECT_EQ(tokenizer_->Bytes(2, true), "<|im_end|>");
  EXPECT_EQ(tokenizer_->Bytes(-1), "");
  EXPECT_EQ(tokenizer_->Bytes(49152), "");
  // Encoded as plain text it stays plain text.
  const std::vector<int32_t> ids = tokenizer_->Encode("<|im_end|>");
  EXPECT_GT(ids.size(), 1u);
  EXPECT_EQ(tokenizer_->Decode(ids), "<|im_end|>");
}

TEST_F(SmolLm2, AnyUnicodeTextComesBack) {
  EXPECT_TRUE(rc::check("round trip", [&](const std::vector<uint32_t>& codes) {
    std::string text;
    for (uint32_t c : codes) {
      c %= 0x110000;
      // This vocabulary has no token for some control bytes and for lead bytes of planes 4 to 15.
      if (c < 0x20 || (c >= 0xD800 && c < 0xE000) || c >= 0x40000) c = 'a' + c % 26;
      AppendUtf8(text, c);
    }
    RC_ASSERT(tokenizer_->Decode(tokenizer_->Encode(text)) == text);
  }));
}

// A byte-level vocabulary of all 256 bytes, ids in byte order, then a few merges.
std::string Spelt(unsigned char byte) {
  static const std::vector<std::string> kSpelling = [] {
    std::vector<std::string> spelling(256);
    for (char32_t code = 0; code < 324; ++code) {
      std::string text;
      AppendUtf8(text, code);
      const std::string bytes = ByteLevelBytes(text);
      // A character outside the alphabet stands for itself: more than one byte, or not printable.
      if (bytes.size() == 1 && code >= 33) spelling[static_cast<unsigned char>(bytes[0])] = text;
    }
    return spelling;
  }();
  return kSpelling[byte];
}

TokenizerSpec ByteSpec() {
  TokenizerSpec spec;
  for (int b = 0; b < 256; ++b) spec.tokens.push_back({.text = Spelt(b)});
  for (const auto& [a, b] : std::vector<std::pair<std::string, std::string>>{
           {"l", "o"}, {"lo", "w"}, {"e", "r"}, {Spelt(' '), "low"}, {"a", "a"}, {"aa", "aa"}}) {
    spec.merges.emplace_back(a, b);
    spec.tokens.push_back({.text = a + b});
  }
  spec.tokens.push_back({.text = "<|end|>", .type = TokenType::kControl});       // 262
  spec.tokens.push_back({.text = "<u>", .type = TokenType::kUserDefined});       // 263
  spec.tokens.push_back({.text = "<u> long", .type = TokenType::kUserDefined});  // 264
  spec.rules = PreTokenizerOf("gpt-2")->rules;
  return spec;
}

// Pieces with scores; `prefix` as Llama 2.
TokenizerSpec PieceSpec(TokenizerSpec::Prefix prefix = TokenizerSpec::Prefix::kNone) {
  TokenizerSpec spec;
  spec.kind = TokenizerSpec::Kind::kPieces;
  spec.by_score = true;
  spec.prefix = prefix;
  spec.unknown = 0;
  spec.bos = 1;
  spec.eos = 2;
  spec.adds_bos = true;
  spec.tokens = {{.text = "<unk>", .type = TokenType::kUnknown},
                 {.text = "<s>", .type = TokenType::kControl},
                 {.text = "</s>", .type = TokenType::kControl}};
  for (int b = 0; b < 256; ++b) {
    spec.tokens.push_back({.text = fmt::format("<0x{:02X}>", b), .type = TokenType::kByte});
  }
  for (const auto& [text, score] :
       std::vector<std::pair<std::string, float>>{{"\u2581", -10},  // 259
                                                  {"a", -11},
                                                  {"b", -12},
                                                  {"c", -13},  // 262
                                                  {"ab", -2},
                                                  {"bc", -1},
                                                  {"\u2581a", -3},  // 265
                                                  {"aa", -4}}) {
    spec.tokens.push_back({.text = text, .score = score});
  }
  return spec;
}

Tokenizer Make(const TokenizerSpec& spec) {
  auto made = Tokenizer::FromSpec(spec);
  EXPECT_TRUE(made.ok()) << made.error().ToString();
  return std::move(made).value();
}

using Ids = std::vector<int32_t>;

TEST(ByteLevel, MergesByRankInsideWords) {
  const Tokenizer t = Make(ByteSpec());
  EXPECT_EQ(t.Encode("lower low"), (Ids{257, 258, 259}));
  EXPECT_EQ(t.Encode("aaaaaaa"), (Ids{261, 260, 'a'}));  // leftmost first
  EXPECT_EQ(t.Encode(""), Ids{});
}

TEST(ByteLevel, AnyBytesComeBack) {
  const Tokenizer t = Make(ByteSpec());
  EXPECT_TRUE(rc::check("round trip", [&](const std::string& bytes, bool special) {
    RC_ASSERT(t.Decode(t.Encode(bytes, {.special = special}), true) == bytes);
  }));
  std::string all;
  for (int b = 0; b < 256; ++b) all += static_cast<char>(b);
  EXPECT_EQ(t.Decode(t.Encode(all)), all);
}

TEST(ByteLevel, LongWordsTakeLinearithmicTime) {
  const Tokenizer t = Make(ByteSpec());
  const std::string word(1 << 20, 'a');
  EXPECT_EQ(t.Encode(word).size(), word.size() / 4);
}

TEST(Special, ControlTokensOnlyWhenAskedUserDefinedAlways) {
  const Tokenizer t = Make(ByteSpec());
  EXPECT_EQ(t.Encode("<u> long<u><|end|>", {.special = true}), (Ids{264, 263, 262}));
  EXPECT_EQ(t.Encode("<u><|end|>").size(), 1 + 7u);
  EXPECT_TRUE(t.IsEndOfGeneration(262));
  EXPECT_TRUE(t.IsControl(262));
  EXPECT_FALSE(t.IsControl(263));
  EXPECT_EQ(t.Decode(Ids{263, 262}), "<u>");
}

TEST(Pieces, HighestScoreMergesFirst) {
  const Tokenizer t = Make(PieceSpec());
  EXPECT_EQ(t.Encode("abc"), (Ids{260, 264}));
  EXPECT_EQ(t.Encode("ab a"), (Ids{263, 265}));
  EXPECT_EQ(t.Encode("aaa"), (Ids{266, 260}));  // leftmost of equals
  EXPECT_EQ(t.Encode("a\n\xC3\xA9"), (Ids{260, 3 + 0x0A, 3 + 0xC3, 3 + 0xA9}));
  EXPECT_EQ(t.Encode("a", {.bos = true}), (Ids{1, 260}));
  EXPECT_TRUE(t.IsEndOfGeneration(2));
}

TEST(Pieces, SpaceInFrontIsAddedAndTakenAway) {
  const Tokenizer t = Make(PieceSpec(TokenizerSpec::Prefix::kAlways));
  EXPECT_EQ(t.Encode("a", {.bos = true}), (Ids{1, 265}));
  EXPECT_EQ(t.Decode(Ids{1, 265}), "a");
  EXPECT_EQ(t.Encode("a</s>a", {.special = true}), (Ids{265, 2, 265}));
  EXPECT_EQ(t.Decode(Ids{265, 2, 265}, true), "a</s>a");
}

TEST(Pieces, WithoutByteTokensUnknownTextIsTheUnknownToken) {
  TokenizerSpec spec = PieceSpec();
  spec.tokens.erase(spec.tokens.begin() + 3, spec.tokens.begin() + 259);
  EXPECT_EQ(Make(spec).Encode("a?"), (Ids{4, 0}));
}

TEST(Pieces, AnyBytesComeBack) {
  for (auto prefix : {TokenizerSpec::Prefix::kNone, TokenizerSpec::Prefix::kFirst,
                      TokenizerSpec::Prefix::kAlways}) {
    const Tokenizer t = Make(PieceSpec(prefix));
    EXPECT_TRUE(rc::check("round trip", [&](const std::string& bytes) {
      RC_PRE(bytes.find("\u2581") == std::string::npos);  // means a space to these models
      RC_ASSERT(t.Decode(t.Encode(bytes, {.bos = true})) == bytes);
    }));
  }
}

TEST(Special, TheTokenThatOpensCallsIsShownAndNeverReadFromPlainText) {
  TokenizerSpec spec = ByteSpec();
  spec.tokens.push_back({.text = "[TOOL_CALLS]", .type = TokenType::kControl});
  const Tokenizer t = Make(spec);
  const auto id = static_cast<int32_t>(spec.tokens.size()) - 1;
  EXPECT_TRUE(t.IsControl(id));
  EXPECT_EQ(StreamDecoder(t).Push(id), "[TOOL_CALLS]");
  EXPECT_EQ(t.Encode("[TOOL_CALLS]").size(), 12u);
  EXPECT_EQ(t.Encode("[TOOL_CALLS]", {.special = true}), Ids{id});
}

TEST(Stream, EmitsWholeCharactersAndNothingTwice) {
  const Tokenizer t = Make(ByteSpec());
  StreamDecoder stream(t);
  EXPECT_EQ(stream.Push(0xE2), "");
  EXPECT_EQ(stream.Push(0x82), "");
  EXPECT_EQ(stream.Push(0xAC), "\u20AC");
  EXPECT_EQ(stream.Push(0xE2), "");
  EXPECT_EQ(stream.Push('a'), "\uFFFDa");  // known to be invalid only now
  EXPECT_EQ(stream.Push(0x80), "\uFFFD");
  EXPECT_EQ(stream.Push(0xF0), "");
  EXPECT_EQ(stream.Push(262), "");  // control tokens have no text
  EXPECT_EQ(stream.Flush(), "\uFFFD");
  EXPECT_EQ(stream.Flush(), "");
}

TEST(Stream, SumOfPiecesIsTheText) {
  const Tokenizer t = Make(ByteSpec());
  EXPECT_TRUE(rc::check("valid text unchanged", [&](const std::vector<uint16_t>& codes) {
    std::string text;
    for (uint16_t c : codes) AppendUtf8(text, c >= 0xD800 && c < 0xE000 ? 'x' : c);
    StreamDecoder stream(t);
    std::string out;
    for (int32_t id : t.Encode(text)) {
      out += stream.Push(id);
      for (size_t i = 0; i < out.size();) {  // never half a character
        const Utf8Char c = DecodeUtf8(std::string_view(out).substr(i));
        RC_ASSERT(c.kind == Utf8Char::Kind::kValid);
        i += c.length;
      }
    }
    RC_ASSERT(out + stream.Flush() == text);
  }));
}

TEST(Words, TogetherAreTheText) {
  for (const char* name : {"gpt-2", "smollm", "llama-bpe", "qwen2", "tekken"}) {
    const auto splitter = WordSplitter::Make(PreTokenizerOf(name)->rules);
    ASSERT_TRUE(splitter.ok()) << splitter.error().ToString();
    EXPECT_TRUE(rc::check(name, [&](const std::string& bytes) {
      std::string joined;
      for (std::string_view word : splitter->Split(bytes)) joined += word;
      RC_ASSERT(joined == bytes);
    }));
  }
}

TEST(Words, FamiliesDifferInDigitsAndContractions) {
  using Words = std::vector<std::string_view>;
  const auto split = [](const char* name, std::string_view text) {
    return WordSplitter::Make(PreTokenizerOf(name)->rules)->Split(text);
  };
  EXPECT_EQ(split("gpt-2", "It'S 1234  x"), (Words{"It", "'", "S", " 1234", " ", " x"}));
  EXPECT_EQ(split("smollm", "a 123"), (Words{"a", " ", "1", "2", "3"}));
  EXPECT_EQ(split("llama-bpe", "It'S 1234"), (Words{"It", "'S", " ", "123", "4"}));
  EXPECT_EQ(split("qwen2", "It'S 12\n\nx"), (Words{"It", "'S", " ", "1", "2", "\n\n", "x"}));
  EXPECT_EQ(split("tekken", "aBc DEf"), (Words{"a", "Bc", " DEf"}));
}

TEST(Words, HostilePatternsEndAndLoseNothing) {
  const auto slow = WordSplitter::Make({{.pattern = "(a+)+$"}});
  ASSERT_TRUE(slow.ok());
  const std::string text = std::string(40, 'a') + "b";
  std::string joined;
  for (std::string_view word : slow->Split(text)) joined += word;
  EXPECT_EQ(joined, text);
  EXPECT_FALSE(WordSplitter::Make({{.pattern = "("}}).ok());
  EXPECT_FALSE(WordSplitter::Make({{.pattern = R"(\C)"}}).ok());
  EXPECT_TRUE(WordSplitter::Make({{.pattern = "x*|"}}).ok());
}

Metadata SmallGguf() {
  Metadata m;
  m.values["tokenizer.ggml.model"] = std::string("gpt2");
  m.values["tokenizer.ggml.pre"] = std::string("gpt-2");
  m.values["tokenizer.ggml.tokens"] = std::vector<std::string>{"a", "b", "ab", "<|end|>"};
  m.values["tokenizer.ggml.token_type"] = std::vector<int64_t>{1, 1, 1, 3};
  m.values["tokenizer.ggml.merges"] = std::vector<std::string>{"a b"};
  m.values["tokenizer.ggml.bos_token_id"] = int64_t{3};
  m.values["tokenizer.ggml.add_bos_token"] = true;
  return m;
}

TEST(Gguf, KeysAreRead) {
  const auto t = Tokenizer::FromGguf(SmallGguf());
  ASSERT_TRUE(t.ok()) << t.error().ToString();
  EXPECT_EQ(t->Encode("abb", {.bos = true}), (Ids{3, 2, 1}));
}

TEST(Gguf, BadKeysAreErrors) {
  const std::vector<std::pair<std::string, MetaValue>> bad = {
      {"tokenizer.ggml.model", std::string("bert")},
      {"tokenizer.ggml.model", std::string("llama")},  // no scores
      {"tokenizer.ggml.pre", std::string("nonesuch")},
      {"tokenizer.ggml.tokens", std::vector<std::string>{}},
      {"tokenizer.ggml.tokens", int64_t{4}},
      {"tokenizer.ggml.token_type", std::vector<int64_t>{1}},
      {"tokenizer.ggml.token_type", std::vector<int64_t>{1, 1, 1, 7}},
      {"tokenizer.ggml.merges", std::vector<std::string>{"ab"}},
      {"tokenizer.ggml.merges", std::vector<std::string>{""}},
      {"tokenizer.ggml.merges", std::vector<std::string>{"b a"}},
      {"tokenizer.ggml.bos_token_id", int64_t{4}},
      {"tokenizer.ggml.eos_token_id", int64_t{-2}},
  };
  for (const auto& [key, value] : bad) {
    Metadata m = SmallGguf();
    m.values[key] = value;
    const auto t = Tokenizer::FromGguf(m);
    ASSERT_FALSE(t.ok()) << key;
    EXPECT_FALSE(t.error().message().empty());
  }
  Metadata m = SmallGguf();
  m.values["tokenizer.ggml.pre"] = std::string("nonesuch");
  EXPECT_NE(Tokenizer::FromGguf(m).error().message().find("smollm"), std::string::npos);
}

constexpr std::string_view kSmallJson = R"({
  "added_tokens": [{"id": 3, "content": "<s>", "special": true}],
  "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
    {"type": "Digits", "individual_digits": true},
    {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true}]},
  "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}]},
  "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}})";

TEST(Json, FileIsRead) {
  auto spec = SpecFromJson(kSmallJson);
  ASSERT_TRUE(spec.ok()) << spec.error().ToString();
  ASSERT_TRUE(ApplyTokenizerConfig(R"({"eos_token": {"content": "ab"}, "added_tokens_decoder":
      {"5": {"content": "<x>", "special": false}}})",
                                   *spec)
                  .ok());
  const Tokenizer t = Make(*spec);
  EXPECT_EQ(t.Encode("abb<x>", {.bos = true}), (Ids{3, 2, 1, 5}));
  EXPECT_TRUE(t.IsEndOfGeneration(2));
  EXPECT_EQ(t.Bytes(4), "");  // a hole
}

TEST(Json, PiecesByRank) {
  const auto spec = SpecFromJson(R"({
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
      {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
    "model": {"type": "BPE", "byte_fallback": true, "unk_token": "<unk>", "merges": ["▁ a"],
      "vocab": {"<unk>": 0, "<0x0A>": 1, "▁": 2, "a": 3, "▁a": 4}}})");
  ASSERT_TRUE(spec.ok()) << spec.error().ToString();
  EXPECT_EQ(Make(*spec).Encode("a a\nb"), (Ids{4, 4, 1, 0}));
}

// Every value of a good file is replaced by every kind of bad one. The result must be an error or a
// tokenizer.
TEST(Json, WrongTypesNeverCrash) {
  const auto good = nlohmann::json::parse(kSmallJson);
  const auto flat = good.flatten();
  for (const auto& [pointer, value] : flat.items()) {
    for (const char* bad :
         {"null", "[]", "{}", "-1", "1e300", "18446744073709551615", "\"\"", "[[[]]]", "true"}) {
      for (auto at = nlohmann::json::json_pointer(pointer); !at.empty(); at = at.parent_pointer()) {
        auto changed = good;
        changed[at] = nlohmann::json::parse(bad);
        if (auto spec = SpecFromJson(changed.dump()); spec.ok()) {
          (void)ApplyTokenizerConfig(changed.dump(), *spec);
          if (auto t = Tokenizer::FromSpec(*spec); t.ok()) t->Encode("ab1 <s>", {.special = true});
        }
      }
    }
  }
  EXPECT_FALSE(SpecFromJson("").ok());
  EXPECT_FALSE(SpecFromJson("[1]").ok());
  EXPECT_FALSE(SpecFromJson(std::string(100000, '[')).ok());
}

std::string Varint(uint64_t v) {
  std::string out;
  for (; v >= 0x80; v >>= 7) out += static_cast<char>(v | 0x80);
  return out + static_cast<char>(v);
}
std::string Block(int field, const std::string& bytes) {
  return Varint(field << 3 | 2) + Varint(bytes.size()) + bytes;
}
std::string Piece(const std::string& text, float score, int type) {
  std::string bits(4, 0);
  std::memcpy(bits.data(), &score, 4);
  return Block(1, Block(1, text) + "\x15" + bits + "\x18" + Varint(type));
}

std::string SmallModel() {
  // The trainer says BPE, the normaliser keeps extra spaces.
  return Piece("<unk>", 0, 2) + Piece("<s>", 0, 3) + Piece("</s>", 0, 3) + Piece("a", -3, 1) +
         Piece("\u2581", -4, 1) + Piece("\u2581a", -1, 1) + Piece("<0x0A>", 0, 6) +
         Block(2, "\x18\x02") + Block(3, std::string("\x20\x00", 2));
}

TEST(SentencePiece, ModelIsRead) {
  const auto spec = SpecFromSentencePiece(SmallModel());
  ASSERT_TRUE(spec.ok()) << spec.error().ToString();
  const Tokenizer t = Make(*spec);
  EXPECT_EQ(t.Encode("a a\n", {.bos = true}), (Ids{1, 5, 5, 6}));
  EXPECT_TRUE(t.IsEndOfGeneration(2));
}

TEST(SentencePiece, CutOrChangedModelsNeverCrash) {
  const std::string model = SmallModel();
  for (size_t n = 0; n <= model.size(); ++n) (void)SpecFromSentencePiece(model.substr(0, n));
  EXPECT_TRUE(rc::check("one changed byte", [&]() {
    std::string changed = model;
    changed[*rc::gen::inRange<size_t>(0, model.size())] = *rc::gen::arbitrary<char>();
    if (auto spec = SpecFromSentencePiece(changed); spec.ok()) (void)Tokenizer::FromSpec(*spec);
  }));
  const auto unigram = SpecFromSentencePiece(Piece("a", 0, 1));
  ASSERT_FALSE(unigram.ok());
  EXPECT_EQ(unigram.error().code(), Error::Code::kUnsupported);
}

class Folder : public testing::Test {
 protected:
  Folder() : path_(testing::TempDir() + "baton_tokenizer_folder") {
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
  }
  ~Folder() override { std::filesystem::remove_all(path_); }
  void Write(const char* name, std::string_view text) {
    std::ofstream(path_ + "/" + name, std::ios::binary) << text;
  }
  std::string path_;
};

TEST_F(Folder, FilesAreCombined) {
  Write("tokenizer.json", kSmallJson);
  Write("tokenizer_config.json", R"({"add_bos_token": false})");
  const auto t = Tokenizer::FromFolder(path_);
  ASSERT_TRUE(t.ok()) << t.error().ToString();
  EXPECT_EQ(t->bos(), 3);
  EXPECT_FALSE(t->adds_bos());
}

TEST_F(Folder, ErrorsNameTheFile) {
  EXPECT_EQ(Tokenizer::FromFolder(path_).error().code(), Error::Code::kNotFound);
  Write("tokenizer.json", "{");
  const auto t = Tokenizer::FromFolder(path_);
  ASSERT_FALSE(t.ok());
  EXPECT_NE(t.error().message().find("tokenizer.json"), std::string::npos);
}

}  // namespace
}  // namespace baton
