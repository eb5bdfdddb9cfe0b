// The batch is cut into tiles of samples (csrc/cpu/isa/sparse_linear.cpp says how they lie). Every sum has one thread
// as its owner: rows of the outputs, columns of the input's gradient, rows or panels of the values' gradient; so no sum
// depends on the number of threads. Whatever a thread needs for a panel only is made right before: it is still in cache
// when it is read.
#include <array>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/scratch.h"
#include "cpu/sparse_linear_tiles.h"
#include "cpu/sparse_pattern.h"
#include "ops/below_autograd.h"
#include "ops/rows.h"
#include "ops/sparse_linear.h"
#include "ops/torch_headers.h"

namespace lth_fast {
namespace {

// Lines whose sums, of a tile of so many lanes, take a share of the second-level cache: they stay there while panel
// after panel passes. The more lines, the fewer times all panels pass.
template <typename Element>
int64_t lines_in_cache(int64_t lanes, int64_t parts) {
  return level2_cache_bytes() / parts / (lanes * static_cast<int64_t>(sizeof(Element)));
}
// Rows a task works on.
template <typename Element>
int64_t rows_per_task(int64_t lanes) {
  return lines_in_cache<Element>(lanes, 2);
}
// Columns a task works on: their values and a panel of the output's gradient are in that cache, too.
template <typename Element>
int64_t columns_per_task(int64_t lanes) {
  return lines_in_cache<Element>(lanes, 4);
}
// About 10 microseconds of work: below it, one thread is faster than waking a second one.
constexpr int64_t kProductsPerThread = 1 << 18;
constexpr int64_t kFeaturesPerTask = 512;

int64_t ceiling_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// [..., features] as rows whose elements are adjacent.
at::Tensor adjacent_rows(const at::Tensor& tensor) {
  const at::Tensor flat = as_rows(tensor);
  return flat.size(1) <= 1 || flat.stride(1) == 1 ? flat : flat.contiguous();
}

// Where `sums` is given, it becomes the features' sums over the samples of each tile, [tiles, features].
template <typename Element>
void to_tiles(const at::Tensor& rows, const std::vector<Tile>& tiles, Element* to, Element* sums = nullptr) {
  const auto& table = sparse_linear_kernels<Element>();
  const int64_t features = rows.size(1), stride = rows.stride(0);
  const auto* from = rows.const_data_ptr<Element>();
  const int64_t slices = ceiling_divide(features, kFeaturesPerTask);
  at::parallel_for(0, static_cast<int64_t>(tiles.size()) * slices, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t number = task / slices;
      const Tile& tile = tiles[number];
      const int64_t first = task % slices * kFeaturesPerTask, last = std::min(first + kFeaturesPerTask, features);
      table.to_tile(from + tile.first_sample * stride, stride, tile.samples, first, last,
                    to + tile.lanes_before * features, tile.lanes,
                    sums == nullptr ? nullptr : sums + number * features);
    }
  });
}

// The input's panels as tiles. Where a thread reads a tile once or twice, it transposes each panel when its turn comes,
// so that it never leaves the first-level cache. Where it reads a tile more often, it transposes that one as a whole:
// those made for all of a large batch would be far away again. Threads at one tile share what was made before.
template <typename Element>
class InputPanels {
 public:
  // Of every tile, `readers` read all panels, on so many threads.
  InputPanels(const at::Tensor& rows, const std::vector<Tile>& tiles, int64_t panels, int64_t readers, int64_t threads)
      : rows_(rows),
        width_(ceiling_divide(rows.size(1), panels)),
        most_lanes_(tiles.front().lanes),
        few_readers_(readers <= 2) {
    if (!few_readers_ && threads > 1) {
      tiles_.emplace(lanes_of(tiles) * rows.size(1));
      to_tiles(rows, tiles, tiles_->data());
    }
  }

  // What one thread reads.
  class Reader {
   public:
    explicit Reader(const InputPanels& panels) : of_(panels) {
      if (!of_.few_readers_ && !of_.tiles_) tile_.emplace(of_.most_lanes_ * of_.rows_.size(1), /*kept=*/true);
    }

    // Calls work(panel, input) for panels first to last in turn; feature f lies at input + f * lanes.
    template <typename Work>
    void for_each(const Tile& tile, int64_t first_panel, int64_t last_panel, const Work& work) {
      if (of_.few_readers_) return panel_by_panel(tile, first_panel, last_panel, work);
      const Element* input = of_.tiles_ ? of_.tiles_->data() + tile.lanes_before * of_.rows_.size(1) : whole(tile);
      for (int64_t panel = first_panel; panel < last_panel; ++panel) work(panel, input);
    }

