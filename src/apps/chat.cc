// The chat of `baton run` on a terminal.
#include "apps/answer.h"
#include "apps/line_editor.h"

namespace baton::apps {
namespace {

constexpr const char* kHelp =
    "/help   this list\n"
    "/reset  forgets the conversation, but not the system turn\n"
    "/stats  shows the last answer's cost\n"
    "/quit   ends, as does Ctrl-D\n"
    "Ctrl-C stops an answer. Several lines that are pasted at once are one turn. Arrow keys: "
    "history.";

// The conversation stands as before the question, for example when it outgrew the context.
void ReportRefusal(const Error& error, size_t turns) {
  if (error.code() == Error::Code::kInvalidArgument && turns > 1 &&
      error.message().find("the context holds") != std::string::npos) {
    PrintError(Error(error.code(), error.message())
                   .Hint("/reset forgets the conversation, --context N allows a longer one"));
  } else {
    PrintError(error);
  }
}

class Conversation {
 public:
  Conversation(Engine& engine, const Request& base, bool stats)
      : engine_(engine), base_(base), stats_(stats), turns_(base.chat) {}

  // What a line that begins with "/" asks for. False: to end.
  bool Command(const std::string& line) {
    if (line == "/quit" || line == "/exit" || line == "/bye") return false;
    if (line == "/reset" || line == "/clear") {
      turns_ = base_.chat, last_.reset();
    } else if (line == "/stats") {
      if (last_) PrintStats(*last_, base_.sampling);
    } else if (line == "/help" || line == "/?") {
      Note(kHelp);
    } else {
      Note("unknown command " + line + "; there are /help, /reset, /stats and /quit");
    }
    return true;
  }

  // One turn and its answer, streamed. An error only where it is no use to go on.
  Status Ask(std::string text) {
    Request request = base_;
    turns_.push_back({"user", std::move(text), ""});
    request.chat = turns_;
    InterruptGuard guard(engine_);
    auto generation = Stream(engine_, request);
    engine_.ResetCancel();
    if (!generation.ok()) {
      turns_.pop_back();
      if (generation.error().code() == Error::Code::kIo) return std::move(generation).error();
      ReportRefusal(generation.error(), turns_.size());
      return Status::Ok();
    }
    turns_.push_back({"assistant", generation->text, ""});
    NoteIfCut(*generation, request, engine_);
    if (stats_) PrintStats(*generation, base_.sampling);
    last_ = std::move(*generation);
    return Status::Ok();
  }

 private:
  Engine& engine_;
  const Request& base_;
  const bool stats_;
  std::vector<ChatTurn> turns_;
  std::optional<Generation> last_;
};

// A word with a slash in front; a path or a remark that begins with one is text.
bool IsCommand(const std::string& line) {
  return line.starts_with('/') && line.find_first_of(" \n/", 1) == std::string::npos;
}

}  // namespace

Result<int> Chat(Engine& engine, const Request& base, bool stats) {
  Note("/help lists the commands, /quit ends");
  BATON_ASSIGN(const auto editor, LineEditor::Create("> "));
  Conversation conversation(engine, base, stats);
  while (std::optional<std::string> line = editor->Read()) {
    DropTrailingNewline(*line);
    if (line->find_first_not_of(" \t\n") == std::string::npos) continue;
    if (IsCommand(*line)) {
      if (!conversation.Command(*line)) return 0;
      continue;
    }
    BATON_TRY(conversation.Ask(*std::move(line)));
  }
  BATON_TRY(Print("\n"));
  return 0;
}

}  // namespace baton::apps
