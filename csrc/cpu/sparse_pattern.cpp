// Where the survivors of a mask are: in row order for the forward and the gradient of the values, in column order for
// the gradient of the input. Both orders are cut into panels, so that the features a panel covers stay in cache.
#include <algorithm>
#include <limits>
#include <tuple>
#include <vector>

#include "cpu/caches.h"
#include "cpu/dispatch.h"
#include "ops/torch_headers.h"

namespace lth_fast {
namespace {

constexpr int64_t kLargest = std::numeric_limits<int32_t>::max();
constexpr int64_t kWeightsPerTask = 1 << 16;

// Features per panel, `least` or more. A panel that fits the first-level cache is fastest, but entering a row of a
// panel costs as much as a few survivors (its sums are loaded and stored, and the end of its loop is mispredicted):
// below a dozen survivors wider panels win, as long as they leave room in the second-level cache for the sums.
int64_t panel_width(int64_t features, double density, int64_t least) {
  constexpr double kSurvivorsPerRow = 12;
  const auto lanes = kernels().sparse_linear_32.tile_lanes(std::numeric_limits<size_t>::max());
  const auto bytes_per_feature = static_cast<int64_t>(lanes * sizeof(float));
  const auto wanted = static_cast<int64_t>(kSurvivorsPerRow / std::max(density, 1e-6));
  const int64_t narrowest = std::max(level1_cache_bytes() / bytes_per_feature, least);
  const int64_t width = std::max(std::min(wanted, level2_cache_bytes() / 2 / bytes_per_feature), narrowest);
  const int64_t panels = std::max<int64_t>((features + width - 1) / width, 1);
  return std::max<int64_t>((features + panels - 1) / panels, 1);
}

// How features are cut into panels: `width` is features / `count`, rounded up, for the kernels know the count alone.
struct Panels {
  int64_t width, count;
};

Panels cut(int64_t features, double density, int64_t least) {
  const int64_t width = panel_width(features, density, least);
  return {width, std::max<int64_t>((features + width - 1) / width, 1)};
}

// Narrow tiles visit several panels of columns at once; of rows they cannot, so that those are not to be too narrow.
constexpr int64_t kLeastColumns = 1, kLeastRows = 112;

// What a mask becomes. `row_starts` is [column panels + 1, out_features]: the survivors of a row lie side by side,
// panel after panel. `column_starts` is [row panels, in_features + 1]: those of a panel of rows lie side by side,
// column after column, so that the copy of the values in this order is made, and read, within the rows of one panel at
// a time.
struct Pattern {
  int64_t out_features, in_features;
  Panels column_panels, row_panels;
  int32_t *row_starts, *column_starts;
};

void count_to_start(int32_t& entry, int64_t& position) {
  const int32_t count = entry;
  entry = static_cast<int32_t>(position);
  position += count;
}

template <typename Work>
void for_each_row(const Pattern& pattern, const Work& work) {
  at::parallel_for(0, pattern.out_features, kWeightsPerTask / std::max<int64_t>(pattern.in_features, 1) + 1,
                   [&](int64_t begin, int64_t end) {
                     for (int64_t row = begin; row < end; ++row) work(row);
                   });
}

void find_row_starts(const uint8_t* mask, const Pattern& pattern) {
  const int64_t rows = pattern.out_features, panels = pattern.column_panels.count;
  for_each_row(pattern, [&](int64_t row) {
    const uint8_t* kept = mask + row * pattern.in_features;
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t first = panel * pattern.column_panels.width;
      const int64_t last = std::min(first + pattern.column_panels.width, pattern.in_features);
      pattern.row_starts[panel * rows + row] =
          static_cast<int32_t>(last - first - std::count(kept + first, kept + last, uint8_t{0}));
    }
  });
  int64_t position = 0;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t panel = 0; panel < panels; ++panel) count_to_start(pattern.row_starts[panel * rows + row], position);
    pattern.row_starts[panels * rows + row] = static_cast<int32_t>(position);
  }
}

template <typename Column>
void find_columns(const uint8_t* mask, const Pattern& pattern, Column* columns) {
  for_each_row(pattern, [&](int64_t row) {
    const uint8_t* kept = mask + row * pattern.in_features;
    Column* next = columns + pattern.row_starts[row];
    for (int64_t column = 0; column < pattern.in_features; ++column) {
      if (kept[column]) *next++ = static_cast<Column>(column);
    }
  });
}