   private:
    template <typename Work>
    void panel_by_panel(const Tile& tile, int64_t first_panel, int64_t last_panel, const Work& work) const {
      const Scratch<Element> scratch(of_.width_ * tile.lanes);
      for (int64_t panel = first_panel; panel < last_panel; ++panel) {
        const int64_t first = panel * of_.width_, last = std::min(first + of_.width_, of_.rows_.size(1));
        Element* made = scratch.from(first * tile.lanes);
        of_.transpose(tile, first, last, made);
        work(panel, made);
      }
    }
    const Element* whole(const Tile& tile) {
      if (sample_in_tile_ != tile.first_sample) of_.transpose(tile, 0, of_.rows_.size(1), tile_->data());
      sample_in_tile_ = tile.first_sample;
      return tile_->data();
    }

    const InputPanels& of_;
    std::optional<Scratch<Element>> tile_;
    int64_t sample_in_tile_ = -1;
  };

 private:
  void transpose(const Tile& tile, int64_t first, int64_t last, Element* to) const {
    const int64_t stride = rows_.stride(0);
    sparse_linear_kernels<Element>().to_tile(rows_.const_data_ptr<Element>() + tile.first_sample * stride, stride,
                                             tile.samples, first, last, to, tile.lanes, nullptr);
  }

  const at::Tensor& rows_;
  int64_t width_, most_lanes_;
  bool few_readers_;
  std::optional<Scratch<Element>> tiles_;
};

// The lines of the matrix cut into slices of whole blocks, of about `most` lines or less, whose sizes differ by one
// block only: so many that all threads get as many when each slice is worked on `times` times.
class Slices {
 public:
  Slices(int64_t lines, int64_t most, int64_t times = 1)
      : lines_(lines),
        block_(std::max<int64_t>(lines_per_block(lines), 1)),
        blocks_(ceiling_divide(lines, block_)),
        count_(std::max<int64_t>(ceiling_divide(lines, most), 1)) {
    while (count_ * times % at::get_num_threads() != 0) ++count_;
    count_ = std::max<int64_t>(std::min(count_, blocks_), 1);
  }

  int64_t count() const { return count_; }
  int64_t first(int64_t slice) const { return std::min(slice * blocks_ / count_ * block_, lines_); }
  int64_t last(int64_t slice) const { return first(slice + 1); }
  int64_t most() const { return ceiling_divide(blocks_, count_) * block_; }

 private:
  int64_t lines_, block_, blocks_, count_;
};

// Calls work(begin, end) in parallel, once for the tasks of each thread; all of them are `products` multiply-adds.
template <typename Work>
void for_shares(int64_t tasks, int64_t products, const Work& work) {
  at::parallel_for(0, tasks, kProductsPerThread / (products / tasks + 1) + 1, work);
}

// Calls work(task) for each of them.
template <typename Work>
void for_tasks(int64_t tasks, int64_t products, const Work& work) {
  for_shares(tasks, products, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) work(task);
  });
}

