// Tokenizes many texts at once, for scripts/fuzz-tokenizers. Standard input has a JSON text a line,
// standard output a JSON array a line.
//   tokenize_lines patterns       prints {name: [pattern, ...]} for every tokenizer.ggml.pre
//   tokenize_lines words NAME     words of the pre-tokenizer NAME
//   tokenize_lines ids PATH       token ids of a GGUF file's or a folder's tokenizer
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "base/mapped_file.h"
#include "formats/bpe_split.h"
#include "formats/gguf.h"
#include "formats/tokenizer.h"

namespace baton {
namespace {

int Fail(const Error& error) {
  std::cerr << "tokenize_lines: " << error.ToString() << "\n";
  return 1;
}

Result<Tokenizer> Open(const std::string& path) {
  if (!path.ends_with(".gguf")) return Tokenizer::FromFolder(path);
  BATON_ASSIGN(const MappedFile file, MappedFile::Open(path));
  BATON_ASSIGN(const GgufFile gguf, ParseGguf(file.bytes()));
  return Tokenizer::FromGguf(gguf.metadata);
}

int Patterns() {
  nlohmann::json all = nlohmann::json::object();
  for (const std::string& name : PreTokenizerNames()) {
    const Result<PreTokenizer> pre = PreTokenizerOf(name);
    for (const SplitRule& rule : pre->rules) all[name].push_back(rule.pattern);
  }
  std::cout << all.dump() << "\n";
  return 0;
}

int Main(const std::string& mode, const std::string& what) {
  if (mode == "patterns") return Patterns();
  std::optional<Tokenizer> tokenizer;
  std::optional<WordSplitter> splitter;
  if (mode == "ids") {
    Result<Tokenizer> opened = Open(what);
    if (!opened.ok()) return Fail(opened.error());
    tokenizer.emplace(std::move(*opened));
  } else {
    Result<PreTokenizer> pre = PreTokenizerOf(what);
    if (!pre.ok()) return Fail(pre.error());
    Result<WordSplitter> made = WordSplitter::Make(pre->rules);
    if (!made.ok()) return Fail(made.error());
    splitter.emplace(std::move(*made));
  }
  for (std::string line; std::getline(std::cin, line);) {
    const std::string text = nlohmann::json::parse(line).get<std::string>();
    nlohmann::json out = nlohmann::json::array();
    if (tokenizer) {
      out = tokenizer->Encode(text, {.special = true});
    } else {
      for (std::string_view word : splitter->Split(text)) out.push_back(word);
    }
    std::cout << out.dump() << "\n";
  }
  return 0;
}

}  // namespace
}  // namespace baton

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  if (mode != "patterns" && (argc != 3 || (mode != "words" && mode != "ids"))) {
    std::cerr << "usage: tokenize_lines patterns | words NAME | ids PATH\n";
    return 2;
  }
  return baton::Main(mode, argc > 2 ? argv[2] : "");
}
