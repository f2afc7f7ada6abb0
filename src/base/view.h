// View: a non-owning, row-major tensor of up to four dimensions; the last one is contiguous.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "base/check.h"

namespace baton {

template <typename T>
class View {
 public:
  View() = default;
  View(T* data, std::initializer_list<int64_t> dims)
      : data_(data), rank_(static_cast<int>(dims.size())) {
    BATON_CHECK_LE(rank_, 4);
    int i = 0;
    for (int64_t d : dims) dim_[i++] = d;
    int64_t s = 1;
    for (i = rank_ - 1; i >= 0; --i) {
      stride_[i] = s;
      s *= dim_[i];
    }
  }
  template <typename U>
  requires(std::is_same_v<const U, T> && !std::is_const_v<U>) View(const View<U>& o)
      : data_(o.data()), rank_(o.rank()) {
    for (int i = 0; i < rank_; ++i) {
      dim_[i] = o.dim(i);
      stride_[i] = o.stride(i);
    }
  }

  T* data() const { return data_; }
  bool empty() const { return data_ == nullptr; }
  int rank() const { return rank_; }
  int64_t dim(int i) const { return dim_[i]; }
  int64_t stride(int i) const { return stride_[i]; }  // in elements
  int64_t size() const {
    int64_t n = 1;
    for (int i = 0; i < rank_; ++i) n *= dim_[i];
    return rank_ == 0 ? 0 : n;
  }
  bool contiguous() const {
    int64_t s = 1;
    for (int i = rank_ - 1; i >= 0; --i) {
      if (dim_[i] != 1 && stride_[i] != s) return false;
      s *= dim_[i];
    }
    return true;
  }
  // Pointer to element [i, 0, ...] and [i, j, 0, ...].
  T* row(int64_t i) const { return data_ + i * stride_[0]; }
  T* row(int64_t i, int64_t j) const { return data_ + i * stride_[0] + j * stride_[1]; }
  // Rows [begin, end) of the first dimension.
  View Slice(int64_t begin, int64_t end) const {
    BATON_CHECK(0 <= begin && begin <= end && end <= dim_[0]);
    View v = *this;
    v.data_ += begin * stride_[0];
    v.dim_[0] = end - begin;
    return v;
  }
  // Columns [begin, end) of a matrix.
  View Columns(int64_t begin, int64_t end) const {
    BATON_CHECK(rank_ == 2 && 0 <= begin && begin <= end && end <= dim_[1]);
    View v = *this;
    v.data_ += begin;
    v.dim_[1] = end - begin;
    return v;
  }

 private:
  T* data_ = nullptr;
  int rank_ = 0;
  std::array<int64_t, 4> dim_{};
  std::array<int64_t, 4> stride_{};
};

}  // namespace baton