// output = input * transpose(matrix) + bias, with 0 for what is negative where `relu`.
template <typename Element>
at::Tensor forward(const at::Tensor& input, const at::Tensor& values, const at::Tensor* bias,
                   const at::Tensor& row_starts, const at::Tensor& row_order, const at::Tensor& columns, bool relu) {
  const auto& table = sparse_linear_kernels<Element>();
  const int64_t rows = row_order.size(1);
  auto shape = input.sizes().vec();
  shape.back() = rows;
  at::Tensor output = at::empty(shape, input.options());
  if (output.numel() == 0) return output;
  const at::Tensor samples = adjacent_rows(input);
  const SparseRows<Element> matrix(values, bias, row_starts, row_order, columns, samples.size(1));
  const int64_t parts = matrix.parts;
  auto* to = output.mutable_data_ptr<Element>();

  const auto tiles = cut_batch<Element>(samples.size(0));
  const auto count = static_cast<int64_t>(tiles.size());
  const int64_t threads = at::get_num_threads();
  const Slices slices(rows, rows_per_task<Element>(tiles.front().lanes) / parts, count * parts);
  const InputPanels<Element> input_panels(samples, tiles, matrix.panels, slices.count(), count < threads ? threads : 1);
  using Reader = typename InputPanels<Element>::Reader;
  const int64_t products = (columns.numel() + rows) * samples.size(0);

  // Sums of a part of the panels, of a slice of the rows.
  const auto add_up = [&](Reader& reader, const Tile& tile, int64_t slice, int64_t part, Element* sums) {
    reader.for_each(tile, matrix.first_panel(part), matrix.first_panel(part + 1),
                    [&](int64_t panel, const Element* from) {
                      matrix.add_panel(panel, part, slices.first(slice), slices.last(slice), from, sums, tile.lanes);
                    });
  };
  const auto write = [&](const Tile& tile, int64_t slice, const Element* sums, const Element* second) {
    table.from_tile(sums, parts == 2 ? second : nullptr, tile.lanes, slices.first(slice), slices.last(slice),
                    to + tile.first_sample * rows, rows, tile.samples, relu);
  };
  if (parts == 1 || count * slices.count() % threads == 0) {
    for_shares(count * slices.count(), products, [&](int64_t begin, int64_t end) {
      Reader reader(input_panels);
      for (int64_t task = begin; task < end; ++task) {
        const Tile& tile = tiles[task / slices.count()];
        const int64_t slice = task % slices.count(), size = slices.most() * tile.lanes;
        const Scratch<Element> scratch(size * parts);
        Element *sums = scratch.from(slices.first(slice) * tile.lanes), *second = sums + size;
        add_up(reader, tile, slice, 0, sums);
        if (parts == 2) add_up(reader, tile, slice, 1, second);
        write(tile, slice, sums, second);
      }
    });
  } else {  // threads share the panels, too
    const int64_t size = lanes_of(tiles) * rows;
    const Scratch<Element> scratch(size * parts);
    const auto sums_of = [&](const Tile& tile, int64_t part) {
      return scratch.data() + part * size + tile.lanes_before * rows;
    };
    for_shares(count * slices.count() * parts, products, [&](int64_t begin, int64_t end) {
      Reader reader(input_panels);
      for (int64_t task = begin; task < end; ++task) {
        const Tile& tile = tiles[task / parts / slices.count()];
        add_up(reader, tile, task / parts % slices.count(), task % parts, sums_of(tile, task % parts));
      }
    });
    for_tasks(count * slices.count(), rows * samples.size(0), [&](int64_t task) {
      const Tile& tile = tiles[task / slices.count()];
      write(tile, task % slices.count(), sums_of(tile, 0), sums_of(tile, 1));
    });
  }
  return output;
}

// The gradient of the output, as rows and as tiles: all other gradients are made of it. Its features' sums over each
// tile, [tiles, features], come with the tiles where they are wanted.
template <typename Element>
struct GradOutput {
  GradOutput(const at::Tensor& gradient, bool sums_wanted)
      : rows(adjacent_rows(gradient)),
        tiles(cut_batch<Element>(rows.size(0))),
        as_tiles(lanes_of(tiles) * rows.size(1), /*kept=*/true) {
    if (sums_wanted) sums = at::empty({static_cast<int64_t>(tiles.size()), rows.size(1)}, rows.options());
    to_tiles(rows, tiles, as_tiles.data(), sums_wanted ? sums.mutable_data_ptr<Element>() : nullptr);
  }

  const Element* operator[](const Tile& tile) const { return as_tiles.data() + tile.lanes_before * rows.size(1); }

  at::Tensor rows;
  std::vector<Tile> tiles;
  Scratch<Element> as_tiles;
  at::Tensor sums;
};

// The values of some columns in column order, panel of rows after panel of rows.
template <typename Element>
class ColumnValues {
 public:
  ColumnValues(const Element* values, const at::Tensor& column_starts, const at::Tensor& permutation, int64_t first,
               int64_t last)
      : starts_(column_starts), first_(first), last_(last), scratch_(count(column_starts.size(0)), /*kept=*/true) {
    const auto* places = permutation.const_data_ptr<int32_t>();
    Element* next = scratch_.from(0);
    for (int64_t panel = 0; panel < starts_.size(0); ++panel) {
      const int32_t last_survivor = end(panel);
      for (int32_t survivor = begin(panel); survivor < last_survivor; ++survivor) *next++ = values[places[survivor]];
    }
  }

  // Element i is the value of survivor i.
  const Element* of_panel(int64_t panel) const { return scratch_.from(begin(panel) - count(panel)); }

 private:
  const int32_t* starts_of(int64_t panel) const { return starts_.const_data_ptr<int32_t>() + panel * starts_.size(1); }
  int32_t begin(int64_t panel) const { return starts_of(panel)[first_]; }
  int32_t end(int64_t panel) const { return starts_of(panel)[last_]; }
  // Survivors in the first few panels.
  int64_t count(int64_t panels) const {
    int64_t survivors = 0;
    for (int64_t panel = 0; panel < panels; ++panel) survivors += end(panel) - begin(panel);
    return survivors;
  }

