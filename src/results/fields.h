// A record's fields are listed once: Fields(visitor, record) in records.h and profile_fields.h
// names each key beside its member, and the visitors here write the list as JSON and read it back.
// A visitor has
//   v(key, member)            a value, a list or a record with a list of its own
//   v(key, member, absent)    the same; what it reads as where the key is absent
//   v.NonEmpty(key, member)   a list or text that is left out where it is empty
//   v.Word(key, e, {words})   an enum by the words of its values
//   v.Sized(key, list, sizes) a list whose size other members call for
//   v.Object(key, [&](V& v))  an object that is no struct of its own; ObjectIf: left out at times
// Visitors take the record as mutable, so that one list serves both; writing does not change it.
#pragma once

#include <algorithm>
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

template <typename T>
constexpr bool kIsVector = false;
template <typename E>
constexpr bool kIsVector<std::vector<E>> = true;
template <typename T>
constexpr bool kIsOptional = false;
template <typename E>
constexpr bool kIsOptional<std::optional<E>> = true;

// `value` as JSON of type J: a record as an object, what is not finite and an empty optional as
// null.
template <typename J = OrderedJson, typename T>
J ToJson(const T& value);

template <typename J>
class Writer {
 public:
  static constexpr bool kReads = false;
  explicit Writer(J& object) : object_(object) {}

  template <typename T>
  void operator()(const char* key, const T& value, const std::type_identity_t<T>& = {}) {
    object_[key] = ToJson<J>(value);
  }
  void NonEmpty(const char* key, const auto& value) {
    if (!value.empty()) (*this)(key, value);
  }
  void Word(const char* key, auto value, std::initializer_list<const char*> words) {
    object_[key] = words.begin()[std::min(static_cast<size_t>(value), words.size() - 1)];
  }
  void Sized(const char* key, const auto& list, auto...) { (*this)(key, list); }
  void Object(const char* key, const auto& fields) {
    Writer inner(object_[key] = J::object());
    fields(inner);
  }
  void ObjectIf(bool given, const char* key, const auto& fields) {
    if (given) Object(key, fields);
  }

 private:
  J& object_;
};

template <typename J, typename T>
J ToJson(const T& value) {
  if constexpr (ListedFor<T, Writer<J>>) {
    J object = J::object();
    Writer<J> writer(object);
    Fields(writer, const_cast<T&>(value));
    return object;
  } else if constexpr (kIsVector<T>) {
    J list = J::array();
    for (const auto& item : value) list.push_back(ToJson<J>(item));
    return list;
  } else if constexpr (kIsOptional<T>) {
    return value ? ToJson<J>(*value) : J(nullptr);
  } else {
    return J(value);
  }
}

// Reads what is there. A member whose key is absent or of another kind reads as absent: NaN, 0, an
// empty string, list or optional, unless the list of fields says otherwise. The first such key is
// the problem, which only strict readers look at. Two deviations are problems and read all the
// same: null among floats is NaN, as JSON writes what is not finite, and 8192.0 is an integer.
class Reader {
 public:
  static constexpr bool kReads = true;
  // Without an object every member is absent.
  Reader(const Json* object, std::string& problem)
      : object_(object && object->is_object() ? object : nullptr), problem_(problem) {}

  template <typename T>
  void operator()(const char* key, T& value, const std::type_identity_t<T>& absent = Absent<T>()) {
    if (!Take(key, value, absent)) Problem(key, "is missing");
  }
  template <typename T>
  void NonEmpty(const char* key, T& value) {
    Take(key, value, Absent<T>());
  }
  template <typename E>
  void Word(const char* key, E& value, std::initializer_list<const char*> words) {
    std::string word;
    (*this)(key, word);
    const auto it = std::find(words.begin(), words.end(), word);
    value = static_cast<E>(it == words.end() ? 0 : it - words.begin());
    if (it == words.end()) Problem(key, fmt::format("must be one of: {}", fmt::join(words, ", ")));
  }
  void Sized(const char* key, auto& list, auto...) { (*this)(key, list); }
  void Object(const char* key, const auto& fields) {
    const Json* found = Find(key);
    if (!found || !found->is_object()) Problem(key, "must be an object");
    Reader inner(found, problem_);
    fields(inner);
  }
  void ObjectIf(bool, const char* key, const auto& fields) {
    Reader inner(Find(key), problem_);
    fields(inner);
  }

