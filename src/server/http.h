// HTTP as the server's other parts see it: a request that was read, and the bytes of answers.
#pragma once

#include <memory>
#include <string>
#include <string_view>

namespace baton::server {

struct HttpRequest {
  std::string method, path;  // path: without the query
  std::string key;           // of "Authorization: Bearer KEY" or "x-api-key: KEY"
  std::string body;
  std::shared_ptr<void> room;  // that the body takes among all bodies; may be released anywhere
};

struct HttpReply {
  int status = 200;
  std::string body;
  std::string type = "application/json";
  std::string allow;      // of 405: the method that there is
  int retry_after_s = 0;  // 0: no such header
  std::string policy;     // of a web page: its Content-Security-Policy; empty: this is none
};

std::string_view ReasonOf(int status);

// A whole answer: head and body.
std::string WriteReply(const HttpReply& reply, bool keep_alive);
// The head of an answer whose length is not known: a stream of events. Without chunks the end of
// the connection is its end (HTTP/1.0).
std::string WriteStreamHead(bool keep_alive, bool chunked);
std::string Chunk(std::string_view bytes);
inline constexpr std::string_view kLastChunk = "0\r\n\r\n";

// Server-sent events. `data` holds no line breaks, as JSON that is written on one line.
std::string SseEvent(std::string_view data);
std::string SseEvent(std::string_view name, std::string_view data);
inline constexpr std::string_view kSseKeepAlive = ": keep-alive\n\n";

}  // namespace baton::server
