// A server with a tiny model, in this process.
#pragma once

#include <csignal>
#include <future>
#include <thread>

#include "server/server.h"
#include "tests/attention/engine_test_util.h"
#include "tests/server/client.h"

namespace baton::server::test {

// Writes one letter of every token but the control tokens, so that each token has a text.
constexpr const char* kTemplate =
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}";

inline baton::test::BackendCase TinyCase() { return {"ref", Backend::kReference, KvType::kF32, 0}; }

inline SyntheticSpec ServedSpec() {
  SyntheticSpec spec = baton::test::TinySpec();
  spec.layers = 2;
  spec.width = 32;
  spec.heads = 2;
  spec.kv_heads = 1;
  spec.head_dim = 16;
  return spec;
}

inline Result<Model> LoadTiny(EngineOptions options = {}) {
  Model m;
  if (options.chat_template.empty()) options.chat_template = kTemplate;
  options.kv_contexts = 4;
  options.threads = 1;
  m.engine = baton::test::LoadEngine(ServedSpec(), TinyCase(), options);
  m.name = "tiny";
  Plan plan = Plan::Dense(2);
  plan.budget = {16, 0};
  plan.sink = 2;
  plan.recent = 4;
  plan.layers[0].role = Role::kSelect;
  plan.layers[1].role = Role::kReuse;
  m.plans.emplace("sparse", plan);
  return m;
}

class TestServer {
 public:
  explicit TestServer(
      ServerOptions options = {}, EngineThread::Loader load = [] { return LoadTiny(); }) {
    options.port = 0;
    std::promise<int> port;
    std::promise<void> ready;
    std::future<int> listening = port.get_future();
    ready_ = ready.get_future();
    thread_ = std::thread([this, options, load = std::move(load), port = std::move(port),
                           ready = std::move(ready)]() mutable {
      status_ = Serve(options, std::move(load),
                      {.on_listening = [&](int p) { port.set_value(p); },
                       .on_ready = [&](const Model&) { ready.set_value(); }});
    });
    port_ = listening.get();
  }
  ~TestServer() { (void)Stop(); }

  TestServer& Ready() {
    ready_.wait();
    return *this;
  }
  int port() const { return port_; }
  void Signal() { kill(getpid(), SIGTERM); }
  Status Stop() {
    if (!thread_.joinable()) return status_;
    Signal();
    return Wait();
  }
  Status Wait() {
    if (thread_.joinable()) thread_.join();
    return status_;
  }
  HttpAnswer Post(const std::string& path, const Json& body, const std::string& headers = "") {
    return Ask(port_, "POST", path, body.dump(), headers);
  }
  // A value of /metrics, -1 if it is not there.
  double Metric(const std::string& name) {
    const std::string text = Ask(port_, "GET", "/metrics").body;
    const size_t at = text.find("\n" + name + "{");
    if (at == std::string::npos) return -1;
    return std::stod(text.substr(text.find("} ", at) + 2));
  }
  // Waits until it has the value, at most 20 s.
  bool Becomes(const std::string& name, double value) {
    for (int i = 0; i < 400; ++i) {
      if (Metric(name) == value) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    return false;
  }

 private:
  int port_ = 0;
  std::future<void> ready_;
  std::thread thread_;
  Status status_;
};

}  // namespace baton::server::test
