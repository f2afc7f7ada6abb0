// The server as a whole: sockets, signals, and the threads behind them.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "server/service.h"

namespace baton::server {

struct ServerOptions {
  std::string host = "127.0.0.1";
  int port = 8080;  // 0: one that is free
  ServiceOptions service;

  int64_t connections = 2048;
  int64_t body_bytes = int64_t{16} << 20;       // of one request
  int64_t all_body_bytes = int64_t{256} << 20;  // of requests that are being read
  uint32_t header_bytes = 16 << 10;
  int64_t unread_bytes = int64_t{1} << 20;  // of a stream that its reader leaves behind
  std::chrono::seconds idle{75}, header{15}, body{60}, write{30};
  std::chrono::seconds grace{30};  // that a stop gives to answers in progress
};

struct ServerEvents {
  std::function<void(int port)> on_listening;
  std::function<void(const Model&)> on_ready;
  std::function<void()> on_stopping;
};

// Serves until SIGTERM or SIGINT, or until the model turns out not to load. A second signal does
// not wait for answers in progress. Errors: an address that cannot be listened on, `load`'s.
Status Serve(const ServerOptions& options, EngineThread::Loader load, const ServerEvents& events);

}  // namespace baton::server
