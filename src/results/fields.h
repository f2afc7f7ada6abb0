// A record's fields are listed once: Fields(visitor, record) in records.h and profile_fields.h
// names each key beside its member, and the visitors here write the list as JSON and read it back.
// A visitor has
//   v(key, member)            a value, a list or a record with a list of its own
//   v(key, member, absent)    the same; what it reads as where the key is absent
//   v.NonEmpty(key, member)   a list, text or optional that is left out where it is empty
//   v.Word(key, e, {words})   an enum by the words of its values
//   v.Sized(key, list, sizes) a list whose size other members call for
//   v.Object(key, [&](auto& inner))         an object that is no struct of its own
//   v.Object(key, given, [&](auto& inner))  the same; left out unless it is given
// Visitors take the record as mutable, so that one list serves both; writing does not change it.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "baton/error.h"

namespace baton::results {

using Json = nlohmann::json;                 // keys sorted
using OrderedJson = nlohmann::ordered_json;  // keys in the order of the list

template <typename T, typename V>
concept ListedFor = requires(V& v, T& record) {
  Fields(v, record);
};

template <typename J>
class Writer {
 public:
  static constexpr bool kReads = false;
  explicit Writer(J& object) : object_(object) {}

  template <typename T>
  void operator()(const char* key, const T& value, const std::type_identity_t<T>& = {}) {
    object_[key] = Encode(value);
  }
  void NonEmpty(const char* key, const auto& value) {
    if (!value.empty()) (*this)(key, value);
  }
  template <typename E>
  void NonEmpty(const char* key, const std::optional<E>& value) {
    if (value) (*this)(key, value);
  }
  void Word(const char* key, auto value, std::initializer_list<const char*> words) {
    object_[key] = words.begin()[std::min(static_cast<size_t>(value), words.size() - 1)];
  }
  void Sized(const char* key, const auto& list, auto...) { (*this)(key, list); }
  void Object(const char* key, const auto& fields) { Object(key, true, fields); }
  void Object(const char* key, bool given, const auto& fields) {
    if (!given) return;
    Writer inner(object_[key] = J::object());
    fields(inner);
  }

  template <typename T>
  static J Encode(const T& value) {
    if constexpr (ListedFor<T, Writer>) {
      J object = J::object();
      Writer writer(object);
      Fields(writer, const_cast<T&>(value));
      return object;
    } else {
      return J(value);
    }
  }
  template <typename E>
  static J Encode(const std::optional<E>& value) {
    return value ? Encode(*value) : J(nullptr);
  }
  template <typename E>
  static J Encode(const std::vector<E>& list) {
    J array = J::array();
    for (const E& item : list) array.push_back(Encode(item));
    return array;
  }

 private:
  J& object_;
};

// Reads what is there. A member whose key is absent or of another kind reads as absent: NaN, 0, an
// empty text, list or optional, unless the list of fields says otherwise. The first such key is the
// problem, which only strict readers look at. Floats of a list keep their places, null, as JSON
// writes what is not finite, being NaN; other items of another kind are left out.
class Reader {
 public:
  static constexpr bool kReads = true;
  // Without an object every member is absent.
  Reader(const Json* object, std::string& problem)
      : object_(object && object->is_object() ? object : nullptr), problem_(problem) {}

  template <typename T>
  void operator()(const char* key, T& value, const std::type_identity_t<T>& absent = Absent<T>()) {
    if (!Take(key, value, absent)) Problem("is missing");
  }
  void NonEmpty(const char* key, auto& value) { Take(key, value, {}); }
  template <typename E>
  void Word(const char* key, E& value, std::initializer_list<const char*> words) {
    std::string word;
    (*this)(key, word);
    const auto it = std::find(words.begin(), words.end(), word);
    value = static_cast<E>(it == words.end() ? 0 : it - words.begin());
    if (it == words.end()) Problem(fmt::format("must be one of: {}", fmt::join(words, ", ")));
  }
  void Sized(const char* key, auto& list, auto...) { (*this)(key, list); }
  void Object(const char* key, const auto& fields) { Object(key, true, fields); }
  void Object(const char* key, bool, const auto& fields) {
    const Json* found = Find(key);
    if (!found || !found->is_object()) Problem("must be an object");
    Reader inner(found, problem_);
    fields(inner);
  }