// Calls visit(starts of the row panel, column, row, position in row order) for every survivor, ascending in row within
// a task. A task is a panel of rows by a panel of columns: no two of them share an entry of column_starts.
template <typename Column, typename Visit>
void for_each_survivor(const Pattern& pattern, const Column* columns, int32_t* column_starts, const Visit& visit) {
  const int64_t rows = pattern.out_features, across = pattern.column_panels.count;
  at::parallel_for(0, pattern.row_panels.count * across, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row_panel = task / across, first = row_panel * pattern.row_panels.width;
      int32_t* starts = column_starts + row_panel * (pattern.in_features + 1);
      const int32_t* survivors = pattern.row_starts + task % across * rows;
      for (int64_t row = first; row < std::min(first + pattern.row_panels.width, rows); ++row) {
        for (int32_t s = survivors[row]; s < survivors[row + rows]; ++s) visit(starts, columns[s], row, s);
      }
    }
  });
}

template <typename Column, typename Row>
void find_rows(const Pattern& pattern, const Column* columns, Row* rows, int32_t* permutation) {
  const int64_t line = pattern.in_features + 1, panels = pattern.row_panels.count;
  std::fill_n(pattern.column_starts, panels * line, 0);
  for_each_survivor(pattern, columns, pattern.column_starts,
                    [](int32_t* starts, Column column, int64_t, int32_t) { ++starts[column]; });
  int64_t position = 0;
  for (int64_t entry = 0; entry < panels * line; ++entry) count_to_start(pattern.column_starts[entry], position);
  std::vector<int32_t> next(pattern.column_starts, pattern.column_starts + panels * line);
  for_each_survivor(pattern, columns, next.data(), [&](int32_t* starts, Column column, int64_t row, int32_t survivor) {
    const int32_t place = starts[column]++;
    rows[place] = static_cast<Row>(row);
    permutation[place] = survivor;
  });
}

// 16-bit numbers halve the memory of the pattern; they neither cost nor save time.
at::ScalarType index_type(int64_t features) { return features <= 1 << 15 ? at::kShort : at::kInt; }

template <typename Work>
void with_index(const at::Tensor& indices, const Work& work) {
  if (indices.scalar_type() == at::kShort) {
    work(indices.mutable_data_ptr<int16_t>());
  } else {
    work(indices.mutable_data_ptr<int32_t>());
  }
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> sparse_pattern(const at::Tensor& mask) {
  TORCH_CHECK(mask.scalar_type() == at::kBool, "sparse_pattern: mask must be bool, got ", mask.scalar_type());
  TORCH_CHECK(mask.dim() == 2, "sparse_pattern: mask must have 2 dimensions [out_features, in_features], got ",
              mask.sizes());
  const int64_t out_features = mask.size(0), in_features = mask.size(1);
  const at::Tensor dense = mask.contiguous();
  const int64_t survivors = at::count_nonzero(dense).item<int64_t>();
  TORCH_CHECK(survivors <= kLargest && in_features < kLargest && out_features < kLargest,
              "sparse_pattern: mask must have at most ", kLargest, " survivors, rows and columns, got ", survivors,
              " survivors in shape ", mask.sizes());
  const double density = mask.numel() == 0 ? 1.0 : static_cast<double>(survivors) / static_cast<double>(mask.numel());

  const Panels column_panels = cut(in_features, density, kLeastColumns),
               row_panels = cut(out_features, density, kLeastRows);
  const auto integers = dense.options().dtype(at::kInt);
  at::Tensor row_starts = at::empty({column_panels.count + 1, out_features}, integers);
  at::Tensor column_starts = at::empty({row_panels.count, in_features + 1}, integers);
  at::Tensor columns = at::empty({survivors}, integers.dtype(index_type(in_features)));
  at::Tensor rows = at::empty({survivors}, integers.dtype(index_type(out_features)));
  at::Tensor permutation = at::empty({survivors}, integers);

  const Pattern pattern = {out_features,
                           in_features,
                           column_panels,
                           row_panels,
                           row_starts.mutable_data_ptr<int32_t>(),
                           column_starts.mutable_data_ptr<int32_t>()};
  const auto* kept = reinterpret_cast<const uint8_t*>(dense.const_data_ptr<bool>());
  find_row_starts(kept, pattern);
  with_index(columns, [&](auto* column) {
    find_columns(kept, pattern, column);
    with_index(rows, [&](auto* row) { find_rows(pattern, column, row, permutation.mutable_data_ptr<int32_t>()); });
  });
  return {row_starts, columns, column_starts, rows, permutation};
}

}  // namespace
}  // namespace lth_fast

TORCH_LIBRARY_IMPL(lth_fast, CPU, library) { library.impl("sparse_pattern", lth_fast::sparse_pattern); }
