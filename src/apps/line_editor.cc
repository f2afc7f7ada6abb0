#include "apps/line_editor.h"

#include <histedit.h>
#include <langinfo.h>
#include <unistd.h>

#include <clocale>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "apps/command.h"

namespace baton::apps {
namespace {

// Terminals that know it put these around what is pasted.
constexpr const char* kPasteOn = "\033[?2004h";
constexpr const char* kPasteOff = "\033[?2004l";
constexpr const char* kPasteBegin = "\033[200~";
constexpr std::wstring_view kPasteEnd = L"\033[201~";
constexpr size_t kMaxPaste = size_t{1} << 26;
constexpr int kHistory = 1000;

std::string g_prompt;
bool g_pastes = false;

char* Prompt(EditLine*) { return g_prompt.data(); }

extern "C" void OnPromptInterrupt(int) {
  if (g_pastes) (void)!write(STDOUT_FILENO, kPasteOff, std::strlen(kPasteOff));
  (void)!write(STDOUT_FILENO, "\n", 1);
  _exit(kExitInterrupted);
}

// What was pasted becomes part of the line, line breaks included.
unsigned char OnPaste(EditLine* editor, int) {
  std::wstring text;
  wchar_t c = 0;
  while (!text.ends_with(kPasteEnd)) {
    if (text.size() > kMaxPaste || el_wgetc(editor, &c) != 1) return CC_EOF;
    text += c;
  }
  text.resize(text.size() - kPasteEnd.size());
  std::wstring kept;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == L'\r') {
      kept += L'\n';
      if (i + 1 < text.size() && text[i + 1] == L'\n') ++i;
    } else if (text[i] >= L' ' || text[i] == L'\n' || text[i] == L'\t') {
      kept += text[i];
    }
  }
  if (!kept.empty() && el_winsertstr(editor, kept.c_str()) != 0) return CC_ERROR;
  return CC_REFRESH;
}

// The editor reads characters, so it needs to know that they are UTF-8, also where nobody has set a
// locale (containers).
void UseUtf8() {
  std::setlocale(LC_CTYPE, "");
  if (std::string_view(nl_langinfo(CODESET)) != "UTF-8") std::setlocale(LC_CTYPE, "C.UTF-8");
}

bool KnowsPaste() {
  const char* terminal = std::getenv("TERM");
  return isatty(STDOUT_FILENO) == 1 && terminal != nullptr &&
         std::string_view(terminal) != "dumb" && *terminal != '\0';
}

}  // namespace

struct LineEditor::Impl {
  EditLine* editor = nullptr;
  History* history = nullptr;
  HistEvent event{};
};

LineEditor::LineEditor(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Result<std::unique_ptr<LineEditor>> LineEditor::Create(const std::string& prompt) {
  UseUtf8();
  auto impl = std::make_unique<Impl>();
  std::FILE* const out = isatty(STDOUT_FILENO) == 1 ? stdout : stderr;
  impl->editor = el_init("baton", stdin, out, stderr);
  impl->history = history_init();
  if (impl->editor == nullptr || impl->history == nullptr)
    return Error::Resource("the line editor cannot start on this terminal");
  g_prompt = prompt;
  history(impl->history, &impl->event, H_SETSIZE, kHistory);
  history(impl->history, &impl->event, H_SETUNIQUE, 1);
  el_set(impl->editor, EL_PROMPT, Prompt);
  el_set(impl->editor, EL_EDITOR, "emacs");
  el_set(impl->editor, EL_SIGNAL, 1);
  el_set(impl->editor, EL_HIST, history, impl->history);
  el_set(impl->editor, EL_ADDFN, "baton-paste", "insert what is pasted", OnPaste);
  el_set(impl->editor, EL_BIND, kPasteBegin, "baton-paste", nullptr);
  g_pastes = KnowsPaste();
  if (g_pastes) std::fputs(kPasteOn, stdout);
  return std::unique_ptr<LineEditor>(new LineEditor(std::move(impl)));
}

LineEditor::~LineEditor() {
  if (g_pastes) std::fputs(kPasteOff, stdout), std::fflush(stdout);
  g_pastes = false;
  history_end(impl_->history);
  el_end(impl_->editor);
}

std::optional<std::string> LineEditor::Read() {
  struct sigaction action {
  }, before{};
  action.sa_handler = OnPromptInterrupt;
  sigaction(SIGINT, &action, &before);
  int count = 0;
  // Before the prompt is seen: until then the terminal holds 4,095 characters of a line.
  el_set(impl_->editor, EL_PREP_TERM, 1);
  const char* line = el_gets(impl_->editor, &count);
  sigaction(SIGINT, &before, nullptr);
  if (line == nullptr || count <= 0) return std::nullopt;
  std::string text(line);
  if (text.ends_with('\n')) text.pop_back();
  if (text.find_first_not_of(" \t\n") != std::string::npos)
    history(impl_->history, &impl_->event, H_ENTER, text.c_str());
  return text;
}

}  // namespace baton::apps