 private:
  template <typename T>
  static T Absent() {
    if constexpr (std::floating_point<T>) return std::numeric_limits<T>::quiet_NaN();
    return T();
  }
  const Json* Find(const char* key) {
    key_ = key;
    return object_ && object_->contains(key) ? &(*object_)[key] : nullptr;
  }
  void Problem(std::string_view what) {
    if (problem_.empty()) problem_ = fmt::format("\"{}\" {}", key_, what);
  }
  bool WrongKind() {
    Problem("is of the wrong kind, or a number in it is out of range");
    return false;
  }

  // Whether the key is there.
  template <typename T>
  bool Take(const char* key, T& value, const T& absent) {
    const Json* found = Find(key);
    value = absent;
    if (found) {
      Convert(*found, value);
    } else if constexpr (ListedFor<T, Reader>) {
      Reader nothing(nullptr, problem_);
      Fields(nothing, value);
    }
    return found != nullptr;
  }

  // Each returns whether the value is one of T, and leaves `to` as it is if not.
  template <typename T>
  bool Convert(const Json& json, T& to) {
    if constexpr (ListedFor<T, Reader>) {
      Reader inner(&json, problem_);
      Fields(inner, to);
      return json.is_object() || WrongKind();
    } else {
      const T* held = json.get_ptr<const T*>();
      if (held) to = *held;
      return held || WrongKind();
    }
  }
  template <typename E>
  bool Convert(const Json& json, std::optional<E>& to) {
    E value = Absent<E>();
    if (!json.is_null() && Convert(json, value)) to = std::move(value);
    return true;
  }
  template <typename E>
  bool Convert(const Json& json, std::vector<E>& to) {
    if (!json.is_array()) return WrongKind();
    for (const Json& item : json) {
      E value = Absent<E>();
      if (Convert(item, value) || std::floating_point<E>) to.push_back(std::move(value));
    }
    return true;
  }
  template <typename E, size_t N>
  bool Convert(const Json& json, std::array<E, N>& to) {
    std::vector<E> items;
    if (!Convert(json, items) || items.size() != N) return WrongKind();
    std::copy(items.begin(), items.end(), to.begin());
    return true;
  }
  // The library's own conversions would let a number out of range become any other.
  template <std::integral T>
  requires(!std::same_as<T, bool>) bool Convert(const Json& json, T& to) {
    const auto take = [&](auto number) {
      if (std::in_range<T>(number)) to = static_cast<T>(number);
      return std::in_range<T>(number) || WrongKind();
    };
    if (json.is_number_unsigned()) return take(json.get<uint64_t>());
    if (json.is_number_integer()) return take(json.get<int64_t>());
    const double number = json.is_number() ? json.get<double>() : 1e300;
    WrongKind();  // but 8192.0 is read
    return std::abs(number) < 9e15 && take(static_cast<int64_t>(number));
  }
  template <std::floating_point T>
  bool Convert(const Json& json, T& to) {
    const double number = json.is_number() ? json.get<double>() : NAN;
    if (!(std::abs(number) <= std::numeric_limits<T>::max())) return WrongKind();
    to = static_cast<T>(number);
    return true;
  }

  const Json* object_;
  std::string& problem_;
  const char* key_ = "";  // looked at last
};

// `record` as JSON of type J: what is not finite and an empty optional as null.
template <typename J = OrderedJson>
J ToJson(const auto& record) {
  return Writer<J>::Encode(record);
}

// Fills `record` and returns the first problem, empty if there is none: `"kl" is missing`.
std::string Read(const Json& json, auto& record) {
  std::string problem;
  Reader reader(&json, problem);
  Fields(reader, record);
  return problem;
}

}  // namespace baton::results
