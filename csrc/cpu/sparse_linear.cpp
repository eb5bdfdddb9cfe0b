// The batch is cut into tiles of samples (csrc/cpu/isa/sparse_linear.cpp says how they lie); every thread owns rows of
// outputs, so no sum depends on the number of threads.
#include <vector>

#include "cpu/dispatch.h"
#include "ops/rows.h"
#include "ops/torch_headers.h"

namespace lth_fast {
namespace {

// Rows a task works on: their sums stay in the second-level cache while panel after panel of the input passes.
constexpr int64_t kRowsPerTask = 512;
// About 10 microseconds of work: below it, one thread is faster than waking a second one.
constexpr int64_t kProductsPerThread = 1 << 18, kElementsPerThread = 1 << 15;
constexpr int64_t kFeaturesPerTask = 512;

int64_t ceiling_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <typename Element>
const SparseLinearKernels<Element>& sparse_linear_kernels() {
  if constexpr (sizeof(Element) == 4) {
    return kernels().sparse_linear_32;
  } else {
    return kernels().sparse_linear_64;
  }
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

at::Tensor empty_tiles(const std::vector<Tile>& tiles, int64_t features, const at::Tensor& like) {
  const int64_t lanes = tiles.empty() ? 0 : tiles.back().lanes_before + tiles.back().lanes;
  return at::empty({lanes * features}, like.options());
}

// [..., features] as rows whose elements are adjacent.
at::Tensor adjacent_rows(const at::Tensor& tensor) {
  const at::Tensor flat = as_rows(tensor);
  return flat.size(1) <= 1 || flat.stride(1) == 1 ? flat : flat.contiguous();
}

template <typename Element>
at::Tensor to_tiles(const at::Tensor& rows, const std::vector<Tile>& tiles) {
  const auto& table = sparse_linear_kernels<Element>();
  const int64_t features = rows.size(1), stride = rows.stride(0);
  at::Tensor result = empty_tiles(tiles, features, rows);
  const auto* from = rows.const_data_ptr<Element>();
  auto* to = result.mutable_data_ptr<Element>();
  const int64_t slices = ceiling_divide(features, kFeaturesPerTask);
  at::parallel_for(0, static_cast<int64_t>(tiles.size()) * slices, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const Tile& tile = tiles[task / slices];
      const int64_t first = task % slices * kFeaturesPerTask, last = std::min(first + kFeaturesPerTask, features);
      table.to_tile(from + tile.first_sample * stride, stride, tile.samples, first, last,
                    to + tile.lanes_before * features, tile.lanes);
    }
  });
  return result;
}

// The two orders of the matrix, as the kernels want them: panels inside of rows (starts is [panels + 1, out_features])
// and columns inside of panels (starts is [panels, in_features + 1]).
struct RowOrder {
  static int64_t lines(const at::Tensor& starts) { return starts.size(1); }

  template <typename Index>
  static SparseRows<Index> matrix(const at::Tensor& starts, const at::Tensor& indices) {
    const auto rows = static_cast<size_t>(lines(starts));
    return {starts.const_data_ptr<int32_t>(), static_cast<size_t>(starts.size(0) - 1), rows, rows, rows,
            indices.const_data_ptr<Index>()};
  }
};

struct ColumnOrder {
  static int64_t lines(const at::Tensor& starts) { return starts.size(1) - 1; }

