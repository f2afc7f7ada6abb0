// The one file that includes Boost: Asio's event loop, and Beast's parser of HTTP.
#include "server/server.h"

#include <fmt/format.h>
#include <netinet/tcp.h>
#include <sys/resource.h>

#include <array>
#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <csignal>
#include <memory>
#include <optional>
#include <unordered_set>
#include <utility>

namespace baton::server {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using boost::system::error_code;
using tcp = asio::ip::tcp;

constexpr Clock::time_point kNever = Clock::time_point::max();
constexpr size_t kReadBytes = 8 << 10;
constexpr std::chrono::seconds kLinger{2};
constexpr std::chrono::milliseconds kTick{100};

class Session;

// What the sessions share.
struct Hub {
  const ServerOptions& options;
  Service& service;
  std::unordered_set<std::shared_ptr<Session>> sessions;
  // That requests may come to which are being read, or wait for the worker.
  std::shared_ptr<std::atomic<int64_t>> body_bytes = std::make_shared<std::atomic<int64_t>>(0);
  bool draining = false;
};

// One connection: requests one after the other, each answered before the next is looked at.
class Session : public Exchange, public std::enable_shared_from_this<Session> {
 public:
  Session(tcp::socket socket, Hub& hub)
      : socket_(std::move(socket)), hub_(hub), deadline_(Clock::now() + hub.options.idle) {}

  void Run() {
    error_code ignored;
    socket_.set_option(tcp::no_delay(true), ignored);
    socket_.set_option(asio::socket_base::keep_alive(true), ignored);
    SetTcp(TCP_KEEPIDLE, 30);
    SetTcp(TCP_KEEPINTVL, 10);
    SetTcp(TCP_KEEPCNT, 3);
    SetTcp(TCP_USER_TIMEOUT, 30000);  // bytes that nobody acknowledges
    Read();
  }

  // Exchange
  void Reply(HttpReply reply) override {
    std::string bytes = WriteReply(reply, KeepAlive());
    if (head_only_) bytes.resize(bytes.size() - reply.body.size());
    out_ += bytes;
    EndAnswer();
  }
  void BeginStream() override {
    streaming_ = true;
    if (!chunked_) keep_alive_ = false;
    out_ += WriteStreamHead(KeepAlive(), chunked_);
    Flush();
  }
  void Write(std::string_view events) override {
    if (closed_ || slow_) return;
    out_ += chunked_ ? Chunk(events) : std::string(events);
    if (std::ssize(out_) > hub_.options.unread_bytes) {
      slow_ = true;  // ends when the loop comes back, see Exchange
      asio::post(socket_.get_executor(), [self = shared_from_this()] { self->TooSlow(); });
      return;
    }
    Flush();
  }
  void EndStream() override {
    if (chunked_) out_ += kLastChunk;
    EndAnswer();
  }

  void Tick(Clock::time_point now) {
    if (now < deadline_) return;
    if (!writing_.empty()) return TooSlow();
    if (parser_ && !answering_) return Refuse(408, "the request did not arrive in time");
    Close();
  }
  // For a stop: connections that wait for a request go at once.
  void CloseIfIdle() {
    keep_alive_ = false;
    if (!answering_ && !parser_ && writing_.empty() && out_.empty()) Close();
  }
  void Close() {
    if (closed_) return;
    closed_ = true;
    const auto self = shared_from_this();  // what lets go of it below may be the last to hold it
    error_code ignored;
    socket_.close(ignored);
    ReleaseBody();
    hub_.sessions.erase(self);
    hub_.service.connections = std::ssize(hub_.sessions);
    if (auto gone = std::exchange(on_gone, nullptr)) gone();
  }

 private:
  bool KeepAlive() const { return keep_alive_ && !hub_.draining; }
  void SetTcp(int name, int value) {
    setsockopt(socket_.native_handle(), IPPROTO_TCP, name, &value, sizeof value);
  }

