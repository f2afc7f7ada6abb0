// A client of the server under test, small enough to misbehave on purpose.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <utility>
#include <vector>

#include "server/json.h"

namespace baton::server::test {

struct HttpAnswer {
  int status = 0;  // 0: the connection ended before a whole answer
  std::string head, body;

  Json json() const { return Json::parse(body, nullptr, false); }
  // The documents of a stream's events but [DONE].
  std::vector<Json> events() const {
    std::vector<Json> all;
    for (size_t at = 0; (at = body.find("data: ", at)) != std::string::npos;) {
      const size_t end = body.find("\n\n", at);
      const std::string data = body.substr(at + 6, end - at - 6);
      if (data != "[DONE]") all.push_back(Json::parse(data, nullptr, false));
      at = end;
    }
    return all;
  }
  // The text of a stream's choice.
  std::string text(int index = 0) const {
    std::string text;
    for (const Json& e : events()) {
      for (const Json& c : e.value("choices", Json::array())) {
        if (c["index"] != index) continue;
        if (c.contains("text")) text += c["text"].get<std::string>();
        if (c.contains("delta")) text += c["delta"].value("content", "");
      }
    }
    return text;
  }
};

class Client {
 public:
  explicit Client(int port, int receive_buffer = 0) : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    if (receive_buffer > 0)
      setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
    const timeval patience{.tv_sec = 60};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_port = htons(static_cast<uint16_t>(port));
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = connect(fd_, reinterpret_cast<sockaddr*>(&at), sizeof at) == 0;
  }
  ~Client() { Close(); }
  Client(const Client&) = delete;

  bool connected() const { return connected_; }
  void Send(const std::string& bytes) {
    (void)!send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
  }
  void Ask(const std::string& method, const std::string& path, const std::string& body = "",
           const std::string& headers = "") {
    Send(method + " " + path + " HTTP/1.1\r\nHost: x\r\n" + headers +
         (body.empty() ? "" : "Content-Length: " + std::to_string(body.size()) + "\r\n") + "\r\n" +
         body);
  }
  // Reads on until what was received holds `part`; false if the connection ends first.
  bool ReadUntil(const std::string& part) {
    while (received_.find(part) == std::string::npos)
      if (!Receive()) return false;
    return true;
  }
  HttpAnswer Read() {
    HttpAnswer a;
    if (!ReadUntil("\r\n\r\n")) return a;
    a.head = Take(received_.find("\r\n\r\n") + 4);
    const int status = std::stoi(a.head.substr(a.head.find(' ') + 1));
    const size_t length = a.head.find("Content-Length: ");
    if (length != std::string::npos) {
      const size_t n = std::stoul(a.head.substr(length + 16));
      while (received_.size() < n)
        if (!Receive()) return a;
      a.body = Take(n);
    } else if (a.head.find("chunked") != std::string::npos) {
      while (true) {
        while (received_.find("\r\n") == std::string::npos)
          if (!Receive()) return a;
        const size_t n = std::stoul(received_, nullptr, 16), begin = received_.find("\r\n") + 2;
        while (received_.size() < begin + n + 2)
          if (!Receive()) return a;
        Take(begin);
        a.body += Take(n);
        Take(2);
        if (n == 0) break;
      }
    } else {
      while (Receive()) {
      }
      a.body = Take(received_.size());
    }
    a.status = status;
    return a;
  }
  // Whether the other side has closed the connection, now or before the client loses patience.
  bool Closed() {
    while (Receive()) {
    }
    return true;
  }
  void Close() {
    if (fd_ >= 0) close(fd_);
    fd_ = -1;
  }

 private:
  bool Receive() {
    char bytes[16384];
    const ssize_t n = recv(fd_, bytes, sizeof bytes, 0);
    if (n > 0) received_.append(bytes, static_cast<size_t>(n));
    return n > 0;
  }
  std::string Take(size_t n) {
    std::string taken = received_.substr(0, n);
    received_.erase(0, n);
    return taken;
  }

  int fd_ = -1;
  bool connected_ = false;
  std::string received_;
};

inline HttpAnswer Ask(int port, const std::string& method, const std::string& path,
                      const std::string& body = "", const std::string& headers = "") {
  Client client(port);
  client.Ask(method, path, body, headers);
  return client.Read();
}

}  // namespace baton::server::test
