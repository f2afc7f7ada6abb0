#include "server/api_error.h"

#include "server/json.h"

namespace baton::server {
namespace {

Json OrNull(const std::string& text) { return text.empty() ? Json() : Json(text); }

}  // namespace

ApiError ApiError::From(const Error& error) {
  ApiError e{.message = error.ToString()};
  switch (error.code()) {
    case Error::Code::kInvalidArgument:
    case Error::Code::kNotFound:
    case Error::Code::kUnsupported:
      break;
    case Error::Code::kCancelled:
      e.status = 503;
      e.code = "cancelled";
      break;
    case Error::Code::kResource:
      e.code = "context_length_exceeded";
      break;
    case Error::Code::kIo:
    case Error::Code::kCorrupt:
      e.status = 500;
      break;
  }
  return e;
}

std::string_view TypeOf(const ApiError& error) {
  switch (error.status) {
    case 401:
      return "authentication_error";
    case 404:
      return "not_found_error";
    case 429:
      return "rate_limit_error";
    case 500:
      return "server_error";
    case 503:
      return "overloaded_error";
    default:
      return "invalid_request_error";
  }
}

std::string WriteError(const ApiError& error) {
  return Dump({{"error",
                {{"message", error.message},
                 {"type", TypeOf(error)},
                 {"param", OrNull(error.param)},
                 {"code", OrNull(error.code)}}}});
}

std::string WriteMessagesError(const ApiError& error) {
  return Dump(
      {{"type", "error"}, {"error", {{"type", TypeOf(error)}, {"message", error.message}}}});
}

HttpReply ReplyOf(const ApiError& error) {
  HttpReply reply{.status = error.status, .body = WriteError(error)};
  if (error.status == 429 || error.status == 503) reply.retry_after_s = 1;
  return reply;
}

}  // namespace baton::server