  // There is always a read, so that a client that leaves is noticed, unless it sends ahead more
  // than a buffer.
  void Read() {
    if (reading_ || closed_ || (answering_ && in_.size() >= kReadBytes)) return;
    reading_ = true;
    socket_.async_read_some(asio::buffer(read_buffer_),
                            [self = shared_from_this()](error_code error, size_t n) {
                              self->reading_ = false;
                              self->OnRead(error, n);
                            });
  }
  void OnRead(error_code error, size_t n) {
    if (closed_) return;
    if (error) return Close();
    if (!lingering_) in_.append(read_buffer_.data(), n);
    Parse();
    Read();
  }

  void Parse() {
    while (!answering_ && !lingering_ && !closed_ && !in_.empty()) {
      if (!parser_) Begin();
      error_code error;
      const size_t used = parser_->put(asio::buffer(in_), error);
      in_.erase(0, used);
      if (error && error != http::error::need_more) return RefuseBytes(error);
      if (parser_->is_header_done() && !header_seen_ && !OnHeader()) return;
      if (parser_->is_done()) {
        Dispatch();
      } else if (used == 0) {
        return;
      }
    }
  }

  void Begin() {
    parser_.emplace();
    parser_->header_limit(hub_.options.header_bytes);
    parser_->body_limit(static_cast<uint64_t>(hub_.options.body_bytes));
    parser_->eager(true);
    header_seen_ = false;
    deadline_ = Clock::now() + hub_.options.header;
  }

  // False if the request was refused.
  bool OnHeader() {
    header_seen_ = true;
    deadline_ = Clock::now() + hub_.options.body;
    const auto length = parser_->content_length();
    body_bytes_ = length               ? static_cast<int64_t>(*length)
                  : parser_->chunked() ? hub_.options.body_bytes
                                       : 0;
    if (*hub_.body_bytes + body_bytes_ > hub_.options.all_body_bytes) {
      body_bytes_ = 0;
      Refuse(503, "too many bytes of requests are being read");
      return false;
    }
    *hub_.body_bytes += body_bytes_;
    const auto& head = parser_->get();
    if (head[http::field::expect] == "100-continue" && !parser_->is_done()) {
      out_ += "HTTP/1.1 100 Continue\r\n\r\n";
      Flush();
    }
    return true;
  }
  void ReleaseBody() { *hub_.body_bytes -= std::exchange(body_bytes_, 0); }

  void Dispatch() {
    auto message = parser_->release();
    parser_.reset();
    std::shared_ptr<void> room(
        nullptr,
        [all = hub_.body_bytes, bytes = std::exchange(body_bytes_, 0)](void*) { *all -= bytes; });
    const auto text = [](auto view) { return std::string(view.data(), view.size()); };
    HttpRequest request{.method = text(message.method_string()),
                        .path = text(message.target()),
                        .key = text(message["x-api-key"]),
                        .body = std::move(message.body()),
                        .room = std::move(room)};
    request.path = request.path.substr(0, request.path.find_first_of("?#"));
    const std::string authorization = text(message[http::field::authorization]);
    if (authorization.starts_with("Bearer ")) request.key = authorization.substr(7);
    keep_alive_ = message.keep_alive();
    chunked_ = message.version() >= 11;
    head_only_ = request.method == "HEAD";
    answering_ = true;
    deadline_ = kNever;
    hub_.service.Handle(std::move(request), shared_from_this());
  }

  // Bytes that are no request, or too many.
  void RefuseBytes(error_code error) {
    if (error == http::error::header_limit) return Refuse(431, "the header is too large");
    if (error == http::error::body_limit)
      return Refuse(413, fmt::format("the body is larger than {} bytes", hub_.options.body_bytes));
    Refuse(400, "not a request of HTTP/1.1: " + error.message());
  }
  void Refuse(int status, std::string message) {
    parser_.reset();
    ReleaseBody();
    keep_alive_ = false;
    answering_ = true;
    hub_.service.metrics().replies[status]++;
    Reply(ReplyOf({.status = status, .message = std::move(message)}));
  }

