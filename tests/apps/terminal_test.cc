// The chat of `baton run`, typed on a pseudo-terminal.
#include <poll.h>
#include <pty.h>
#include <unistd.h>

#include <chrono>

#include "tests/apps/cli_test_util.h"

namespace baton {
namespace {

using testing::HasSubstr;

constexpr const char* kChatMl =
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

class Terminal {
 public:
  Terminal(const std::string& args, const char* term) {
    pid_ = forkpty(&fd_, nullptr, nullptr, nullptr);
    if (pid_ == 0) {
      setenv("TERM", term, 1);
      unsetenv("LANG");
      unsetenv("LC_ALL");
      const std::string command = std::string("exec '" BATON_PROGRAM "' ") + args;
      execl("/bin/sh", "sh", "-c", command.c_str(), nullptr);
      _exit(127);
    }
  }
  ~Terminal() {
    if (pid_ > 0) Quit();
  }

  // Waits for the first prompt.
  void ToPrompt() { Await("> ", 0); }
  void Type(const std::string& text) {
    for (size_t at = 0; at < text.size(); at += 512) {
      const std::string piece = text.substr(at, 512);
      EXPECT_EQ(write(fd_, piece.data(), piece.size()), static_cast<ssize_t>(piece.size()));
      Pump(10);
    }
  }
  // Types a line; what the program shows up to its next prompt.
  std::string Ask(const std::string& text) {
    const size_t from = out_.size();
    Type(text + "\r");
    Await("\n> ", from);
    return out_.substr(from);
  }
  int Quit() {
    Type("/quit\r");
    while (Pump(5000)) {
    }
    int status = 0;
    close(fd_);
    waitpid(std::exchange(pid_, -1), &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

 private:
  void Await(const std::string& end, size_t from) {
    const auto last = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    const auto there = [&] { return out_.size() > from && out_.ends_with(end); };
    while (!there() && std::chrono::steady_clock::now() < last)
      if (!Pump(200)) break;
    EXPECT_TRUE(there()) << out_.substr(from);
  }
  bool Pump(int ms) {
    pollfd p{fd_, POLLIN, 0};
    if (poll(&p, 1, ms) <= 0) return ms < 1000;
    char buffer[65536];
    const ssize_t n = read(fd_, buffer, sizeof buffer);
    if (n <= 0) return false;
    out_.append(buffer, static_cast<size_t>(n));
    return true;
  }

  int fd_ = -1;
  pid_t pid_ = -1;
  std::string out_;
};

class ChatCli : public Cli {
 protected:
  std::string Model(ChainModel model) {
    model.specials = {"<|im_start|>", "<|im_end|>", "<think>", "</think>"};
    model.types = {{"<think>", 4}, {"</think>", 4}};
    if (model.chat_template.empty()) model.chat_template = kChatMl;
    model.add_bos = false;
    model.more["tokenizer.ggml.eos_token_id"] = int64_t{259};
    model.Write(folder_ / "m.gguf");
    return "run '" + (folder_ / "m.gguf").string() + "' --threads 1 ";
  }
  // Prompt tokens that /stats tells of.
  static std::string PromptTokens(Terminal& chat) {
    const std::string stats = chat.Ask("/stats");
    const size_t at = stats.find("prompt   ");
    return at == std::string::npos ? stats : stats.substr(at + 9, stats.find(' ', at + 9) - at - 9);
  }
  std::string TokensOf(const std::string& text) {
    const Outcome o = Baton("tokenize '" + (folder_ / "m.gguf").string() + "' --json", "", text);
    return std::to_string(nlohmann::json::parse(o.out)["tokens"].size());
  }
  static std::string Turn(const std::string& text) {
    return "<|im_start|>user\n" + text + "<|im_end|>\n<|im_start|>assistant\n";
  }
};

TEST_F(ChatCli, ALongLineIsOneTurnWhole) {
  for (const char* term : {"xterm", "dumb"}) {
    Terminal chat(Model({.context = 16384}) + "-n 2", term);
    chat.ToPrompt();
    chat.Ask(std::string(6000, 'x'));
    EXPECT_EQ(PromptTokens(chat), "6,019") << term;
    EXPECT_EQ(chat.Quit(), 0);
  }
  EXPECT_EQ(TokensOf(Turn(std::string(6000, 'x'))), "6019");
}

TEST_F(ChatCli, PastedLinesAreOneTurn) {
  Terminal chat(Model({.context = 4096}) + "-n 2", "xterm");
  chat.ToPrompt();
  chat.Ask(
      "\033[200~first line\rsecond\tline\rgr\xc3\xbc\xc3\x9f"
      "e\n\033[201~");
  EXPECT_EQ(PromptTokens(chat), TokensOf(Turn("first line\nsecond\tline\ngr\xc3\xbc\xc3\x9f"
                                              "e")));
  // A long paste with many lines, and a line typed behind it.
  std::string lines;
  for (int i = 0; i < 200; ++i) lines += "line of a paste\n";
  chat.Ask("/reset");
  chat.Ask("\033[200~" + lines + "\033[201~end");
  std::string want = TokensOf(Turn(lines + "end"));
  EXPECT_EQ(PromptTokens(chat), want.insert(1, ","));
}

TEST_F(ChatCli, LinesAreEditedAndRemembered) {
  Terminal chat(Model({}) + "-n 2", "xterm");
  chat.ToPrompt();
  chat.Ask("helxlo\033[D\033[D\177");  // back over "lo", delete the x
  EXPECT_EQ(PromptTokens(chat), TokensOf(Turn("hello")));
  chat.Ask("/reset");
  chat.Ask("\033[A\033[A\033[A");  // behind /reset and /stats
  EXPECT_EQ(PromptTokens(chat), TokensOf(Turn("hello")));
}

TEST_F(ChatCli, CommandsAreListedAndResetIsNamedWhereTheContextEnds) {
  Terminal chat(Model({.context = 60}) + "-n 2", "xterm");
  chat.ToPrompt();
  EXPECT_THAT(chat.Ask("/help"),
              testing::AllOf(HasSubstr("/reset"), HasSubstr("/stats"), HasSubstr("/quit")));
  EXPECT_THAT(chat.Ask("/nosuch"), HasSubstr("/help"));
  EXPECT_THAT(chat.Ask("a"), HasSubstr("cut at 2 tokens"));
  EXPECT_THAT(chat.Ask(std::string(30, 'x')), HasSubstr("/reset forgets"));
  chat.Ask("/reset");
  EXPECT_THAT(chat.Ask(std::string(30, 'x')), testing::Not(HasSubstr("error")));
}

TEST_F(ChatCli, ThoughtsOfEarlierTurnsAreLeftOutAsTheTemplateSays) {
  Terminal chat(
      Model({.path = "\n<think>xz</think>y<|im_end|>",
             .chat_template =
                 "{% for m in messages %}{% set c = m.content.split('</think>')[-1] if "
                 "m.role == 'assistant' else m.content %}{{ '<|im_start|>' + m.role + '\n' "
                 "+ c + '<|im_end|>\n' }}{% endfor %}{{ '<|im_start|>assistant\n' }}"}) +
          "-n 12",
      "xterm");
  chat.ToPrompt();
  EXPECT_THAT(chat.Ask("hi"), HasSubstr("<think>xz</think>y"));
  chat.Ask("ho");
  EXPECT_EQ(PromptTokens(chat), TokensOf(Turn("hi") + "y<|im_end|>\n" + Turn("ho")));
}

TEST_F(ChatCli, ATemplateThatCannotBeRunIsFoundAtOnce) {
  Terminal chat(Model({.chat_template = "{{ messages | nofilter }}"}), "xterm");
  EXPECT_EQ(chat.Quit(), 1);
}

}  // namespace
}  // namespace baton
