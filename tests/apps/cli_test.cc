// What the program prints where, and its exit status, when things go wrong.
#include <cstdio>

#include "model/spec/router.h"
#include "tests/apps/cli_test_util.h"

namespace baton {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

constexpr const char* kModel = "models/SmolLM2-135M-Instruct.Q4_1.gguf";

TEST_F(Cli, HelpShowsExamplesOfEveryCommand) {
  for (const char* command :
       {"run", "info", "tokenize", "profile", "plan", "eval", "perplexity", "bench", "report"}) {
    const Outcome o = Baton(std::string(command) + " --help");
    EXPECT_EQ(o.status, 0) << o.err;
    EXPECT_THAT(o.out, HasSubstr(std::string("  baton ") + command + " "));
  }
  EXPECT_THAT(Baton("--version").out, testing::StartsWith("baton "));
}

TEST_F(Cli, UsageErrorsTeachAndExitWithTwo) {
  ExpectError(Baton(""), 2, "baton --help");
  ExpectError(Baton("help nonesuch"), 2, "unknown command nonesuch");
  ExpectError(Baton("run model.gguf --raw -p a --plan ''"), 2, "--plan: expected a value");
  ExpectError(Baton("run model.gguf --raw -p a --stop ''"), 2, "--stop: expected a value");
  ExpectError(Baton("rnu model.gguf"), 2, "did you mean run?");
  ExpectError(Baton("run model.gguf --promt x"), 2, "did you mean --prompt?");
  // The typo is the cause; that the model seems to be missing is its consequence.
  ExpectError(Baton("run --promt"), 2, "--promt");
  ExpectError(Baton("run"), 2, "MODEL");
  ExpectError(Baton("run model.gguf -n many"), 2, "--max-tokens");
  ExpectError(Baton("run model.gguf --prompt a --file b"), 2, "--file");
  ExpectError(Baton("bench model.gguf --kv f64"), 2, "--kv");
  ExpectError(Baton("plan profile.json"), 2, "--output");
  ExpectError(Baton("run model.gguf --prompt a --route-mode dense"), 2, "nothing to route by");
  ExpectError(Baton("run model.gguf --prompt a --route-margin 1"), 2, "nothing to route by");
  ExpectError(Baton("run model.gguf --prompt a --route-mode all"), 2, "--route-mode");
}

TEST_F(Cli, WindowListsTakeNoSearchOptions) {
  ExpectError(Baton("plan p.json -o plan.json --rank entropy"), 2, "--windows-only");
  ExpectError(Baton("plan p.json -o plan.json --route"), 2, "--windows-only");
  ExpectError(Baton("plan p.json -o plan.json --windows-only 0.5 --max-kl 0.1"), 2, "--max-kl");
  ExpectError(Baton("plan p.json -o plan.json --windows-only 0.5 --forced 1"), 2, "--forced");
  ExpectError(Baton("plan p.json -o plan.json --windows-only 0.5 --search-json s.json"), 2,
              "--search-json");
  ExpectError(Baton("plan p.json -o plan.json --windows-only 1.5"), 2, "--windows-only");
  ExpectError(Baton("plan p.json -o plan.json --windows-only 0.5 --rank best"), 2, "--rank");
}

TEST_F(Cli, FilesThatAreNotThereAreNamed) {
  ExpectError(Baton("info absent.gguf"), 1, "absent.gguf");
  ExpectError(Baton("tokenize absent.gguf --prompt x"), 1, "absent.gguf");
  ExpectError(Baton("perplexity absent.gguf --file absent.txt"), 1, "absent.txt");
  ExpectError(Baton("plan absent.json -o plan.json"), 1, "absent.json");
  ExpectError(Baton("report --plan absent.json -o page.html"), 1, "absent.json");
}

TEST_F(Cli, FilesOfAnotherKindAreRefused) {
  const std::string text = File("text.gguf", "no model");
  ExpectError(Baton("info '" + text + "'"), 1, "text.gguf");
  ExpectError(Baton("plan '" + File("p.json", "{}") + "' -o plan.json"), 1, "p.json");
  ExpectError(Baton("report --bench '" + File("b.json", "[]") + "' -o page.html"), 1, "--bench");
}

TEST_F(Cli, AReportOfAPlanIsWritten) {
  const std::string plan =
      File("plan.json", R"({"format":"baton-plan","version":1,"model":{"architecture":"llama",
        "layers":2,"fingerprint":""},"budget":{"tokens":512,"sink":4,"recent":64},
        "layers":["select",{"reuse":0}]})");
  const std::string page = (folder_ / "page.html").string();
  const Outcome o = Baton("report --plan '" + plan + "' -o '" + page + "'");
  EXPECT_EQ(o.status, 0) << o.err;
  EXPECT_THAT(ReadAll(page), HasSubstr("</html>"));
  ExpectError(Baton("report --plan '" + plan + "' -o '" + page + ".absent/page.html'"), 1,
              "cannot write");
  ExpectError(Baton("report --plan '" + plan + "' -o /dev/full"), 1, "No space left");
}