  void EndAnswer() {
    on_gone = nullptr;
    ended_ = true;
    Flush();
  }

  void Flush() {
    if (closed_ || !writing_.empty()) return;
    if (out_.empty()) {
      deadline_ = kNever;
      if (ended_) NextRequest();
      return;
    }
    writing_.swap(out_);
    written_ = 0;
    WriteSome();
  }
  void WriteSome() {
    deadline_ = Clock::now() + hub_.options.write;
    socket_.async_write_some(
        asio::buffer(writing_.data() + written_, writing_.size() - written_),
        [self = shared_from_this()](error_code error, size_t n) { self->OnWritten(error, n); });
  }
  void OnWritten(error_code error, size_t n) {
    if (closed_) return;
    if (error) return Close();
    written_ += n;
    if (written_ < writing_.size()) return WriteSome();
    writing_.clear();
    if (writing_.capacity() > kReadBytes) writing_.shrink_to_fit();
    Flush();
  }

  void NextRequest() {
    ended_ = streaming_ = head_only_ = answering_ = false;
    if (!KeepAlive()) {
      // What the client is still sending is read for a while: closing now would reset the
      // connection and could take the answer with it.
      error_code ignored;
      socket_.shutdown(tcp::socket::shutdown_send, ignored);
      lingering_ = true;
      in_.clear();
      deadline_ = Clock::now() + kLinger;
      return Read();
    }
    deadline_ = Clock::now() + hub_.options.idle;
    Parse();
    Read();
  }

  void TooSlow() {
    if (closed_) return;
    hub_.service.metrics().slow_readers++;
    Close();
  }

  tcp::socket socket_;
  Hub& hub_;
  std::array<char, kReadBytes> read_buffer_;
  std::string in_, out_, writing_;  // writing_: what a write in progress has
  size_t written_ = 0;
  std::optional<http::request_parser<http::string_body>> parser_;  // of a request that arrives
  int64_t body_bytes_ = 0;                                         // of hub_.body_bytes
  Clock::time_point deadline_;
  bool reading_ = false, header_seen_ = false;
  bool answering_ = false, ended_ = false;  // from the request to the last byte of its answer
  bool streaming_ = false, chunked_ = true, keep_alive_ = true, head_only_ = false;
  bool lingering_ = false, closed_ = false, slow_ = false;
};

class Server {
 public:
  Server(const ServerOptions& options, const ServerEvents& events)
      : options_(options), events_(events) {}

  Status Run(EngineThread::Loader load) {
    RaiseFileLimit();
    BATON_TRY(Listen());
    if (events_.on_listening) events_.on_listening(acceptor_.local_endpoint().port());
    {
      EngineThread engine(std::move(load), [this] { asio::post(io_, [this] { OnEngine(); }); });
      Service service(
          options_.service, engine,
          [this](Service::Task task) { asio::post(worker_, std::move(task)); },
          [this](Service::Task task) { asio::post(io_, std::move(task)); });
      engine_ = &engine;
      service_ = &service;
      Hub hub{.options = options_, .service = service};
      hub_ = &hub;
      Accept();
      WaitForSignal();
      WaitForTick();
      io_.run();
      worker_.join();
      while (!hub.sessions.empty()) (*hub.sessions.begin())->Close();
      io_.restart();
      io_.poll();  // completions of what was closed
    }
    return failed_ ? Status(*failed_) : Status::Ok();
  }

 private:
  // Shells allow 1,024 files where the system would allow more.
  static void RaiseFileLimit() {
    struct rlimit files {};
    if (getrlimit(RLIMIT_NOFILE, &files) != 0) return;
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
  }

