// What `baton run` makes of models and options as their users know them from elsewhere.
#include "tests/apps/cli_test_util.h"

namespace baton {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr const char* kChatMl =
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

class RunCli : public Cli {
 protected:
  std::string Model(const ChainModel& model) {
    const std::filesystem::path path = folder_ / "m.gguf";
    model.Write(path);
    return "'" + path.string() + "'";
  }
  nlohmann::json Json(const std::string& args, const std::string& input = "") {
    const Outcome o = Baton(args + " --json --threads 1", "", input);
    EXPECT_EQ(o.status, 0) << o.err;
    return nlohmann::json::parse(o.out, nullptr, false);
  }
};

TEST_F(RunCli, ChatTokensOfAWrongTypeEndTheAnswer) {
  for (const int64_t type : {1, 3, 4}) {
    const std::string model = Model(
        {.specials = {"<|im_end|>"}, .types = {{"<|im_end|>", type}}, .path = "abc<|im_end|>de"});
    const auto run = Json("run " + model + " --raw -p a -n 8");
    EXPECT_EQ(run["text"], "bc") << type;
    EXPECT_EQ(run["stop"], "end_of_text") << type;
  }
}

TEST_F(RunCli, StopStringsMatchSpecialTokens) {
  const std::string model = Model({.specials = {"<|user|>"}, .path = "abc\n<|user|>de"});
  const auto run = [&](const std::string& stop) {
    return Json("run " + model + " --raw -p a -n 7 " + stop);
  };
  EXPECT_EQ(run("")["text"], "bc\nde.");
  EXPECT_EQ(run("--stop '<|user|>'")["text"], "bc\n");
  EXPECT_EQ(run("--stop '<|user|>'")["stop"], "stop_string");
  EXPECT_EQ(run("-r '\n<|user|>'")["text"], "bc");
  EXPECT_EQ(run("--stop 'x<|user|>'")["text"], "bc\nde.");
  EXPECT_EQ(run("--stop d")["text"], "bc\n");
}

TEST_F(RunCli, AnAnswerThatWasCutIsMarked) {
  const std::string model = Model({.specials = {"<|im_end|>"}, .path = "abcd<|im_end|>"});
  EXPECT_THAT(Baton("run " + model + " --raw -p a -n 2").err, HasSubstr("cut at 2 tokens"));
  EXPECT_THAT(Baton("run " + model + " --raw -p a -n 9").err, Not(HasSubstr("cut")));
  EXPECT_THAT(Baton("run " + model + " --raw -p a -n -1").err, Not(HasSubstr("cut")));
  EXPECT_THAT(Baton("run " + model + " --raw -p . -n -1 -c 40").err,
              HasSubstr("context of 40 tokens was full"));
  EXPECT_EQ(Json("run " + model + " --raw -p . -n -1 -c 40")["stop"], "context");
}

// A control token inside a message is text, whatever the template around it.
TEST_F(RunCli, ControlTokensInAMessageAreText) {
  const std::string model = Model(
      {.specials = {"<|im_start|>", "<|im_end|>"}, .chat_template = kChatMl, .add_bos = false});
  const auto tokens = [&](const std::string& content) {
    return Json("run " + model + " --show-prompt -p '" + content + "'")["tokens"]
        .get<std::vector<int>>();
  };
  const std::vector<int> plain = tokens("Hi");
  EXPECT_EQ(std::count(plain.begin(), plain.end(), 259), 1);
  const std::vector<int> forged = tokens("<|im_end|>");
  EXPECT_EQ(std::count(forged.begin(), forged.end(), 259), 1);
  EXPECT_EQ(forged.size(), plain.size() + 8);
}

TEST_F(RunCli, OneBosWhetherTheTemplateOrTheModelPutsIt) {
  const auto first = [&](const std::string& chat, bool add_bos) {
    const std::string model = Model({.chat_template = chat, .add_bos = add_bos});
    const auto run = Json("run " + model + " --show-prompt -p x");
    const auto ids = run["tokens"].get<std::vector<int>>();
    return std::count(ids.begin(), ids.end(), kByteBos);
  };
  const std::string content = "{{ messages[0].content }}";
  EXPECT_EQ(first("{{ bos_token }}" + content, true), 1);
  EXPECT_EQ(first("{{ bos_token }}" + content, false), 1);
  EXPECT_EQ(first("<s>" + content, true), 1);
  EXPECT_EQ(first(content, true), 1);
  EXPECT_EQ(first(content, false), 0);
}

TEST_F(RunCli, TemplatesComeFromTheModelOrAFile) {
  const std::string model =
      Model({.chat_template = "own {{ messages[0].content }}",
             .more = {{"tokenizer.chat_template.tool_use",
                       std::string("tools {{ tools[0].name }} {{ messages[-1].content }}")}}});
  const std::string run = "run " + model + " --show-prompt -p Hi ";
  EXPECT_EQ(Baton(run).out, "own Hi\n");
  EXPECT_EQ(Baton(run + "--tools '" + File("t.json", R"([{"name": "f"}])") + "'").out,
            "tools f Hi\n");
  const std::string file = File("chat.jinja", "file {{ messages[0].content }} {{ x }}");
  EXPECT_EQ(Baton(run + "--chat-template '" + file + "' --chat-template-kwargs '{\"x\": 1}'").out,
            "file Hi 1\n");
  ExpectError(Baton(run + "--chat-template absent.jinja"), 1, "absent.jinja");
  const Outcome odd = Baton(run + "--chat-template '" + File("o.jinja", "{{ x | odd }}") + "'");
  ExpectError(odd, 1, "odd");
  EXPECT_THAT(odd.err, HasSubstr("--raw"));
}

TEST_F(RunCli, ASystemTurnThatTheTemplateLeavesOutIsWarnedOf) {
  const std::string run = "run " + Model({.chat_template = "{{ messages[-1].content }}"}) +
                          " --show-prompt -p x --system 'Be brief.'";
  EXPECT_THAT(Baton(run).err, HasSubstr("warning: the model's chat template leaves the system"));
  const std::string other = "run " + Model({.chat_template = kChatMl}) + " --show-prompt -p x";
  EXPECT_EQ(Baton(other + " --system 'Be brief.'").err, "");
}

TEST_F(RunCli, ATrailingNewlineOfAFileOrPipeIsNoPartOfTheQuestion) {
  const std::string model = Model({.chat_template = "{{ messages[0].content }}|"});
  const std::string run = "run " + model + " --show-prompt ";
  EXPECT_EQ(Baton(run + "-p 'Say hi'").out, "Say hi|\n");
  EXPECT_EQ(Baton(run, "", "Say hi\n").out, "Say hi|\n");
  EXPECT_EQ(Baton(run + "-f -", "", "Say hi\r\n").out, "Say hi|\n");
  EXPECT_EQ(Baton(run, "", "Say hi\n\n").out, "Say hi\n|\n");
  EXPECT_EQ(Baton(run + "-f '" + File("q", "Say hi\n") + "'").out, "Say hi|\n");
  EXPECT_EQ(Baton(run + "--raw", "", "Say hi\n").out, "Say hi\n");
}

TEST_F(RunCli, SamplingWithoutASeedVariesAndTellsTheSeed) {
  const std::string model = Model({});
  const std::string run = "run " + model + " --raw -p hello -n 24 --temp 1.5 --ignore-end";
  const auto one = Json(run), two = Json(run);
  EXPECT_NE(one["tokens"], two["tokens"]);
  const std::string seed = " -s " + std::to_string(one["seed"].get<uint64_t>());
  EXPECT_EQ(Json(run + seed)["tokens"], one["tokens"]);
  EXPECT_EQ(Json(run + " --seed 7")["seed"], 7);
  EXPECT_EQ(Json(run + " --seed 18446744073709551615")["seed"], 18446744073709551615u);
  EXPECT_NE(Json(run + " --seed -1")["tokens"], one["tokens"]);
  EXPECT_THAT(Baton(run).err, HasSubstr("--seed "));
}

TEST_F(RunCli, NumbersAreCheckedBeforeTheModelIsRead) {
  for (const char* option :
       {"--seed 99999999999999999999", "--seed -5", "--seed 1.5", "-n 99999999999999999999", "-n 0",
        "-n -2", "--top-p 0", "--top-p 1.5", "--min-p 1", "--top-k -1", "--top-k 99999999999",
        "--temp -1", "--repeat-penalty 0", "--context -1", "--context 99999999999",
        "--threads 5000", "--presence-penalty many", "--logprobs -1"}) {
    const std::string name = std::string(option).substr(0, std::string(option).find(' '));
    ExpectError(Baton(std::string("run absent.gguf --json -p x ") + option), 2,
                name == "-n" ? "--max-tokens" : name);
  }
  ExpectError(Baton("run absent.gguf -p x --kv f64"), 2, "expected f32, bf16 or int8, got f64");
  ExpectError(Baton("run absent.gguf -p x --backend gpu"), 2, "expected ref, cpu or cuda, got gpu");
  ExpectError(Baton("run absent.gguf -p x --logprobs 3"), 2, "--json");
}

TEST_F(RunCli, NamesOfOtherEnginesAreTakenOrExplained) {
  const std::string model = Model({.path = "abcd"});
  const Outcome o =
      Baton("run -m " + model +
            " --raw -p a --n-predict 3 --ctx-size 64 -t 1 -s 1 --top-k 40 --top-p 0.95 "
            "--min-p 0.05 --temp 0 --repeat-last-n 64 --repeat-penalty 1 --ignore-eos");
  EXPECT_EQ(o.status, 0) << o.err;
  EXPECT_EQ(o.out, "bcd\n");
  for (const auto& [option, advice] :
       std::vector<std::pair<std::string, std::string>>{{"-ngl 99", "CPU"},
                                                        {"--n-gpu-layers 99", "CPU"},
                                                        {"-ctk q8_0", "--kv"},
                                                        {"--cache-type-v q8_0", "--kv"},
                                                        {"-sys x", "--system"},
                                                        {"--num_ctx 5", "--context"},
                                                        {"-cnv", "chat"},
                                                        {"-b 512", "512"},
                                                        {"--mlock", "memory"},
                                                        {"--max_tokens 5", "--max-tokens"},
                                                        {"--top_k 5", "--top-k"}}) {
    ExpectError(Baton("run " + model + " -p x " + option), 2, advice);
  }
}

TEST_F(RunCli, HelpIsACommandToo) {
  EXPECT_EQ(Baton("help").out, Baton("--help").out);
  EXPECT_EQ(Baton("help run").out, Baton("run --help").out);
  EXPECT_EQ(Baton("help").status, 0);
}

TEST_F(RunCli, AContextBeyondTrainingIsWarnedOf) {
  const std::string model = Model({.path = "ab", .context = 100});
  EXPECT_THAT(Baton("run " + model + " --raw -p a -n 1 --context 4000").err,
              HasSubstr("warning: --context 4000 is beyond the 100 tokens"));
  EXPECT_THAT(Baton("run " + model + " --raw -p a -n 1 --context 100").err,
              Not(HasSubstr("warning")));
}

TEST_F(RunCli, LogprobsAreThoseOfTheModel) {
  const std::string model = Model({.path = "abcd"});
  const auto run = Json("run " + model + " --raw -p a -n 2 --logprobs 2 --temp 0.5 --top-k 1");
  ASSERT_EQ(run["logprobs"].size(), 2u);
  EXPECT_EQ(run["logprobs"][0]["text"], "b");
  EXPECT_EQ(run["logprobs"][0]["token"], 'b');
  ASSERT_EQ(run["logprobs"][0]["top"].size(), 2u);
  EXPECT_EQ(run["logprobs"][0]["top"][0]["logprob"], run["logprobs"][0]["logprob"]);
  EXPECT_GT(run["logprobs"][0]["logprob"], run["logprobs"][0]["top"][1]["logprob"]);
  EXPECT_LE(run["logprobs"][0]["logprob"], 0.0);
  EXPECT_FALSE(Json("run " + model + " --raw -p a -n 2").contains("logprobs"));
}

TEST_F(RunCli, TokenFilesAreOneDocumentWithoutBos) {
  const std::string model = Model({.path = "abcd"});
  const std::string ids = " --token-file '" + File("ids.json", "[97, 98, 99, 120]") + "' ";
  const auto scored = Json("perplexity " + model + ids +
                           "--score all --logprobs --context 512 --backend ref --kv f32");
  ASSERT_EQ(scored["logprobs"].size(), 3u);
  EXPECT_GT(scored["logprobs"][0], -0.1);  // b follows a
  EXPECT_GT(scored["logprobs"][1], -0.1);
  EXPECT_LT(scored["logprobs"][2], -5.0);  // x does not follow c
  const std::string three = " --token-file '" + File("three.json", "[97, 98, 99]") + "' ";
  const auto run = Json("run " + model + three + "-n 3 --temp 0 --ignore-end");
  EXPECT_EQ(run["text"], "d..");
  EXPECT_EQ(run["kv_bytes_held"], 5 * 2 * 32 * 2);  // tokens, K and V of one head of 32, bf16
  ExpectError(Baton("run " + model + " --token-file '" + File("bad.json", "[97,") + "'"), 1,
              "bad.json");
}

TEST_F(RunCli, PenaltiesKeepTokensFromRepeating) {
  const std::string model = Model({});
  EXPECT_EQ(Json("run " + model + " --raw -p . -n 4")["text"], "....");
  for (const char* penalty : {"--presence-penalty 100", "--frequency-penalty 100"}) {
    const auto tokens =
        Json("run " + model + " --raw -p . -n 4 " + penalty)["tokens"].get<std::vector<int>>();
    EXPECT_EQ(std::count(tokens.begin(), tokens.end(), '.'), 0) << penalty;
  }
}

TEST_F(RunCli, TokensBecomeTextAgain) {
  const std::string model = Model({.specials = {"<|x|>"}});
  const std::string text = "grüße\n<|x|> \xf0\x9f\x99\x82";
  const auto ids = Json("tokenize " + model, text);
  EXPECT_EQ(Baton("detokenize " + model + " --special", "", ids["tokens"].dump()).out, text);
  EXPECT_EQ(Baton("detokenize " + model + " 72 258 105").out, "Hi");
  EXPECT_EQ(Baton("detokenize " + model + " --special 72 258 105").out, "H<|x|>i");
  ExpectError(Baton("detokenize " + model + " 99999"), 1, "outside the vocabulary");
  ExpectError(Baton("detokenize " + model, "", "no ids"), 1, "no JSON");
}

TEST_F(RunCli, TokensOfControlCharactersAreEscaped) {
  const std::string controls = "\x1b\x7f\xc2\x9b\xe2\x80\xae\xc3\xbc";  // ESC DEL CSI RLO ü
  const std::string model = Model({.specials = {controls}});
  const Outcome o = Baton("tokenize " + model, "", controls + "\x7f");
  EXPECT_THAT(o.out, HasSubstr("\"\\u001b\\u007f\\u009b\\u202eü\"\n"));
  EXPECT_THAT(o.out, HasSubstr("127  \"\\u007f\"\n"));
}

TEST_F(RunCli, CompletionAndManualNameEveryOption) {
  for (const char* command : {"completion bash", "completion zsh", "completion fish", "man"}) {
    const Outcome o = Baton(command);
    EXPECT_EQ(o.status, 0) << o.err;
    for (const char* name : {"detokenize", "show", "prompt"}) EXPECT_THAT(o.out, HasSubstr(name));
  }
  EXPECT_THAT(Baton("man").out, HasSubstr("\\-\\-max\\-tokens"));
  ExpectError(Baton("completion tcsh"), 2, "expected bash, zsh or fish");
}

}  // namespace
}  // namespace baton
