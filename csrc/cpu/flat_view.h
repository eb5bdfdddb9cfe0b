// Reading a tensor of any memory layout in flat (row-major) order, without a contiguous copy of it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "ops/torch_headers.h"

namespace lth_fast {

template <typename Element>
class FlatView {
 public:
  // Element has the size of the tensor's elements. The tensor must outlive the view.
  explicit FlatView(const at::Tensor& tensor)
      : data_(static_cast<const Element*>(tensor.const_data_ptr())), size_(tensor.numel()) {
    for (int64_t d = 0; d < tensor.dim(); ++d) {
      const Dimension inner{tensor.size(d), tensor.stride(d)};
      if (inner.size == 1) continue;
      if (!dimensions_.empty() && dimensions_.back().stride == inner.size * inner.stride) {
        dimensions_.back() = {dimensions_.back().size * inner.size, inner.stride};
      } else {
        dimensions_.push_back(inner);
      }
    }
    if (dimensions_.empty()) dimensions_.push_back({1, 1});
  }

  int64_t size() const { return size_; }

  // The elements [first, first + count): where they lie if the tensor is contiguous, otherwise a copy in `buffer`.
  const Element* read(int64_t first, int64_t count, Element* buffer) const {
    if (is_contiguous()) return data_ + first;
    std::vector<int64_t> index(dimensions_.size());
    const Element* row = data_;  // where the innermost dimension begins
    for (auto d = dimensions_.size(); d-- > 0; first /= dimensions_[d].size) index[d] = first % dimensions_[d].size;
    for (size_t d = 0; d + 1 < index.size(); ++d) row += index[d] * dimensions_[d].stride;
    const Dimension inner = dimensions_.back();
    Element* to = buffer;
    for (Element* const end = buffer + count; to != end;) {
      const int64_t run = std::min<int64_t>(end - to, inner.size - index.back());
      const Element* from = row + index.back() * inner.stride;
      for (int64_t i = 0; i < run; ++i) to[i] = from[i * inner.stride];
      to += run;
      index.back() = 0;
      for (auto d = dimensions_.size() - 1; d-- > 0;) {
        row += dimensions_[d].stride;
        if (++index[d] < dimensions_[d].size) break;
        row -= dimensions_[d].size * dimensions_[d].stride;
        index[d] = 0;
      }
    }
    return buffer;
  }

 private:
  struct Dimension {
    int64_t size, stride;
  };

  bool is_contiguous() const { return dimensions_.size() == 1 && dimensions_[0].stride == 1; }

  const Element* data_;
  int64_t size_;
  // Outermost first; neighbours that one stride walks through are one dimension.
  c10::SmallVector<Dimension, 5> dimensions_;
};

}  // namespace lth_fast
