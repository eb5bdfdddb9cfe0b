// What sparse_linear computes, on one tile of samples at a time (csrc/cpu/isa/sparse_linear.cpp says how they lie).
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/caches.h"
#include "cpu/dispatch.h"
#include "ops/torch_headers.h"

namespace lth_fast {

template <typename Element>
const SparseLinearKernels<Element>& sparse_linear_kernels() {
  return kernels_for<Element>(&KernelTable::sparse_linear_32, &KernelTable::sparse_linear_64);
}

struct Tile {
  int64_t first_sample, samples, lanes;
  int64_t lanes_before;  // of the tiles before it: a tile of f features starts at element lanes_before * f
};

template <typename Element>
std::vector<Tile> cut_batch(int64_t batch) {
  std::vector<Tile> tiles;
  for (int64_t sample = 0, lanes_before = 0; sample < batch;) {
    const auto lanes = static_cast<int64_t>(sparse_linear_kernels<Element>().tile_lanes(batch - sample));
    tiles.push_back({sample, std::min(lanes, batch - sample), lanes, lanes_before});
    sample += lanes;
    lanes_before += lanes;
  }
  return tiles;
}

// Lanes of all of them.
inline int64_t lanes_of(const std::vector<Tile>& tiles) {
  return tiles.empty() ? 0 : tiles.back().lanes_before + tiles.back().lanes;
}

// A panel of one of the two orders of the matrix; `permutation` where the values stand in the other one.
template <typename Element, typename Index>
SparsePanel<Index> panel_of(int64_t panel, const at::Tensor& starts, const at::Tensor& order, const at::Tensor& indices,
                            bool leads, const at::Tensor* permutation = nullptr) {
  return {starts.const_data_ptr<int32_t>() + panel * starts.size(1),
          order.const_data_ptr<int32_t>() + panel * order.size(1),
          indices.const_data_ptr<Index>(),
          permutation == nullptr ? nullptr : permutation->const_data_ptr<int32_t>(),
          leads,
          indices.numel() * static_cast<int64_t>(sizeof(Element)) > level2_cache_bytes() * 3 / 2};
}

// Calls work(kernel, Index{}) with the one of two kernels that takes the type of `indices`.
template <typename Short, typename Long, typename Work>
void by_index(const at::Tensor& indices, Short kernel_16, Long kernel_32, const Work& work) {
  if (indices.scalar_type() == at::kShort) {
    work(kernel_16, int16_t{});
  } else {
    work(kernel_32, int32_t{});
  }
}

// Parts of the panels whose sums are added up for themselves. Two where transposing the input is a good part of the
// work, so that two threads can each transpose one half of it. The mask's shape alone decides: the sums depend on it.
inline int64_t parts_of_panels(int64_t panels, int64_t rows, int64_t columns) {
  constexpr int64_t kLeastColumns = 2048, kMostRows = 1024;
  return columns >= kLeastColumns && rows <= kMostRows && panels > 1 ? 2 : 1;
}

// The matrix by rows, with the bias that the sums begin with.
template <typename Element>
struct SparseRows {
  SparseRows(const at::Tensor& values, const at::Tensor* bias, const at::Tensor& starts, const at::Tensor& order,
             const at::Tensor& columns, int64_t in_features)
      : rows(order.size(1)),
        panels(order.size(0)),
        parts(parts_of_panels(panels, rows, in_features)),
        starts_(starts),
        order_(order),
        columns_(columns),
        values_(values.contiguous()),
        bias_(bias == nullptr ? at::Tensor() : bias->contiguous()) {}

  int64_t first_panel(int64_t part) const { return part * panels / parts; }

  // Of rows at places first to last, the sums that one panel of the input adds to those of the panels before it in the
  // part; `sums` and `input` are tiles.
  void add_panel(int64_t panel, int64_t part, int64_t first, int64_t last, const Element* input, Element* sums,
                 int64_t lanes) const {
    const auto& table = sparse_linear_kernels<Element>();
    const auto* bias = part == 0 && bias_.defined() ? bias_.template const_data_ptr<Element>() : nullptr;
    by_index(columns_, table.product_16, table.product_32, [&](auto kernel, auto index) {
      kernel(panel_of<Element, decltype(index)>(panel, starts_, order_, columns_, panel == first_panel(part)),
             values_.template const_data_ptr<Element>(), bias, first, last, input, sums, lanes);
    });
  }

  const int64_t rows, panels, parts;

 private:
  const at::Tensor &starts_, &order_, &columns_;
  const at::Tensor values_, bias_;
};

}  // namespace lth_fast
