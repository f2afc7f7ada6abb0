// Errors are values: what happened, what was expected, what was found, and a hint for the user.
// Bugs abort (BATON_CHECK in base/check.h); bad input returns an Error.
#pragma once

#include <fmt/format.h>

#include <optional>
#include <string>
#include <utility>
#include <variant>

namespace baton {

class [[nodiscard]] Error {
 public:
  enum class Code {
    kInvalidArgument,
    kNotFound,
    kIo,
    kCorrupt,
    kUnsupported,
    kCancelled,
    kResource
  };

  Error(Code code, std::string message) : code_(code), message_(std::move(message)) {}

  template <typename... A>
  static Error InvalidArgument(fmt::format_string<A...> f, A&&... a) {
    return {Code::kInvalidArgument, fmt::format(f, std::forward<A>(a)...)};
  }
  template <typename... A>
  static Error NotFound(fmt::format_string<A...> f, A&&... a) {
    return {Code::kNotFound, fmt::format(f, std::forward<A>(a)...)};
  }
  template <typename... A>
  static Error Io(fmt::format_string<A...> f, A&&... a) {
    return {Code::kIo, fmt::format(f, std::forward<A>(a)...)};
  }
  // A file whose content contradicts itself or its format.
  template <typename... A>
  static Error Corrupt(fmt::format_string<A...> f, A&&... a) {
    return {Code::kCorrupt, fmt::format(f, std::forward<A>(a)...)};
  }
  // Well-formed, but something Baton does not do.
  template <typename... A>
  static Error Unsupported(fmt::format_string<A...> f, A&&... a) {
    return {Code::kUnsupported, fmt::format(f, std::forward<A>(a)...)};
  }
  template <typename... A>
  static Error Resource(fmt::format_string<A...> f, A&&... a) {
    return {Code::kResource, fmt::format(f, std::forward<A>(a)...)};
  }
  static Error Cancelled() { return {Code::kCancelled, "interrupted"}; }

  Error&& Hint(std::string hint) && {
    hint_ = std::move(hint);
    return std::move(*this);
  }
  // Puts the place of the error (a file, a layer) before its message.
  Error&& At(const std::string& place) && {
    message_ = place + ": " + message_;
    return std::move(*this);
  }

  Code code() const { return code_; }
  const std::string& message() const { return message_; }
  const std::string& hint() const { return hint_; }
  // One line: the message, then the hint in brackets.
  std::string ToString() const {
    return hint_.empty() ? message_ : message_ + " (hint: " + hint_ + ")";
  }

 private:
  Code code_;
  std::string message_;
  std::string hint_;
};

template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : v_(std::in_place_index<0>, std::move(value)) {}
  Result(Error error) : v_(std::in_place_index<1>, std::move(error)) {}

  bool ok() const { return v_.index() == 0; }
  explicit operator bool() const { return ok(); }
  T& value() & { return std::get<0>(v_); }
  const T& value() const& { return std::get<0>(v_); }
  T&& value() && { return std::get<0>(std::move(v_)); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }
  const Error& error() const& { return std::get<1>(v_); }
  Error&& error() && { return std::get<1>(std::move(v_)); }

 private:
  std::variant<T, Error> v_;
};

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Error error) : error_(std::move(error)) {}
  static Status Ok() { return {}; }
  bool ok() const { return !error_.has_value(); }
  explicit operator bool() const { return ok(); }
  const Error& error() const& { return *error_; }
  Error&& error() && { return *std::move(error_); }

 private:
  std::optional<Error> error_;
};

// Returns from the enclosing function when the expression is an error.
#define BATON_TRY(expr)                                           \
  do {                                                            \
    if (auto _s = (expr); !_s.ok()) return std::move(_s).error(); \
  } while (0)

// BATON_ASSIGN(auto x, F()): x becomes the value, or the function returns the error.
#define BATON_ASSIGN(lhs, expr) BATON_ASSIGN_(lhs, expr, BATON_CAT_(_r, __LINE__))
#define BATON_CAT2_(a, b) a##b
#define BATON_CAT_(a, b) BATON_CAT2_(a, b)
#define BATON_ASSIGN_(lhs, expr, tmp)           \
  auto tmp = (expr);                            \
  if (!tmp.ok()) return std::move(tmp).error(); \
  lhs = std::move(tmp).value()

}  // namespace baton