  const at::Tensor& starts_;
  int64_t first_, last_;
  Scratch<Element> scratch_;
};

// grad_input = grad_output * matrix, in the shape of the layer's input. One tile reads the values where they stand:
// those that a panel of rows has in a slice of columns are few enough for the first-level cache. For several tiles they
// are put in column order once.
template <typename Element>
at::Tensor input_grad(const GradOutput<Element>& grad_output, at::IntArrayRef shape, const at::Tensor& values,
                      const at::Tensor& column_starts, const at::Tensor& column_order, const at::Tensor& rows,
                      const at::Tensor& permutation) {
  const auto& table = sparse_linear_kernels<Element>();
  const int64_t in_features = column_order.size(1), panels = column_order.size(0);
  at::Tensor result = at::empty(shape, values.options());
  const at::Tensor kept = values.contiguous();
  const auto* value = kept.const_data_ptr<Element>();
  auto* to = result.mutable_data_ptr<Element>();

  const auto& tiles = grad_output.tiles;
  const auto count = static_cast<int64_t>(tiles.size());
  const Slices slices(in_features, columns_per_task<Element>(tiles.front().lanes));
  // What passes by again and again: all values, once a tile, or all tiles, once a slice; whatever is less.
  const bool values_pass = count * rows.numel() < slices.count() * lanes_of(tiles) * grad_output.rows.size(1);
  by_index(rows, table.product_16, table.product_32, [&](auto kernel, auto index) {
    using Index = decltype(index);
    for_shares(
        slices.count(), (rows.numel() + in_features) * grad_output.rows.size(0), [&](int64_t begin, int64_t end) {
          const int64_t together = values_pass ? end - begin : 1;
          for (int64_t slice = begin; slice < end; slice += together) {
            const Scratch<Element> scratch(slices.most() * tiles.front().lanes);
            std::optional<ColumnValues<Element>> in_order;
            if (count > 1) {
              in_order.emplace(value, column_starts, permutation, slices.first(slice), slices.first(slice + together));
            }
            for (const Tile& tile : tiles) {
              for (int64_t here = slice; here < slice + together; ++here) {
                const int64_t first = slices.first(here), last = slices.last(here);
                Element* sums = scratch.from(first * tile.lanes);
                for (int64_t panel = 0; panel < panels; ++panel) {
                  kernel(panel_of<Element, Index>(panel, column_starts, column_order, rows, panel == 0,
                                                  in_order ? nullptr : &permutation),
                         in_order ? in_order->of_panel(panel) : value, nullptr, first, last, grad_output[tile], sums,
                         tile.lanes);
                }
                table.from_tile(sums, nullptr, tile.lanes, first, last, to + tile.first_sample * in_features,
                                in_features, tile.samples, false);
              }
            }
          }
        });
  });
  return result;
}

// grad_values = transpose(grad_output) * input, at the survivors.
template <typename Element>
at::Tensor values_grad(const GradOutput<Element>& grad_output, const at::Tensor& input, const at::Tensor& row_starts,
                       const at::Tensor& row_order, const at::Tensor& columns) {
  const auto& table = sparse_linear_kernels<Element>();
  at::Tensor result = at::empty(columns.sizes(), input.options());
  const at::Tensor samples = adjacent_rows(input);

  const auto& tiles = grad_output.tiles;
  const int64_t rows = row_order.size(1), panels = row_order.size(0);
  // Every dot product stands alone, so threads may share the panels instead of the rows: each panel is transposed once
  // then. As long as all rows fit the cache, and the panels make equal shares.
  const int64_t threads = at::get_num_threads(), most_rows = rows_per_task<Element>(tiles.front().lanes);
  const bool by_panels = rows <= most_rows && (panels % threads == 0 || panels >= 8 * threads);
  const Slices slices(rows, most_rows);
  const int64_t tasks = by_panels ? threads : slices.count();
  const InputPanels<Element> input_panels(samples, tiles, panels, by_panels ? 1 : tasks, std::min(threads, tasks));
  const auto add_up = [&](size_t first_tile, size_t last_tile, Element* to) {
    by_index(columns, table.values_grad_16, table.values_grad_32, [&](auto kernel, auto index) {
      for_shares(tasks, columns.numel() * samples.size(0), [&](int64_t begin, int64_t end) {
        typename InputPanels<Element>::Reader reader(input_panels);
        for (size_t number = first_tile; number < last_tile; ++number) {
          const Tile& tile = tiles[number];
          for (int64_t task = begin; task < end; ++task) {
            const int64_t first = by_panels ? 0 : slices.first(task), last = by_panels ? rows : slices.last(task);
            const int64_t first_panel = by_panels ? task * panels / tasks : 0,
                          last_panel = by_panels ? (task + 1) * panels / tasks : panels;
            reader.for_each(tile, first_panel, last_panel, [&](int64_t panel, const Element* from) {
              kernel(panel_of<Element, decltype(index)>(panel, row_starts, row_order, columns, panel == 0), first, last,
                     grad_output[tile], from, to, number > first_tile, tile.lanes);
            });
          }
        }
      });
    });
  };
  // Tiles that are added up one after the other before their sum joins the others: rounding errors grow with the
  // numbers of both, not with their product.
  constexpr size_t kTilesInARow = 64;
  add_up(0, std::min(kTilesInARow, tiles.size()), result.mutable_data_ptr<Element>());
  for (size_t first = kTilesInARow; first < tiles.size(); first += kTilesInARow) {
    const at::Tensor sum = at::empty_like(result);
    add_up(first, std::min(first + kTilesInARow, tiles.size()), sum.mutable_data_ptr<Element>());
    result.add_(sum);
  }
  return result;
}