  Status Listen() {
    error_code error;
    const asio::ip::address address = asio::ip::make_address(options_.host, error);
    if (error)
      return Error::InvalidArgument("--host: expected an IP address, got {}", options_.host);
    const tcp::endpoint at(address, static_cast<uint16_t>(options_.port));
    acceptor_.open(at.protocol(), error);
    if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
    if (!error) acceptor_.bind(at, error);
    if (!error) acceptor_.listen(4096, error);
    if (error)
      return Error::Io("cannot listen on {} port {}: {}", options_.host, options_.port,
                       error.message())
          .Hint("choose another --port");
    return Status::Ok();
  }

  void Accept() {
    accepting_ = true;
    acceptor_.async_accept([this](error_code error, tcp::socket socket) {
      accepting_ = false;
      if (hub_->draining) return;
      if (error) return;  // no file is left, for example: the next tick tries again
      if (std::ssize(hub_->sessions) >= options_.connections) {
        RefuseConnection(std::move(socket));
      } else {
        service_->metrics().connections_opened++;
        auto session = std::make_shared<Session>(std::move(socket), *hub_);
        hub_->sessions.insert(session);
        service_->connections = std::ssize(hub_->sessions);
        session->Run();
      }
      Accept();
    });
  }
  void RefuseConnection(tcp::socket socket) {
    service_->metrics().connections_refused++;
    error_code ignored;
    socket.non_blocking(true, ignored);
    const HttpReply reply =
        ReplyOf({.status = 503, .message = "too many connections", .code = "too_many_connections"});
    socket.write_some(asio::buffer(WriteReply(reply, /*keep_alive=*/false)), ignored);
    socket.shutdown(tcp::socket::shutdown_send, ignored);
  }

  void WaitForSignal() {
    signals_.async_wait([this](error_code error, int) {
      if (error) return;
      if (hub_->draining) {
        stop_at_ = Clock::now();
      } else {
        Drain();
      }
      WaitForSignal();
    });
  }

  void Drain() {
    if (events_.on_stopping) events_.on_stopping();
    hub_->draining = true;
    service_->Drain();
    error_code ignored;
    acceptor_.close(ignored);
    stop_at_ = Clock::now() + options_.grace;
    const auto sessions = hub_->sessions;  // they leave the set as they close
    for (const auto& session : sessions) session->CloseIfIdle();
    if (!engine_->model()) io_.stop();
  }

  void WaitForTick() {
    tick_.expires_after(kTick);
    tick_.async_wait([this](error_code error) {
      if (error) return;
      OnTick(Clock::now());
      WaitForTick();
    });
  }
  void OnTick(Clock::time_point now) {
    const auto sessions = hub_->sessions;
    for (const auto& session : sessions) session->Tick(now);
    service_->Tick(now);
    if (!hub_->draining) {
      if (!accepting_) Accept();
      return;
    }
    if (now >= stop_at_ && !aborted_) {
      aborted_ = true;
      service_->Abort();
      stop_at_ = now + kLinger;
    }
    if ((service_->idle() && hub_->sessions.empty()) || (aborted_ && now >= stop_at_)) io_.stop();
  }

  void OnEngine() {
    if (!ready_) {
      if (auto error = engine_->load_error()) {
        failed_ = std::move(error);
        return io_.stop();
      }
      ready_ = true;
      if (events_.on_ready) events_.on_ready(*engine_->model());
    }
    service_->TakeEvents();
  }

  const ServerOptions& options_;
  const ServerEvents& events_;
  asio::io_context io_{1};
  asio::thread_pool worker_{1};
  tcp::acceptor acceptor_{io_};
  asio::signal_set signals_{io_, SIGINT, SIGTERM};
  asio::steady_timer tick_{io_};
  EngineThread* engine_ = nullptr;
  Service* service_ = nullptr;
  Hub* hub_ = nullptr;
  bool accepting_ = false, ready_ = false, aborted_ = false;
  Clock::time_point stop_at_ = kNever;
  std::optional<Error> failed_;
};

}  // namespace

Status Serve(const ServerOptions& options, EngineThread::Loader load, const ServerEvents& events) {
  Server server(options, events);
  return server.Run(std::move(load));
}

}  // namespace baton::server
