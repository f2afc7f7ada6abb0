// Runs the program itself, and writes models whose answers are known in advance.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "formats/byte_tokenizer.h"
#include "formats/gguf_writer.h"

namespace baton {

struct Outcome {
  int status = -1;
  std::string out, err;
};

inline std::string ReadAll(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

class Cli : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = std::filesystem::temp_directory_path() / "baton-cli-XXXXXX";
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  // `redirection` comes after the streams that the test captures, so it may send them elsewhere.
  Outcome Baton(const std::string& args, const std::string& redirection = "",
                const std::string& input = "") {
    const auto in = folder_ / "in", out = folder_ / "out", err = folder_ / "err";
    std::ofstream(in, std::ios::binary) << input;
    const std::string command = std::string("'" BATON_PROGRAM "' ") + args + " <'" + in.string() +
                                "' >'" + out.string() + "' 2>'" + err.string() + "' " + redirection;
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, ReadAll(out), ReadAll(err)};
  }
  std::string File(const std::string& name, const std::string& text) {
    std::ofstream(folder_ / name) << text;
    return (folder_ / name).string();
  }
  // One line on standard error and nothing on standard output, with this exit status.
  void ExpectError(const Outcome& o, int status, const std::string& part) {
    EXPECT_EQ(o.status, status) << o.err;
    EXPECT_EQ(o.out, "");
    EXPECT_THAT(o.err,
                testing::AllOf(testing::StartsWith("baton: error: "), testing::HasSubstr(part)));
    EXPECT_EQ(std::count(o.err.begin(), o.err.end(), '\n'), 1) << o.err;
  }

  std::filesystem::path folder_;
};

// A model of one layer whose next token depends on the latest one alone.
struct ChainModel {
  // Behind the 256 bytes: <s>, </s>, and these (control tokens unless `types` says otherwise).
  std::vector<std::string> specials;
  std::map<std::string, int64_t> types;
  std::string path;  // "ab<|x|>": tokens in their order, each followed by the next, the last by '.'
  std::string chat_template;
  bool add_bos = true;
  int64_t context = 512;
  std::map<std::string, MetaValue> more;

  static constexpr int64_t kWidth = 64;

  int64_t Vocab() const { return kMinByteVocab + static_cast<int64_t>(specials.size()); }

  std::vector<int64_t> Path() const {
    std::vector<int64_t> ids;
    for (size_t at = 0; at < path.size();) {
      size_t length = 1;
      int64_t id = static_cast<unsigned char>(path[at]);
      for (size_t s = 0; s < specials.size(); ++s) {
        if (path.compare(at, specials[s].size(), specials[s]) != 0) continue;
        id = kMinByteVocab + static_cast<int64_t>(s), length = specials[s].size();
      }
      ids.push_back(id);
      at += length;
    }
    return ids;
  }

  Metadata Keys() const {
    Metadata m = ByteTokenizerMetadata(Vocab());
    auto& tokens = std::get<std::vector<std::string>>(m.values["tokenizer.ggml.tokens"]);
    auto& kinds = std::get<std::vector<int64_t>>(m.values["tokenizer.ggml.token_type"]);
    for (size_t i = 0; i < specials.size(); ++i) {
      tokens[kMinByteVocab + i] = specials[i];
      const auto type = types.find(specials[i]);
      kinds[kMinByteVocab + i] = type == types.end() ? 3 : type->second;
    }
    m.values["tokenizer.ggml.add_bos_token"] = add_bos;
    if (!chat_template.empty()) m.values["tokenizer.chat_template"] = chat_template;
    const std::pair<const char*, int64_t> sizes[] = {
        {"llama.block_count", 1},           {"llama.context_length", context},
        {"llama.embedding_length", kWidth}, {"llama.feed_forward_length", 32},
        {"llama.attention.head_count", 2},  {"llama.attention.head_count_kv", 1},
        {"llama.attention.key_length", 32}, {"llama.attention.value_length", 32}};
    for (const auto& [key, size] : sizes) m.values[key] = size;
    m.values["general.architecture"] = std::string("llama");
    m.values["llama.attention.layer_norm_rms_epsilon"] = 1e-5;
    for (const auto& [key, value] : more) m.values[key] = value;
    return m;
  }

  void Write(const std::filesystem::path& file) const {
    std::mt19937 random(1);
    std::vector<std::vector<float>> codes(static_cast<size_t>(Vocab()));
    for (auto& code : codes)
      for (int64_t i = 0; i < kWidth; ++i) code.push_back(random() % 2 ? 1.0f : -1.0f);
    std::vector<std::vector<float>> out(codes.size(), std::vector<float>(kWidth));
    const auto follow = [&](int64_t from, int64_t to) {
      for (size_t i = 0; i < kWidth; ++i)
        out[static_cast<size_t>(to)][i] += codes[static_cast<size_t>(from)][i];
    };
    const std::vector<int64_t> ids = Path();
    for (size_t i = 0; i + 1 < ids.size(); ++i) follow(ids[i], ids[i + 1]);
    follow('.', '.');
    if (!ids.empty()) follow(ids.back(), '.');
    GgufWriter writer;
    writer.Set(Keys());
    const auto add = [&](const std::string& name, std::vector<int64_t> shape,
                         const std::vector<float>& values) {
      std::vector<std::byte> bytes(values.size() * sizeof(float));
      std::memcpy(bytes.data(), values.data(), bytes.size());
      writer.AddTensor(name, DType::kF32, std::move(shape), std::move(bytes));
    };
    const auto flat = [](const std::vector<std::vector<float>>& rows) {
      std::vector<float> all;
      for (const auto& r : rows) all.insert(all.end(), r.begin(), r.end());
      return all;
    };
    add("token_embd.weight", {Vocab(), kWidth}, flat(codes));
    add("output.weight", {Vocab(), kWidth}, flat(out));
    for (const char* norm : {"output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"})
      add(norm + std::string(".weight"), {kWidth}, std::vector<float>(kWidth, 1.0f));
    const std::pair<const char*, std::array<int64_t, 2>> matrices[] = {
        {"attn_q", {64, 64}},      {"attn_k", {32, 64}},   {"attn_v", {32, 64}},
        {"attn_output", {64, 64}}, {"ffn_gate", {32, 64}}, {"ffn_up", {32, 64}},
        {"ffn_down", {64, 32}}};
    for (const auto& [name, shape] : matrices)
      add(std::string("blk.0.") + name + ".weight", {shape[0], shape[1]},
          std::vector<float>(static_cast<size_t>(shape[0] * shape[1])));
    const Status written = writer.WriteFile(file.string());
    ASSERT_TRUE(written.ok()) << written.error().ToString();
  }
};

}  // namespace baton
