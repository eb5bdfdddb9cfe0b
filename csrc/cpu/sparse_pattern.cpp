// Where the survivors of a mask are: in row order for the forward and the gradient of the values, in column order for
// the gradient of the input. lth_fast/ops/sparse_pattern.py defines both orders. They depend on the mask alone, never
// on the machine: values stand in row order, and so does what an optimizer keeps of them in a file.
#include <algorithm>
#include <limits>
#include <numeric>
#include <tuple>
#include <vector>

#include "cpu/sparse_pattern.h"
#include "ops/torch_headers.h"

namespace lth_fast {
namespace {

constexpr int64_t kLargest = std::numeric_limits<int32_t>::max();
constexpr int64_t kWeightsPerTask = 1 << 16;

// Features per panel. With a tile of 64 samples the narrowest fill a first-level cache of 32 KiB. Entering a line of a
// panel costs as much as a few survivors (its sums are loaded and stored): below a dozen survivors wider panels win, as
// long as they leave room in the second-level cache.
constexpr int64_t kNarrowest = 128, kWidest = 1024, kSurvivorsPerLine = 12;

struct Panels {
  int64_t width, count;
};

Panels cut(int64_t features, int64_t weights, int64_t survivors) {
  const int64_t wanted = kSurvivorsPerLine * weights / std::max<int64_t>(survivors, 1);
  const int64_t widest = std::min(std::max(wanted, kNarrowest), kWidest);
  const int64_t count = std::max<int64_t>((features + widest - 1) / widest, 1);
  return {std::max<int64_t>((features + count - 1) / count, 1), count};
}

// One of the two orders: lines (rows or columns) and the panels of the features they meet.
struct Lines {
  int64_t count;
  Panels panels;
  int32_t* starts;  // [panels, count + 1]
  int32_t* order;   // [panels, count]

  int64_t entries() const { return panels.count * count; }
};

// From the number of survivors of every line in every panel, [panels, lines]: the order of the lines and where they
// start, place by place. Returns where they start line by line, as the numbers stand.
std::vector<int32_t> arrange(const Lines& lines, const std::vector<int32_t>& numbers) {
  const int64_t block = lines_per_block(lines.count);
  at::parallel_for(0, lines.panels.count, kWeightsPerTask / (lines.count + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      int32_t* order = lines.order + panel * lines.count;
      const int32_t* survivors = numbers.data() + panel * lines.count;
      std::iota(order, order + lines.count, 0);
      for (int64_t first = 0; first < lines.count; first += block) {
        std::stable_sort(order + first, order + std::min(first + block, lines.count),
                         [&](int32_t a, int32_t b) { return survivors[a] < survivors[b]; });
      }
    }
  });
  std::vector<int32_t> line_starts(numbers.size());
  int32_t position = 0;
  for (int64_t panel = 0; panel < lines.panels.count; ++panel) {
    int32_t* starts = lines.starts + panel * (lines.count + 1);
    for (int64_t place = 0; place < lines.count; ++place) {
      const int64_t line = panel * lines.count + lines.order[panel * lines.count + place];
      starts[place] = line_starts[line] = position;
      position += numbers[line];
    }
    starts[lines.count] = position;
  }
  return line_starts;
}

// Calls work(panel, row, first column, last column) for all panels of all rows.
template <typename Work>
void for_each_piece(const Lines& rows, int64_t in_features, const Work& work) {
  at::parallel_for(0, rows.count, kWeightsPerTask / (in_features + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t panel = 0; panel < rows.panels.count; ++panel) {
        const int64_t first = panel * rows.panels.width;
        work(panel, row, first, std::min(first + rows.panels.width, in_features));
      }
    }
  });
}

