#include <cstdio>

#include "base/atomic_file.h"
#include "formats/tokenizer.h"
#include "train/batches.h"
#include "train/program/commands.h"
#include "train/program/data.h"

namespace baton::train {
namespace {

struct EncodeFlags {
  std::string text, tokenizer, out;
  int64_t most = 0;
};

Status Encode(const EncodeFlags& flags) {
  BATON_ASSIGN(const Tokenizer tokenizer, Tokenizer::FromFolder(flags.tokenizer));
  if (tokenizer.vocab_size() > 32768)
    return Error::Unsupported("a vocabulary of {} tokens, expected at most 32768",
                              tokenizer.vocab_size());
  BATON_ASSIGN(const std::string text, ReadFileText(flags.text));
  std::vector<uint16_t> ids;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\0', begin), text.size());
    ids.push_back(static_cast<uint16_t>(kDocumentToken));
    for (const int32_t id : tokenizer.Encode(std::string_view(text).substr(begin, end - begin)))
      ids.push_back(static_cast<uint16_t>(id));
    begin = end + 1;
    if (flags.most > 0 && std::ssize(ids) >= flags.most) break;
  }
  if (flags.most > 0 && std::ssize(ids) > flags.most) ids.resize(static_cast<size_t>(flags.most));
  BATON_ASSIGN(AtomicFile file, AtomicFile::Create(flags.out));
  BATON_TRY(file.Write(std::as_bytes(std::span(ids))));
  BATON_TRY(file.Commit());
  fmt::print("{}: {} tokens, {:.2f} bytes of text each\n", flags.out, ids.size(),
             static_cast<double>(text.size()) / static_cast<double>(ids.size()));
  return Status::Ok();
}

}  // namespace

void AddEncode(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand(
      "encode", "Text to a token file: 16-bit ids, <|text|> before each document");
  auto flags = std::make_shared<EncodeFlags>();
  command->add_option("TEXT", flags->text, "Documents that end with a NUL byte")->required();
  command->add_option("--tokenizer", flags->tokenizer, "Folder with tokenizer.json")->required();
  command->add_option("-o,--out", flags->out, "Token file")->required();
  command->add_option("--most", flags->most, "Stop at so many tokens");
  command->callback([flags, &action] { action = [flags] { return Encode(*flags); }; });
}

}  // namespace baton::train
