#include "server/http.h"

#include <fmt/format.h>

#include <iterator>
#include <utility>

namespace baton::server {

std::string_view ReasonOf(int status) {
  static constexpr std::pair<int, std::string_view> kReasons[] = {
      {200, "OK"},
      {400, "Bad Request"},
      {401, "Unauthorized"},
      {404, "Not Found"},
      {405, "Method Not Allowed"},
      {408, "Request Timeout"},
      {413, "Content Too Large"},
      {429, "Too Many Requests"},
      {431, "Request Header Fields Too Large"},
      {500, "Internal Server Error"},
      {503, "Service Unavailable"},
  };
  for (const auto& [code, reason] : kReasons)
    if (code == status) return reason;
  return "Unknown";
}

namespace {

std::string Head(int status, std::string_view type, bool keep_alive) {
  return fmt::format("HTTP/1.1 {} {}\r\nContent-Type: {}\r\nConnection: {}\r\n", status,
                     ReasonOf(status), type, keep_alive ? "keep-alive" : "close");
}

}  // namespace

std::string WriteReply(const HttpReply& reply, bool keep_alive) {
  std::string text = Head(reply.status, reply.type, keep_alive);
  if (!reply.allow.empty()) text += fmt::format("Allow: {}\r\n", reply.allow);
  if (reply.status == 401) text += "WWW-Authenticate: Bearer\r\n";
  if (reply.retry_after_s > 0) text += fmt::format("Retry-After: {}\r\n", reply.retry_after_s);
  if (!reply.policy.empty())
    text += fmt::format(
        "Content-Security-Policy: {}\r\nX-Content-Type-Options: nosniff\r\n"
        "Referrer-Policy: no-referrer\r\nCache-Control: no-cache\r\n",
        reply.policy);
  fmt::format_to(std::back_inserter(text), "Content-Length: {}\r\n\r\n", reply.body.size());
  return text + reply.body;
}

std::string WriteStreamHead(bool keep_alive, bool chunked) {
  return Head(200, "text/event-stream", keep_alive && chunked) +
         (chunked ? "Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n"
                  : "Cache-Control: no-cache\r\n\r\n");
}

std::string Chunk(std::string_view bytes) {
  return fmt::format("{:x}\r\n{}\r\n", bytes.size(), bytes);
}

std::string SseEvent(std::string_view data) { return fmt::format("data: {}\n\n", data); }

std::string SseEvent(std::string_view name, std::string_view data) {
  return fmt::format("event: {}\ndata: {}\n\n", name, data);
}

}  // namespace baton::server
