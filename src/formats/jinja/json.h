// Replaces the JSON library that the template engine includes for reading variables;
// formats/chat.cc builds them itself. Always null.
#pragma once

#include <string>

class common_json {
 public:
  struct iterator {
    const common_json& operator*() const { return *of; }
    iterator& operator++() { return *this; }
    bool operator!=(const iterator&) const { return false; }
    std::string key() const { return {}; }
    const common_json& value() const { return *of; }
    const common_json* of;
  };
  bool is_null() const { return true; }
  bool is_boolean() const { return false; }
  bool is_number_integer() const { return false; }
  bool is_number_float() const { return false; }
  bool is_string() const { return false; }
  bool is_array() const { return false; }
  bool is_object() const { return false; }
  template <typename T>
  T get() const {
    return T();
  }
  iterator begin() const { return {this}; }
  iterator end() const { return {this}; }
};