// Fills both orders for the types of `columns` and `rows`.
template <typename Column, typename Row>
void find_survivors(const uint8_t* mask, const Lines& row_lines, const Lines& column_lines, Column* columns, Row* rows,
                    int32_t* permutation) {
  const int64_t out_features = row_lines.count, in_features = column_lines.count;
  std::vector<int32_t> in_row(row_lines.entries()), in_column(column_lines.entries());
  for_each_piece(row_lines, in_features, [&](int64_t panel, int64_t row, int64_t first, int64_t last) {
    const uint8_t* kept = mask + row * in_features;
    in_row[panel * out_features + row] =
        static_cast<int32_t>(last - first - std::count(kept + first, kept + last, uint8_t{0}));
  });
  const std::vector<int32_t> row_starts = arrange(row_lines, in_row);
  for_each_piece(row_lines, in_features, [&](int64_t panel, int64_t row, int64_t first, int64_t last) {
    const uint8_t* kept = mask + row * in_features;
    Column* next = columns + row_starts[panel * out_features + row];
    for (int64_t column = first; column < last; ++column) {
      if (kept[column]) *next++ = static_cast<Column>(column);
    }
  });

  // Calls visit(entry of the column in its panel of rows, row, position in row order) for all survivors, ascending in
  // row within a column. A task is a panel of rows by a panel of columns: no two of them share an entry.
  const auto for_each_survivor = [&](const auto& visit) {
    const int64_t across = row_lines.panels.count;
    at::parallel_for(0, column_lines.panels.count * across, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t row_panel = task / across, column_panel = task % across;
        const int64_t first = row_panel * column_lines.panels.width;
        for (int64_t row = first; row < std::min(first + column_lines.panels.width, out_features); ++row) {
          const int64_t piece = column_panel * out_features + row;
          for (int32_t i = 0; i < in_row[piece]; ++i) {
            const int32_t position = row_starts[piece] + i;
            visit(row_panel * in_features + columns[position], row, position);
          }
        }
      }
    });
  };
  for_each_survivor([&](int64_t entry, int64_t, int32_t) { ++in_column[entry]; });
  std::vector<int32_t> next = arrange(column_lines, in_column);
  for_each_survivor([&](int64_t entry, int64_t row, int32_t position) {
    const int32_t place = next[entry]++;
    rows[place] = static_cast<Row>(row);
    permutation[place] = position;
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

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> sparse_pattern(
    const at::Tensor& mask) {
  TORCH_CHECK(mask.scalar_type() == at::kBool, "sparse_pattern: mask must be bool, got ", mask.scalar_type());
  TORCH_CHECK(mask.dim() == 2, "sparse_pattern: mask must have 2 dimensions [out_features, in_features], got ",
              mask.sizes());
  const int64_t out_features = mask.size(0), in_features = mask.size(1);
  const at::Tensor dense = mask.contiguous();
  const int64_t survivors = at::count_nonzero(dense).item<int64_t>();
  TORCH_CHECK(survivors <= kLargest && in_features < kLargest && out_features < kLargest,
              "sparse_pattern: mask must have at most ", kLargest, " survivors, rows and columns, got ", survivors,
              " survivors in shape ", mask.sizes());

  const auto integers = dense.options().dtype(at::kInt);
  const auto empty_lines = [&](int64_t count, Panels panels) {
    return std::pair(at::empty({panels.count, count + 1}, integers), at::empty({panels.count, count}, integers));
  };
  const auto lines_of = [&](const at::Tensor& starts, const at::Tensor& order, Panels panels) {
    return Lines{order.size(1), panels, starts.mutable_data_ptr<int32_t>(), order.mutable_data_ptr<int32_t>()};
  };
  const Panels column_panels = cut(in_features, mask.numel(), survivors),
               row_panels = cut(out_features, mask.numel(), survivors);
  const auto [row_starts, row_order] = empty_lines(out_features, column_panels);
  const auto [column_starts, column_order] = empty_lines(in_features, row_panels);
  const at::Tensor columns = at::empty({survivors}, integers.dtype(index_type(in_features)));
  const at::Tensor rows = at::empty({survivors}, integers.dtype(index_type(out_features)));
  const at::Tensor permutation = at::empty({survivors}, integers);

  const auto* kept = reinterpret_cast<const uint8_t*>(dense.const_data_ptr<bool>());
  const Lines row_lines = lines_of(row_starts, row_order, column_panels),
              column_lines = lines_of(column_starts, column_order, row_panels);
  with_index(columns, [&](auto* column) {
    with_index(rows, [&](auto* row) {
      find_survivors(kept, row_lines, column_lines, column, row, permutation.mutable_data_ptr<int32_t>());
    });
  });
  return {row_starts, row_order, columns, column_starts, column_order, rows, permutation};
}

}  // namespace
}  // namespace lth_fast

TORCH_LIBRARY_IMPL(lth_fast, CPU, library) { library.impl("sparse_pattern", lth_fast::sparse_pattern); }