  template <typename Index>
  static SparseRows<Index> matrix(const at::Tensor& starts, const at::Tensor& indices) {
    const auto columns = static_cast<size_t>(lines(starts));
    return {starts.const_data_ptr<int32_t>(), static_cast<size_t>(starts.size(0)), columns, columns + 1, 1,
            indices.const_data_ptr<Index>()};
  }
};

// Rows per task: every thread gets some, and blocks of eight stay whole for the transposition of the outputs.
int64_t rows_per_task(int64_t rows) {
  const int64_t share = ceiling_divide(rows, at::get_num_threads());
  return std::max<int64_t>(ceiling_divide(std::min(share, kRowsPerTask), 8) * 8, 8);
}

// output = input * transpose(matrix) + bias, with 0 for what is negative where `relu`.
template <typename Element, typename Index, typename Order, typename Kernel>
void multiply(const Kernel& kernel, const at::Tensor& input, const Element* values, const Element* bias,
              const at::Tensor& starts, const at::Tensor& indices, const at::Tensor& output, bool relu) {
  const auto& table = sparse_linear_kernels<Element>();
  const auto matrix = Order::template matrix<Index>(starts, indices);
  const auto tiles = cut_batch<Element>(input.size(0));
  const int64_t in_features = input.size(1), rows = output.size(1);
  const at::Tensor input_tiles = to_tiles<Element>(input, tiles), output_tiles = empty_tiles(tiles, rows, input);
  const auto* from = input_tiles.const_data_ptr<Element>();
  auto* sums = output_tiles.mutable_data_ptr<Element>();
  auto* to = output.mutable_data_ptr<Element>();

  const int64_t step = rows_per_task(rows), slices = ceiling_divide(rows, step);
  const int64_t products_per_task = (indices.numel() + rows) * tiles.front().lanes / slices + 1;
  at::parallel_for(
      0, static_cast<int64_t>(tiles.size()) * slices, kProductsPerThread / products_per_task + 1,
      [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
          const Tile& tile = tiles[task / slices];
          const int64_t first = task % slices * step, last = std::min(first + step, rows);
          Element* tile_sums = sums + tile.lanes_before * rows;
          kernel(matrix, values, bias, first, last, from + tile.lanes_before * in_features, tile_sums, tile.lanes);
          table.from_tile(tile_sums, tile.lanes, first, last, to + tile.first_sample * rows, rows, tile.samples, relu);
        }
      });
}

template <typename Element, typename Order>
at::Tensor product(const at::Tensor& input, const at::Tensor& values, const at::Tensor* bias, const at::Tensor& starts,
                   const at::Tensor& indices, bool relu = false) {
  const auto& table = sparse_linear_kernels<Element>();
  auto shape = input.sizes().vec();
  shape.back() = Order::lines(starts);
  at::Tensor output = at::empty(shape, input.options());
  if (output.numel() == 0) return output;
  const at::Tensor rows = adjacent_rows(input);
  const at::Tensor flat = output.view({-1, Order::lines(starts)});
  const at::Tensor kept = values.contiguous(), added = bias == nullptr ? at::Tensor() : bias->contiguous();
  const auto* value = kept.const_data_ptr<Element>();
  const auto* start = bias == nullptr ? nullptr : added.const_data_ptr<Element>();
  if (indices.scalar_type() == at::kShort) {
    multiply<Element, int16_t, Order>(table.product_16, rows, value, start, starts, indices, flat, relu);
  } else {
    multiply<Element, int32_t, Order>(table.product_32, rows, value, start, starts, indices, flat, relu);
  }
  return output;
}

template <typename Element>
at::Tensor permuted(const at::Tensor& values, const at::Tensor& permutation) {
  const at::Tensor kept = values.contiguous();
  at::Tensor result = at::empty_like(kept);
  const auto* from = kept.const_data_ptr<Element>();
  const auto* place = permutation.const_data_ptr<int32_t>();
  auto* to = result.mutable_data_ptr<Element>();
  at::parallel_for(0, kept.numel(), kElementsPerThread, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) to[i] = from[place[i]];
  });
  return result;
}