TEST_F(Cli, AReportOfRoutedRunsIsWritten) {
  const auto run = [&](const std::string& name, const std::string& bitmap) {
    return "'" +
           File(name, R"({"format":"baton-run","routing":{"bitmap":")" + bitmap +
                          R"(","logits":[[0,1],[1,0]],"source":"exact",
        "held_token_equivalents":[9,3],"dense_token_equivalents":18}})") +
           "'";
  };
  const std::string page = (folder_ / "page.html").string();
  const std::string report = "report -o '" + page + "' --run-json ";
  const Outcome o = Baton(report + run("a.json", "FS") + " " + run("b.json", "FF"));
  EXPECT_EQ(o.status, 0) << o.err;
  EXPECT_THAT(ReadAll(page), HasSubstr("Request 2"));
  ExpectError(Baton(report + run("c.json", "FSF")), 1, "--run-json");
}

TEST_F(Cli, AnUnknownShapeIsToldTheKnownOnes) {
  const std::string model = (folder_ / "m.gguf").string();
  ExpectError(Baton("bench '" + model + "' --shape llama-2b"), 2, "llama-1b, llama-8b");
  EXPECT_FALSE(std::filesystem::exists(model));
}

TEST_F(Cli, AFileOfAnotherKindIsNoShape) {
  ExpectError(Baton("bench '" + File("m.gguf", "no model") + "' --shape llama-1b"), 1, "m.gguf");
  ExpectError(Baton("bench '" + (folder_ / "none" / "m.gguf").string() + "' --shape llama-1b"), 1,
              "none");
}

TEST_F(Cli, AnInterruptedShapeLeavesNoFile) {
  const std::filesystem::path models = folder_ / "models";
  std::filesystem::create_directory(models);
  const std::string command =
      std::string("timeout --preserve-status -s INT 0.3 '" BATON_PROGRAM "' bench '") +
      (models / "m.gguf").string() + "' --shape llama-8b 2>/dev/null";
  const int status = std::system(command.c_str());
  EXPECT_EQ(WIFEXITED(status) ? WEXITSTATUS(status) : -1, 130);
  EXPECT_TRUE(std::filesystem::is_empty(models));
}

TEST_F(Cli, AFullDiskIsAnError) {
  const Outcome o = Baton("--help", ">/dev/full");
  EXPECT_EQ(o.status, 1);
  EXPECT_THAT(o.err, HasSubstr("cannot write standard output"));
}

class CliWithModel : public Cli {
 protected:
  void SetUp() override {
    Cli::SetUp();
    if (!std::filesystem::exists(kModel)) GTEST_SKIP() << "needs " << kModel;
  }
};

TEST_F(CliWithModel, JsonIsTheOnlyThingOnStandardOutput) {
  const Outcome o = Baton(std::string("run ") + kModel +
                          " --raw --prompt 'The capital of France is' -n 4 --json");
  ASSERT_EQ(o.status, 0) << o.err;
  const auto json = nlohmann::json::parse(o.out, nullptr, false);
  ASSERT_FALSE(json.is_discarded()) << o.out;
  EXPECT_EQ(json["tokens"].size(), 4u);
  EXPECT_EQ(json["prompt_tokens"], 5);
  EXPECT_TRUE(json["text"].is_string());
}

