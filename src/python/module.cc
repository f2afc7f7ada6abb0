// The module _baton: the engine and its tools for python/baton, which gives them their Python face.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/function.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "baton/eval.h"
#include "baton/profile.h"
#include "engine/session.h"
#include "python/running.h"
#include "results/records.h"

namespace nb = nanobind;

namespace baton::python {
namespace {

// Errors become baton.Error, the text being Error::ToString().
struct Raised : std::runtime_error {
  using std::runtime_error::runtime_error;
};
template <typename T>
T Get(Result<T> r) {
  if (!r.ok()) throw Raised(r.error().ToString());
  return std::move(r).value();
}
void Check(const Status& s) {
  if (!s.ok()) throw Raised(s.error().ToString());
}

using Handle = std::shared_ptr<Running>;

// True once a signal's handler raised (Ctrl-C), which only the main thread finds. The exception
// stays set and is raised when the call returns to Python.
bool Interrupted() {
  const nb::gil_scoped_acquire lock;
  return PyErr_CheckSignals() != 0;
}
// With the interpreter's lock: raises what Interrupted found.
void RaiseIfInterrupted() {
  if (PyErr_Occurred()) throw nb::python_error();
}

// Runs long work alone on the engine and without the interpreter's lock. Ctrl-C, and an exception
// of the progress callback, end it at the next report of progress.
using PyProgress = std::optional<nb::callable>;
template <typename Work>
auto RunAlone(const Handle& running, const PyProgress& progress, Work work) {
  bool stopped = false;
  const OnProgress report = [&](double fraction, std::string_view what) {
    const nb::gil_scoped_acquire lock;
    if (stopped) return;
    try {
      if (progress) (*progress)(fraction, std::string(what));
      stopped = PyErr_CheckSignals() != 0;
    } catch (nb::python_error& error) {
      error.restore();
      stopped = true;
    }
    if (stopped) running->engine().Cancel();
  };
  auto result = [&] {
    const nb::gil_scoped_release unlocked;
    const Running::Alone alone(*running);
    auto done = work(report);
    if (stopped) running->engine().ResetCancel();
    return done;
  }();
  RaiseIfInterrupted();
  return Get(std::move(result));
}

template <typename E>
E OneOf(const std::string& what, const std::string& word,
        const std::vector<std::pair<const char*, E>>& words) {
  std::string known;
  for (const auto& [name, value] : words) {
    if (word == name) return value;
    known += (known.empty() ? "" : ", ") + std::string(name);
  }
  throw Raised(fmt::format("{}: expected one of {}, got {}", what, known, word));
}

Handle Load(const std::string& path, const std::string& backend, const std::string& kv, int threads,
            int64_t context, int64_t kv_tokens, const std::string& router,
            const std::string& chat_template) {
  EngineOptions o;
  o.backend = OneOf<Backend>(
      "backend", backend,
      {{"cpu", Backend::kCpu}, {"ref", Backend::kReference}, {"cuda", Backend::kCuda}});
  o.kv = OneOf<KvType>("kv", kv,
                       {{"bf16", KvType::kBF16}, {"f32", KvType::kF32}, {"int8", KvType::kInt8}});
  o.threads = threads;
  o.context = context;
  o.kv_tokens = kv_tokens;
  o.kv_contexts = 4;  // several threads share the engine
  o.router = router;
  o.chat_template = chat_template;
  const nb::gil_scoped_release unlocked;
  return std::make_shared<Running>(Get(Engine::Load(path, o)));
}

std::shared_ptr<Answer> Submit(const Handle& running, const Request& request) {
  const nb::gil_scoped_release unlocked;
  return Get(running->Submit(request));
}

std::optional<nb::str> Next(Answer& answer) {
  std::optional<std::string> piece;
  {
    const nb::gil_scoped_release unlocked;
    piece = answer.Next(Interrupted);
  }
  RaiseIfInterrupted();
  if (!piece) return std::nullopt;
  return nb::str(piece->c_str(), piece->size());
}

nb::list Logprobs(const std::vector<Generation::Logprobs>& all) {
  nb::list out;
  for (const Generation::Logprobs& l : all) {
    nb::list top;
    for (const TokenLogprob& t : l.top) top.append(nb::make_tuple(t.token, t.logprob));
    out.append(nb::make_tuple(l.chosen.token, l.chosen.logprob, top));
  }
  return out;
}

nb::bytes Utf8(const std::string& text) { return nb::bytes(text.data(), text.size()); }

// (text, tokens, stop, logprobs, prompt_logprobs, JSON of the statistics as `baton run --json`
// writes them)
nb::tuple ResultOf(const Answer& answer) {
  const Result<Generation>& result = answer.result();
  if (!result.ok()) throw Raised(result.error().ToString());
  const Generation& g = *result;
  results::RunRecord record{.generation = g};
  const std::string stats = results::ToJson(record).dump();
  return nb::make_tuple(Utf8(g.text), g.tokens, results::StopName(g.stop), Logprobs(g.logprobs),
                        Logprobs(g.prompt_logprobs), stats);
}

using Matrix = nb::ndarray<nb::numpy, float, nb::ndim<2>>;

// [tokens, vocab], each row as decode has it.
Matrix Logits(const Handle& running, const std::vector<int32_t>& tokens,
              const std::optional<Plan>& plan) {
  constexpr int64_t kRows = 64;  // of a pass
  Engine& engine = running->engine();
  const auto count = std::ssize(tokens);
  const int64_t vocab = engine.info().vocab;
  auto values = std::make_unique<std::vector<float>>();
  const auto run = [&]() -> Status {
    for (const int32_t t : tokens) {
      if (t < 0 || t >= vocab)
        return Error::InvalidArgument("token {} is outside the vocabulary of {}", t, vocab);
    }
    std::optional<ResolvedPlan> resolved;
    if (plan) {
      BATON_ASSIGN(resolved, engine.impl().ResolveUnrouted(*plan));
    }
    BATON_ASSIGN(
        Session session,
        Session::Create(engine, resolved ? resolved->caches : engine.impl().model_plan.caches,
                        std::max<int64_t>(1, count)));
    values->resize(static_cast<size_t>(count * vocab));
    for (int64_t at = 0; at < count; at += kRows) {
      const auto part = std::span(tokens).subspan(static_cast<size_t>(at),
                                                  static_cast<size_t>(std::min(kRows, count - at)));
      const auto keep = [&](int64_t first, View<const float> logits) {
        std::copy_n(logits.data(), logits.dim(0) * vocab, values->data() + (at + first) * vocab);
      };
      BATON_TRY(session.Decode(
          part, {.plan = resolved ? &*resolved : nullptr, .logit_rows = {}, .on_logits = keep}));
    }
    return {};
  };
  {
    const nb::gil_scoped_release unlocked;
    const Running::Alone alone(*running);
    Check(run());
  }
  float* data = values->data();
  nb::capsule owner(values.release(),
                    [](void* v) noexcept { delete static_cast<std::vector<float>*>(v); });
  return Matrix(data, {static_cast<size_t>(count), static_cast<size_t>(vocab)}, owner);
}

void BindRequest(nb::module_& m) {
  nb::class_<Request>(m, "Request")
      .def(nb::init<>())
      .def_rw("prompt", &Request::prompt)
      .def_rw("tokens", &Request::tokens)
      .def_rw("max_tokens", &Request::max_tokens)
      .def_rw("stop", &Request::stop)
      .def_rw("logprobs", &Request::logprobs)
      .def_rw("prompt_logprobs", &Request::prompt_logprobs)
      .def_rw("ignore_end", &Request::ignore_end)
      .def_rw("plan", &Request::plan, nb::arg().none())
      .def("add_turn",
           [](Request& r, const std::string& role, const std::string& content,
              const std::string& members) {
             r.chat.push_back({role, content, members});
           })
      .def("set_chat_options",
           [](Request& r, const std::string& tools, const std::string& variables) {
             r.chat_options = {tools, variables};
           })
      .def("set_sampling",
           [](Request& r, float temperature, int top_k, float top_p, float min_p, float repetition,
              float presence, float frequency, uint64_t seed) {
             r.sampling = {.temperature = temperature,
                           .top_k = top_k,
                           .top_p = top_p,
                           .min_p = min_p,
                           .repetition_penalty = repetition,
                           .presence_penalty = presence,
                           .frequency_penalty = frequency,
                           .seed = seed};
           })
      .def("set_exact",
           [](Request& r, const std::string& draft) {
             r.exact = ExactOptions{.plan = draft != "lookup", .lookup = draft != "plan"};
           })
      .def("set_route",
           [](Request& r, const std::string& mode, double margin, const std::string& mask) {
             r.route = RouteOptions{
                 .mode = OneOf<RouteOptions::Mode>("route", mode,
                                                   {{"exact", RouteOptions::Mode::kExact},
                                                    {"probe", RouteOptions::Mode::kProbe},
                                                    {"two_pass", RouteOptions::Mode::kTwoPass},
                                                    {"dense", RouteOptions::Mode::kDense}}),
                 .margin = margin,
                 .mask = mask};
           });
}

void BindPlans(nb::module_& m) {
  nb::class_<Plan>(m, "Plan", "Which layers attend how: a plan file (docs/plan-format.md).")
      .def_static("load", [](const std::string& path) { return Get(Plan::Load(path)); })
      .def_static("from_json", [](const std::string& json) { return Get(Plan::Parse(json)); })
      .def("to_json", &Plan::ToJson)
      .def("save", [](const Plan& p, const std::string& path) { Check(p.Save(path)); })
      .def("__repr__", [](const Plan& p) { return "<baton.Plan " + p.Summary() + ">"; });
  nb::class_<Profile>(m, "Profile", "What layers lose by attending to less (docs/planning.md).")
      .def_static("load", [](const std::string& path) { return Get(Profile::Load(path)); })
      .def_static("from_json", [](const std::string& json) { return Get(Profile::Parse(json)); })
      .def("to_json", &Profile::ToJson)
      .def("save", [](const Profile& p, const std::string& path) { Check(p.Save(path)); });
}

nb::tuple Search(const Handle& running, const Profile& profile, const PlanOptions& options,
                 const PyProgress& progress) {
  PlanSearch search = RunAlone(running, progress, [&](const OnProgress& report) {
    return SearchPlan(running->engine(), profile, options, report);
  });
  return nb::make_tuple(search.chosen.plan, ToJson(search));
}

void BindEngine(nb::module_& m) {
  nb::class_<Answer>(m, "Answer")
      .def("next", &Next)
      .def("cancel", &Answer::Cancel)
      .def("result", &ResultOf);

  nb::class_<Running>(m, "Engine")
      .def_static("load", &Load)
      .def("submit", &Submit)
      .def("info",
           [](const Handle& r) {
             results::InfoRecord record{};
             record.origin.model = r->engine().info();
             return results::ToJson(record).dump();
           })
      .def("tokenize", [](const Handle& r, const std::string& text, bool bos,
                          bool special) { return r->engine().Tokenize(text, bos, special); })
      .def("detokenize", [](const Handle& r, const std::vector<int32_t>& tokens,
                            bool special) { return Utf8(r->engine().Detokenize(tokens, special)); })
      .def("check_plan",
           [](const Handle& r, const Plan& plan) {
             std::vector<std::string> warnings;
             Check(r->engine().CheckPlan(plan, &warnings));
             return warnings;
           })
      .def("cache_bytes",
           [](const Handle& r, const Plan& plan, int64_t tokens) {
             const auto bytes = Get(r->engine().CacheBytes(plan, tokens));
             return nb::make_tuple(bytes.read, bytes.held, bytes.dense);
           })
      .def("held_bytes", [](const Handle& r) { return r->engine().cache_use().held_bytes; })
      .def("logits", &Logits, nb::arg("tokens"), nb::arg("plan").none())
      .def("profile",
           [](const Handle& r, const std::vector<std::string>& texts, int64_t context, int probes,
              uint64_t seed, const PyProgress& progress) {
             ProfileOptions o{.texts = texts, .context = context, .probes = probes, .seed = seed};
             return RunAlone(r, progress, [&](const OnProgress& report) {
               return MakeProfile(r->engine(), o, report);
             });
           })
      .def("plan",
           [](const Handle& r, const Profile& profile, double max_bytes, double max_kl,
              double max_held, double min_retrieval, int max_evaluations, bool dense_prompts,
              bool for_exact, const PyProgress& progress) {
             PlanOptions o;
             o.target = {.max_kl = max_kl,
                         .min_retrieval = min_retrieval,
                         .max_bytes = max_bytes,
                         .max_held = max_held};
             o.max_evaluations = max_evaluations;
             o.for_exact = for_exact;
             if (dense_prompts) o.prefills.clear();
             return Search(r, profile, o, progress);
           })
      .def("evaluate", [](const Handle& r, const std::string& text, const std::vector<Plan>& plans,
                          int64_t context, int64_t rows, int64_t max_windows, int needles,
                          uint64_t seed, const PyProgress& progress) {
        EvalOptions o{.plans = plans,
                      .context = context,
                      .rows = rows,
                      .max_windows = max_windows,
                      .needles = needles,
                      .seed = seed};
        const auto evaluated = RunAlone(r, progress, [&](const OnProgress& report) {
          return Evaluate(r->engine(), text, o, report);
        });
        results::OrderedJson out = results::OrderedJson::array();
        for (size_t i = 0; i < evaluated.size(); ++i)
          out.push_back(results::ToJson(
              results::PlanEval{.plan = plans[i].Summary(), .result = evaluated[i]}));
        return out.dump();
      });
}

}  // namespace
}  // namespace baton::python

NB_MODULE(_baton, m) {
  using namespace baton::python;
  m.attr("__version__") = BATON_VERSION;
  nb::exception<Raised>(m, "Error", PyExc_RuntimeError);
  BindRequest(m);
  BindPlans(m);
  BindEngine(m);
}