// grad_bias = the sums of grad_output over the samples.
template <typename Element>
at::Tensor bias_grad(const GradOutput<Element>& grad_output) {
  const at::Tensor& sums = grad_output.sums;
  const int64_t tiles = sums.size(0), features = sums.size(1);
  if (tiles == 1) return sums.view({features});
  at::Tensor result = at::empty({features}, sums.options());
  const auto* from = sums.const_data_ptr<Element>();
  auto* to = result.mutable_data_ptr<Element>();
  at::parallel_for(0, features, kProductsPerThread / tiles + 1, [&](int64_t first, int64_t last) {
    sparse_linear_kernels<Element>().feature_sums(from, features, tiles, first, last, to);
  });
  return result;
}

// ---- the registered functions ----

at::Tensor sparse_linear(const at::Tensor& input, const at::Tensor& values, const std::optional<at::Tensor>& bias,
                         const at::Tensor& row_starts, const at::Tensor& row_order, const at::Tensor& columns,
                         const at::Tensor& column_starts, const at::Tensor& column_order, const at::Tensor& rows,
                         const at::Tensor& permutation, bool relu) {
  if (past_autograd(input)) {
    check_sparse_linear(input, values, bias, row_starts, row_order, columns, column_starts, column_order, rows,
                        permutation);
  }
  const at::Tensor* added = bias.has_value() ? &*bias : nullptr;
  return input.scalar_type() == at::kFloat
             ? forward<float>(input, values, added, row_starts, row_order, columns, relu)
             : forward<double>(input, values, added, row_starts, row_order, columns, relu);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> sparse_linear_backward(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& values, const at::Tensor& row_starts,
    const at::Tensor& row_order, const at::Tensor& columns, const at::Tensor& column_starts,
    const at::Tensor& column_order, const at::Tensor& rows, const at::Tensor& permutation, std::array<bool, 3> wanted) {
  const auto [input_wanted, values_wanted, bias_wanted] = wanted;
  check_sparse_linear_backward(grad_output, input, values, row_order, columns, column_order, wanted);
  const auto none = [&] { return at::empty({0}, values.options()); };
  if (grad_output.numel() == 0) {  // no samples, or a layer without outputs
    return {input_wanted ? at::zeros(input.sizes(), values.options()) : none(),
            values_wanted ? at::zeros(columns.sizes(), values.options()) : none(),
            bias_wanted ? as_rows(grad_output).sum(0) : none()};
  }
  const auto compute = [&](auto element) -> std::tuple<at::Tensor, at::Tensor, at::Tensor> {
    using Element = decltype(element);
    const GradOutput<Element> gradient(grad_output, bias_wanted);
    return {input_wanted ? input_grad(gradient, input.sizes(), values, column_starts, column_order, rows, permutation)
                         : none(),
            values_wanted ? values_grad(gradient, input, row_starts, row_order, columns) : none(),
            bias_wanted ? bias_grad(gradient) : none()};
  };
  return values.scalar_type() == at::kFloat ? compute(float{}) : compute(double{});
}

}  // namespace
}  // namespace lth_fast

TORCH_LIBRARY_IMPL(lth_fast, CPU, library) {
  library.impl("sparse_linear", lth_fast::sparse_linear);
  library.impl("sparse_linear_backward", lth_fast::sparse_linear_backward);
}