TEST_F(CliWithModel, TheStreamedTextIsTheTextOfTheJson) {
  const std::string args = std::string("run ") + kModel + " --prompt 'Name a colour.' -n 6";
  const Outcome streamed = Baton(args), json = Baton(args + " --json");
  ASSERT_EQ(streamed.status, 0) << streamed.err;
  auto text = nlohmann::json::parse(json.out)["text"].get<std::string>();
  if (!text.ends_with('\n')) text += '\n';
  EXPECT_EQ(streamed.out, text);
}

TEST_F(CliWithModel, TokenizeParsesControlTokens) {
  const Outcome o = Baton(std::string("tokenize ") + kModel + " --prompt '<|im_start|>' --json");
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_EQ(nlohmann::json::parse(o.out)["tokens"].size(), 1u);
}

TEST_F(CliWithModel, APlanThatDoesNotFitNamesItsFile) {
  const std::string plan =
      File("plan.json", R"({"format":"baton-plan","version":1,"model":{"architecture":"llama",
        "layers":2,"fingerprint":""},"budget":{"tokens":512,"sink":4,"recent":64},
        "layers":["select",{"reuse":0}]})");
  ExpectError(Baton(std::string("run ") + kModel + " --prompt x --plan '" + plan + "'"), 1,
              "plan.json");
  const std::string typo = File("typo.json", R"({"format":"baton-plan","version":1,"layrs":[]})");
  ExpectError(Baton(std::string("run ") + kModel + " --prompt x --plan '" + typo + "'"), 1,
              "typo.json");
}

TEST_F(CliWithModel, RoutingIsShownAndRecorded) {
  const std::string router = (folder_ / "router.safetensors").string();
  ASSERT_TRUE(baton::WriteRouter(
                  router, baton::SyntheticRouter({.pool = 8, .sink = 4, .window = 16}, 30, 64, 1))
                  .ok());
  const std::string run =
      std::string("run ") + kModel + " --prompt 'Name a colour.' -n 4 --router '" + router + "' ";
  const Outcome shown = Baton(run + "--stats");
  EXPECT_EQ(shown.status, 0) << shown.err;
  EXPECT_THAT(shown.err, AllOf(HasSubstr("of 30 layers are windows, decided by the router (exact, "
                                         "16 prompt rows)"),
                               HasSubstr(" token-equivalents, ")));
  const Outcome json = Baton(run + "--json");
  ASSERT_EQ(json.status, 0) << json.err;
  const auto routing = nlohmann::json::parse(json.out)["routing"];
  const auto bitmap = routing["bitmap"].get<std::string>();
  EXPECT_THAT(shown.err, HasSubstr("routing  " + bitmap + "\n"));
  EXPECT_EQ(routing["source"], "exact");
  EXPECT_EQ(routing["rows_pooled"], 16);
  ASSERT_EQ(routing["logits"].size(), 30u);
  ASSERT_EQ(routing["held_token_equivalents"].size(), 30u);
  for (size_t l = 0; l < 30; ++l) {
    const bool full = routing["logits"][l][1] > routing["logits"][l][0];
    EXPECT_EQ(bitmap[l], full ? 'F' : 'S');
    const auto held = routing["held_token_equivalents"][l].get<int64_t>();
    EXPECT_EQ(held, full ? routing["dense_token_equivalents"].get<int64_t>() / 30 : 20);
  }
  EXPECT_THAT(Baton(run + "--stats --route-mask sparse").err,
              HasSubstr("30 of 30 layers are windows, decided by the mask"));
}

TEST_F(CliWithModel, AModelOfAnotherShapeIsRefusedBeforeItIsLoaded) {
  ExpectError(Baton(std::string("bench ") + kModel + " --shape llama-1b"), 1,
              "is no llama-1b: expected layers 16, width 2048, heads 32, KV heads 8, FFN width "
              "8192, vocabulary 128256, got 30, 576, 9, 3, 1536, 49152");
}

TEST_F(CliWithModel, AClosedOutputIsAnError) {
  const Outcome o =
      Baton(std::string("run ") + kModel + " --prompt 'Count to ten.' -n 8", ">/dev/full");
  EXPECT_EQ(o.status, 1);
  EXPECT_THAT(o.err, HasSubstr("cannot write standard output: No space left"));
}

}  // namespace
}  // namespace baton