 private:
  enum class Fit { kNo, kLoosely, kExactly };

  template <typename T>
  static T Absent() {
    if constexpr (std::floating_point<T>) return std::numeric_limits<T>::quiet_NaN();
    return T();
  }

  const Json* Find(const char* key) const {
    if (!object_) return nullptr;
    const auto it = object_->find(key);
    return it == object_->end() ? nullptr : &*it;
  }
  void Problem(std::string_view key, std::string_view what) {
    if (problem_.empty()) problem_ = fmt::format("\"{}\" {}", key, what);
  }

  // Whether the key is there.
  template <typename T>
  bool Take(const char* key, T& value, const T& absent) {
    const Json* found = Find(key);
    value = absent;
    if constexpr (ListedFor<T, Reader>) {
      if (!found) Convert(Json(), value);  // an absent record is one whose members are absent
    }
    if (found && Convert(*found, value) != Fit::kExactly)
      Problem(key, "is of the wrong kind, or a number in it is out of range");
    return found != nullptr;
  }

  // kNo leaves a number or a text as it is.
  template <typename T>
  Fit Convert(const Json& json, T& to) {
    if constexpr (ListedFor<T, Reader>) {
      Reader inner(&json, problem_);
      Fields(inner, to);
      return json.is_object() ? Fit::kExactly : Fit::kNo;
    } else if constexpr (kIsOptional<T>) {
      if (json.is_null()) return Fit::kExactly;
      typename T::value_type value = Absent<typename T::value_type>();
      const Fit fit = Convert(json, value);
      if (fit != Fit::kNo) to = std::move(value);
      return fit;
    } else if constexpr (std::same_as<T, std::string>) {
      if (!json.is_string()) return Fit::kNo;
      to = json.get<std::string>();
      return Fit::kExactly;
    } else if constexpr (std::same_as<T, bool>) {
      if (!json.is_boolean()) return Fit::kNo;
      to = json.get<bool>();
      return Fit::kExactly;
    } else {
      return ConvertNumber(json, to);
    }
  }
  template <typename E>
  Fit Convert(const Json& json, std::vector<E>& to) {
    if (!json.is_array()) return Fit::kNo;
    bool exact = true;
    for (const Json& item : json) {
      E value = Absent<E>();
      const Fit fit = Convert(item, value);
      exact = exact && fit == Fit::kExactly;
      // A place in a table means something; what else is of another kind is left out.
      const bool has_place = std::floating_point<E> || kIsVector<E>;
      if (fit != Fit::kNo || has_place) to.push_back(std::move(value));
    }
    return exact ? Fit::kExactly : Fit::kLoosely;
  }
  // The library's own conversions would let a number out of range become any other.
  template <std::integral T>
  static Fit ConvertNumber(const Json& json, T& to) {
    const auto take = [&](auto number, Fit fit) {
      if (!std::in_range<T>(number)) return Fit::kNo;
      to = static_cast<T>(number);
      return fit;
    };
    if (json.is_number_unsigned()) return take(json.get<uint64_t>(), Fit::kExactly);
    if (json.is_number_integer()) return take(json.get<int64_t>(), Fit::kExactly);
    const double number = json.is_number() ? json.get<double>() : 1e300;
    return std::abs(number) < 9e15 ? take(static_cast<int64_t>(number), Fit::kLoosely) : Fit::kNo;
  }
  template <std::floating_point T>
  static Fit ConvertNumber(const Json& json, T& to) {
    if (json.is_null()) return Fit::kLoosely;
    if (!json.is_number()) return Fit::kNo;
    const auto number = json.get<double>();
    if (!(std::abs(number) <= std::numeric_limits<T>::max())) return Fit::kNo;
    to = static_cast<T>(number);
    return Fit::kExactly;
  }

  const Json* object_;
  std::string& problem_;
};

// Fills `record` and returns the first problem, empty if there is none: `"kl" is missing`.
template <typename T>
std::string Read(const Json& json, T& record) {
  std::string problem;
  Reader reader(&json, problem);
  Fields(reader, record);
  return problem;
}

}  // namespace baton::results