template <typename Element, typename Index, typename Kernel>
void accumulate_values_grad(const Kernel& kernel, const at::Tensor& grad_output, const at::Tensor& input,
                            const at::Tensor& row_starts, const at::Tensor& columns, const at::Tensor& grad_values) {
  const auto matrix = RowOrder::matrix<Index>(row_starts, columns);
  const auto tiles = cut_batch<Element>(input.size(0));
  const int64_t in_features = input.size(1), rows = grad_output.size(1);
  const at::Tensor output_tiles = to_tiles<Element>(grad_output, tiles), input_tiles = to_tiles<Element>(input, tiles);
  const auto* gradient = output_tiles.const_data_ptr<Element>();
  const auto* from = input_tiles.const_data_ptr<Element>();
  auto* to = grad_values.mutable_data_ptr<Element>();

  const int64_t step = rows_per_task(rows), slices = ceiling_divide(rows, step);
  const int64_t products_per_task = columns.numel() * input.size(0) / slices + 1;
  at::parallel_for(0, slices, kProductsPerThread / products_per_task + 1, [&](int64_t begin, int64_t end) {
    for (int64_t slice = begin; slice < end; ++slice) {
      const int64_t first = slice * step, last = std::min(first + step, rows);
      for (const Tile& tile : tiles) {
        kernel(matrix, first, last, gradient + tile.lanes_before * rows, from + tile.lanes_before * in_features, to,
               tile.lanes);
      }
    }
  });
}

template <typename Element>
at::Tensor values_grad(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& row_starts,
                       const at::Tensor& columns) {
  const auto& table = sparse_linear_kernels<Element>();
  at::Tensor result = at::zeros(columns.sizes(), input.options());
  if (input.numel() == 0 || grad_output.numel() == 0) return result;
  const at::Tensor gradient = adjacent_rows(grad_output), rows = adjacent_rows(input);
  if (columns.scalar_type() == at::kShort) {
    accumulate_values_grad<Element, int16_t>(table.values_grad_16, gradient, rows, row_starts, columns, result);
  } else {
    accumulate_values_grad<Element, int32_t>(table.values_grad_32, gradient, rows, row_starts, columns, result);
  }
  return result;
}

// ---- the registered functions: one line per element type ----

at::Tensor sparse_linear(const at::Tensor& input, const at::Tensor& values, const std::optional<at::Tensor>& bias,
                         const at::Tensor& row_starts, const at::Tensor& columns, const at::Tensor& column_starts,
                         const at::Tensor& rows, const at::Tensor& permutation, bool relu) {
  (void)column_starts, (void)rows, (void)permutation;  // for the backward
  const at::Tensor* added = bias.has_value() ? &*bias : nullptr;
  return input.scalar_type() == at::kFloat ? product<float, RowOrder>(input, values, added, row_starts, columns, relu)
                                           : product<double, RowOrder>(input, values, added, row_starts, columns, relu);
}

at::Tensor sparse_linear_input_grad(const at::Tensor& grad_output, const at::Tensor& values,
                                    const at::Tensor& column_starts, const at::Tensor& rows,
                                    const at::Tensor& permutation) {
  if (grad_output.scalar_type() == at::kFloat) {
    return product<float, ColumnOrder>(grad_output, permuted<float>(values, permutation), nullptr, column_starts, rows);
  }
  return product<double, ColumnOrder>(grad_output, permuted<double>(values, permutation), nullptr, column_starts, rows);
}

at::Tensor sparse_linear_values_grad(const at::Tensor& grad_output, const at::Tensor& input,
                                     const at::Tensor& row_starts, const at::Tensor& columns) {
  return input.scalar_type() == at::kFloat ? values_grad<float>(grad_output, input, row_starts, columns)
                                           : values_grad<double>(grad_output, input, row_starts, columns);
}

}  // namespace
}  // namespace lth_fast

TORCH_LIBRARY_IMPL(lth_fast, CPU, library) {
  library.impl("sparse_linear", lth_fast::sparse_linear);
  library.impl("sparse_linear_input_grad", lth_fast::sparse_linear_input_grad);
  library.impl("sparse_linear_values_grad", lth_fast::sparse_linear_values_grad);
}
