// Convolutions over survivors: the forward, and both gradients, in terms of two kernels (csrc/cpu/isa/sparse_conv2d.cpp
// says how their tiles of samples lie).
//
// Stride and dilation become offsets. Cut every axis of the padded input into `stride` phases, pixel i into phase
// i % stride at position i / stride: then a tap of the kernel reads one phase, and next to each other lie what
// neighbouring pixels of the output read. So the forward is a product over neighbours for every stride, and the
// gradient of the input is one such product per phase, over the taps that read the phase, mirrored.
//
// The threads share the tiles of the batch where there are enough of them, and the channels of each tile where there
// are not. Either way every sum has one owner and one order, so the bits do not depend on the number of threads.
#include "ops/sparse_conv2d.h"

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "cpu/caches.h"
#include "cpu/dispatch.h"
#include "ops/below_autograd.h"
#include "ops/checks.h"

namespace lth_fast {
namespace {

// About 10 microseconds of work: below it, one thread is faster than waking a second one.
constexpr int64_t kProductsPerThread = 1 << 18, kElementsPerThread = 1 << 15;

int64_t ceiling_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <typename Element>
const SparseConv2dKernels<Element>& sparse_conv2d_kernels() {
  return kernels_for<Element>(&KernelTable::sparse_conv2d_32, &KernelTable::sparse_conv2d_64);
}

// ---- geometry ----

// One of the two directions of the image.
struct Axis {
  int64_t input, output, kernel, stride, padding, dilation;

  int64_t phase(int64_t tap) const { return tap * dilation % stride; }
  int64_t shift(int64_t tap) const { return tap * dilation / stride; }
  int64_t last_shift() const { return shift(kernel - 1); }

  int64_t phase_of_pixel(int64_t pixel) const { return (pixel + padding) % stride; }
  int64_t position_of_pixel(int64_t pixel) const { return (pixel + padding) / stride; }
  // Positions of a phase that some output or some pixel of the input has to do with.
  int64_t positions() const { return std::max(output + last_shift(), position_of_pixel(input - 1) + 1); }

  // The pixels of a phase are those at `count` positions from `first_position`. A phase is less than a stride: below 0,
  // what is divided gives 0.
  int64_t first_position(int64_t phase) const { return ceiling_divide(padding - phase, stride); }
  int64_t count(int64_t phase) const { return ceiling_divide(input + padding - phase, stride) - first_position(phase); }
  int64_t largest_count() const { return ceiling_divide(input, stride); }
};

struct Geometry {
  int64_t batch, in_channels, out_channels, groups;
  Axis vertical, horizontal;

  int64_t taps() const { return vertical.kernel * horizontal.kernel; }
};

Geometry geometry(at::IntArrayRef input, int64_t out_channels, const Convolution& convolution) {
  const auto axis = [&](size_t i) -> Axis {
    return {input[2 + i],
            convolved_size(convolution, i, input[2 + i]),
            convolution.kernel_size[i],
            convolution.stride[i],
            convolution.padding[i],
            convolution.dilation[i]};
  };
  return {input[0], input[1], out_channels, convolution.groups, axis(0), axis(1)};
}

// Lanes of a tile: enough vectors in an output row to hide the latency of the multiply-add, if the batch has them.
template <typename Element>
int64_t tile_lanes(int64_t width, int64_t batch) {
  const auto& table = sparse_conv2d_kernels<Element>();
  const auto enough = static_cast<int64_t>(table.piece_vectors + 2) / 2;
  auto lanes = static_cast<int64_t>(table.vector_lanes);
  for (int64_t vectors = width; vectors < enough && lanes < batch; vectors *= 2) lanes *= 2;
  return lanes;
}

// ---- tiles ----

// Where the pixels of an image lie in a tile: pixel i of channel c at places[i] + c * channel. In elements.
struct Layout {
  std::vector<int32_t> places;
  int64_t row, channel, elements;

  // `rows` rows of `width` pixels of all channels.
  Layout(int64_t rows, int64_t channels, int64_t width, int64_t lanes) {
    // Not in integers, which a huge stride or padding overflows.
    const double wanted = static_cast<double>(rows) * static_cast<double>(channels) * static_cast<double>(width) *
                          static_cast<double>(lanes);
    TORCH_CHECK(wanted <= std::numeric_limits<int32_t>::max(), "sparse_conv2d: ", lanes, " samples of ", rows,
                " rows by ", width, " pixels by ", channels, " channels are more than 2**31 - 1 elements");
    channel = width * lanes;
    row = channels * channel;
    elements = rows * row;
  }

  template <typename Row, typename Column>
  void place(int64_t height, int64_t width, int64_t lanes, const Row& row_of, const Column& column_of) {
    places.reserve(height * width);
    for (int64_t y = 0; y < height; ++y) {
      for (int64_t x = 0; x < width; ++x) {
        places.push_back(static_cast<int32_t>(row_of(y) * row + column_of(x) * lanes));
      }
    }
  }
};

// The padded input, phase after phase.
Layout source_layout(const Geometry& shape, int64_t lanes) {
  const Axis &vertical = shape.vertical, &horizontal = shape.horizontal;
  const int64_t rows = vertical.positions(), columns = horizontal.positions();
  Layout layout(vertical.stride * rows, shape.in_channels, horizontal.stride * columns, lanes);
  layout.place(
      vertical.input, horizontal.input, lanes,
      [&](int64_t y) { return vertical.phase_of_pixel(y) * rows + vertical.position_of_pixel(y); },
      [&](int64_t x) { return horizontal.phase_of_pixel(x) * columns + horizontal.position_of_pixel(x); });
  return layout;
}

Layout output_layout(const Geometry& shape, int64_t lanes) {
  const Axis &vertical = shape.vertical, &horizontal = shape.horizontal;
  Layout layout(vertical.output, shape.out_channels, horizontal.output, lanes);
  layout.place(vertical.output, horizontal.output, lanes, [](int64_t y) { return y; }, [](int64_t x) { return x; });
  return layout;
}

// The gradient of the output, with zeros around it for the taps that reach beyond.
Layout grad_output_layout(const Geometry& shape, int64_t lanes) {
  const Axis &vertical = shape.vertical, &horizontal = shape.horizontal;
  Layout layout(vertical.positions() + vertical.last_shift(), shape.out_channels,
                horizontal.positions() + horizontal.last_shift(), lanes);
  layout.place(
      vertical.output, horizontal.output, lanes, [&](int64_t y) { return y + vertical.last_shift(); },
      [&](int64_t x) { return x + horizontal.last_shift(); });
  return layout;
}

// The gradient of the input, phase after phase, without the padding.
Layout grad_input_layout(const Geometry& shape, int64_t lanes) {
  const auto place = [](const Axis& axis, int64_t pixel) {
    const int64_t phase = axis.phase_of_pixel(pixel);
    return phase * axis.largest_count() + axis.position_of_pixel(pixel) - axis.first_position(phase);
  };
  const Axis &vertical = shape.vertical, &horizontal = shape.horizontal;
  Layout layout(vertical.stride * vertical.largest_count(), shape.in_channels,
                horizontal.stride * horizontal.largest_count(), lanes);
  layout.place(
      vertical.input, horizontal.input, lanes, [&](int64_t y) { return place(vertical, y); },
      [&](int64_t x) { return place(horizontal, x); });
  return layout;
}

// The samples of a batch that share a tile.
struct Samples {
  int64_t first, count, lanes;
};

// Elements of each of a vector of samples that pass before the next samples: planes of several channels where they are
// small, for samples lie far apart.
constexpr int64_t kElementsPerPass = 128;

// Calls work(channel, sample) for channels first to last and the first of every vector of so many samples.
template <typename Work>
void for_each_pass(int64_t first, int64_t last, int64_t samples, int64_t vector_lanes, int64_t pixels,
                   const Work& work) {
  const int64_t channels = std::max<int64_t>(kElementsPerPass / std::max<int64_t>(pixels, 1), 1);
  for (int64_t pass = first; pass < last; pass += channels) {
    for (int64_t sample = 0; sample < samples; sample += vector_lanes) {
      for (int64_t channel = pass; channel < std::min(pass + channels, last); ++channel) work(channel, sample);
    }
  }
}

// Rearranges the samples; the sum of each channel goes to `sums` where that is not null, while it is in cache.
template <typename Element>
void pack(const at::Tensor& images, const Samples& samples, const Layout& layout, const at::Tensor& tile,
          Element* sums = nullptr) {
  const auto& table = sparse_conv2d_kernels<Element>();
  const auto pixels = static_cast<int64_t>(layout.places.size()), sample = images.size(1) * pixels;
  const auto* from = images.const_data_ptr<Element>() + samples.first * sample;
  auto* to = tile.mutable_data_ptr<Element>();
  const auto vector_lanes = static_cast<int64_t>(table.vector_lanes);
  const int64_t channels = kElementsPerThread / (pixels * samples.lanes + 1) + 1;
  at::parallel_for(0, images.size(1), channels, [&](int64_t first, int64_t last) {
    for_each_pass(first, last, samples.lanes, vector_lanes, pixels, [&](int64_t channel, int64_t lane) {
      table.to_tile(from + lane * sample + channel * pixels, sample, std::max<int64_t>(samples.count - lane, 0), pixels,
                    layout.places.data(), to + channel * layout.channel + lane);
      if (sums != nullptr && lane + vector_lanes >= samples.lanes) {
        sums[channel] = table.sum(from + channel * pixels, sample, samples.count, pixels);
      }
    });
  });
}

// Channels first to last of a tile, with 0 for what is negative where `relu`.
template <typename Element>
void unpack(const Element* tile, const Layout& layout, const Samples& samples, int64_t first, int64_t last,
            const at::Tensor& images, bool relu) {
  const auto& table = sparse_conv2d_kernels<Element>();
  const auto pixels = static_cast<int64_t>(layout.places.size()), sample = images.size(1) * pixels;
  auto* to = images.mutable_data_ptr<Element>() + samples.first * sample;
  const auto vector_lanes = static_cast<int64_t>(table.vector_lanes);
  for_each_pass(first, last, samples.count, vector_lanes, pixels, [&](int64_t channel, int64_t lane) {
    table.from_tile(tile + channel * layout.channel + lane, layout.places.data(), pixels,
                    to + lane * sample + channel * pixels, sample, std::min(vector_lanes, samples.count - lane), relu);
  });
}

// How a batch is cut into tiles.
struct Tiles {
  int64_t batch, lanes;

  int64_t count() const { return ceiling_divide(batch, lanes); }
  Samples operator[](int64_t tile) const { return {tile * lanes, std::min(lanes, batch - tile * lanes), lanes}; }
};

// Calls work(begin, end) on ranges that cover [0, shares): a range per thread, or, if not every thread would get a
// share, one range for this thread, whose work may then use the others.
template <typename Work>
void share_out(int64_t shares, const Work& work) {
  if (shares >= at::get_num_threads()) {
    at::parallel_for(0, shares, 1, work);
  } else {
    work(int64_t{0}, shares);
  }
}

// ---- survivors as the kernels take them ----

// One of the two orders of the pattern: the survivors starts[r] to starts[r + 1] belong to channel r, and the survivor
// at i has the index taps[i] in [channels on the other side, of the same group][taps of the kernel] and the value at
// permutation[i] (i where null).
struct Order {
  const int32_t *starts, *taps, *permutation;
  int64_t rows, sources, groups;
};

Order by_output(const Geometry& shape, const at::Tensor& output_starts, const at::Tensor& input_taps) {
  return {output_starts.const_data_ptr<int32_t>(),
          input_taps.const_data_ptr<int32_t>(),
          nullptr,
          shape.out_channels,
          shape.in_channels,
          shape.groups};
}

Order by_input(const Geometry& shape, const at::Tensor& input_starts, const at::Tensor& output_taps,
               const at::Tensor& permutation) {
  return {input_starts.const_data_ptr<int32_t>(),
          output_taps.const_data_ptr<int32_t>(),
          permutation.const_data_ptr<int32_t>(),
          shape.in_channels,
          shape.out_channels,
          shape.groups};
}

// A pattern of a larger kernel, or of fewer groups, would lead out of the tiles. The taps of a channel are in ascending
// order.
void check_taps(const Order& order, int64_t taps) {
  const int64_t end = order.sources / order.groups * taps;
  for (int64_t row = 0; row < order.rows; ++row) {
    const int32_t last = order.starts[row + 1];
    TORCH_CHECK(last == order.starts[row] || order.taps[last - 1] < end,
                "sparse_conv2d: pattern must be one of kernel_size and groups, whose channels have ", end,
                " taps, got tap ", order.taps[last - 1]);
  }
}

constexpr int32_t kAbsent = -1;

// The survivors of an order whose taps have an offset, panel after panel and row after row within, with their offsets
// and the places of their values.
class Survivors {
 public:
  // `offsets` holds one offset per tap, or kAbsent; `panel` is the number of sources in a panel, `channel` the distance
  // of two sources.
  Survivors(const Order& order, const std::vector<int32_t>& offsets, int64_t panel, int64_t channel)
      : rows_(order.rows) {
    const auto taps = static_cast<int64_t>(offsets.size()), sources = order.sources / order.groups;
    const int64_t panels = std::max<int64_t>(ceiling_divide(sources, panel), 1);
    std::vector<int32_t> offset_of(sources * taps);
    for (int64_t i = 0; i < sources * taps; ++i) {
      const int32_t offset = offsets[i % taps];
      offset_of[i] = offset == kAbsent ? kAbsent : static_cast<int32_t>(offset + i / taps * channel);
    }
    // Without a stride every tap has an offset.
    const bool whole = std::find(offsets.begin(), offsets.end(), kAbsent) == offsets.end();
    const auto for_each_row = [&](const auto& visit) {
      const int64_t share = order.starts[rows_] / std::max<int64_t>(rows_, 1) + 1;
      at::parallel_for(0, rows_, kElementsPerThread / share + 1, [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row) visit(row);
      });
    };
    // Where the survivors of a panel that begin at `i` end, in the order.
    const auto end_of_panel = [&](int64_t row, int64_t p, int32_t i) {
      const int64_t end = std::min((p + 1) * panel, sources) * taps;
      while (i < order.starts[row + 1] && order.taps[i] < end) ++i;
      return i;
    };

    starts_.resize(panels * rows_ + 1);
    for_each_row([&](int64_t row) {
      int32_t i = order.starts[row];
      for (int64_t p = 0; p < panels; ++p) {
        const int32_t begin = i;
        i = end_of_panel(row, p, begin);
        const auto present = [&](int32_t tap) { return offset_of[tap] != kAbsent; };
        starts_[p * rows_ + row + 1] =
            whole ? i - begin : static_cast<int32_t>(std::count_if(order.taps + begin, order.taps + i, present));
      }
    });
    for (int64_t segment = 0; segment < panels * rows_; ++segment) starts_[segment + 1] += starts_[segment];
    offsets_.resize(starts_.back());
    places_.resize(starts_.back());
    for_each_row([&](int64_t row) {
      const auto group = static_cast<int32_t>(row / (rows_ / order.groups) * sources * channel);
      int32_t i = order.starts[row];
      for (int64_t p = 0; p < panels; ++p) {
        const int64_t segment = p * rows_ + row;
        const int32_t first = starts_[segment], last = starts_[segment + 1];
        if (whole) {
          for (int32_t next = first; next < last; ++next) {
            const int32_t survivor = i + (next - first);
            offsets_[next] = group + offset_of[order.taps[survivor]];
            places_[next] = order.permutation == nullptr ? survivor : order.permutation[survivor];
          }
          i += last - first;
          continue;
        }
        const int32_t end = end_of_panel(row, p, i);
        for (int32_t next = first; i < end; ++i) {
          const int32_t offset = offset_of[order.taps[i]];
          if (offset == kAbsent) continue;
          offsets_[next] = group + offset;
          places_[next++] = order.permutation == nullptr ? i : order.permutation[i];
        }
      }
    });
  }

  TapRows rows() const {
    const auto rows = static_cast<size_t>(rows_);
    return {starts_.data(), rows == 0 ? 0 : (starts_.size() - 1) / rows, rows, offsets_.data()};
  }

  int64_t count() const { return static_cast<int64_t>(places_.size()); }

  // The values in this order.
  template <typename Element>
  at::Tensor gather(const at::Tensor& values) const {
    at::Tensor gathered = at::empty({count()}, values.options());
    const auto* from = values.const_data_ptr<Element>();
    auto* to = gathered.mutable_data_ptr<Element>();
    at::parallel_for(0, count(), kElementsPerThread, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) to[i] = from[places_[i]];
    });
    return gathered;
  }

  // The sum of the lines of `sums`, back in the order of the values.
  template <typename Element>
  at::Tensor scatter(const at::Tensor& sums) const {
    at::Tensor values = at::empty({count()}, sums.options());
    const auto* from = sums.const_data_ptr<Element>();
    auto* to = values.mutable_data_ptr<Element>();
    at::parallel_for(0, count(), kElementsPerThread, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        Element sum = 0;
        for (int64_t line = 0; line < sums.size(0); ++line) sum += from[line * count() + i];
        to[places_[i]] = sum;
      }
    });
    return values;
  }

 private:
  int64_t rows_;
  std::vector<int32_t> starts_, offsets_, places_;
};

// Sources per panel. What a block reads of a panel should fit the first-level cache; but entering a row of a panel
// costs as much as a few survivors, so that below a dozen of them wider panels win, as long as they leave room in the
// second-level cache.
template <typename Element>
int64_t panel_width(const Geometry& shape, const Order& order, const TapRegion& region) {
  constexpr int64_t kSurvivorsPerRow = 12;
  const auto read = [](const Axis& axis, size_t block) {
    return (static_cast<int64_t>(block) + axis.last_shift()) * std::min(axis.kernel, axis.stride);
  };
  const int64_t bytes_per_source = read(shape.vertical, region.block_height) *
                                   read(shape.horizontal, region.block_width) *
                                   static_cast<int64_t>(region.lanes * sizeof(Element));
  const int64_t sources = std::max<int64_t>(order.sources / order.groups, 1);
  const int64_t survivors_per_row = order.starts[order.rows] / std::max<int64_t>(order.rows, 1) + 1;
  const int64_t wanted = kSurvivorsPerRow * sources / survivors_per_row;
  const int64_t width =
      std::clamp(wanted, level1_cache_bytes() * 7 / 8 / bytes_per_source, level2_cache_bytes() / 2 / bytes_per_source);
  return ceiling_divide(sources, ceiling_divide(sources, std::max<int64_t>(width, 1)));
}

// Channels that keep a thread busy for a while.
int64_t channels_per_thread(int64_t survivors, int64_t channels, const TapRegion& region) {
  const auto products = survivors * static_cast<int64_t>(region.height * region.width * region.lanes);
  return kProductsPerThread / (products / std::max<int64_t>(channels, 1) + 1) + 1;
}

// ---- the product: forward, and gradient of the input ----

// The pixels of a phase, by blocks of one row that are as wide as the registers allow.
template <typename Element>
TapRegion product_region(int64_t height, int64_t width, int64_t lanes, const Layout& source, const Layout& target) {
  const auto& table = sparse_conv2d_kernels<Element>();
  const int64_t widest = static_cast<int64_t>(table.piece_vectors * table.vector_lanes) / lanes;
  const int64_t pieces = std::max<int64_t>(ceiling_divide(width, widest), 1);
  TapRegion region{};
  region.height = height;
  region.width = width;
  region.block_height = 1;
  region.block_width = std::max<int64_t>(ceiling_divide(width, pieces), 1);
  region.lanes = lanes;
  region.source_row = source.row;
  region.output_row = target.row;
  region.output_channel = target.channel;
  return region;
}

template <typename Element>
class Product {
 public:
  Product(const Geometry& shape, const Order& order, const at::Tensor& values, const std::vector<int32_t>& offsets,
          const TapRegion& region, const Layout& source)
      : region_(region),
        survivors_(order, offsets, panel_width<Element>(shape, order, region), source.channel),
        values_(survivors_.template gather<Element>(values)) {}

  int64_t channels_per_thread(int64_t channels) const {
    return lth_fast::channels_per_thread(survivors_.count(), channels, region_);
  }

  void compute(int64_t first, int64_t last, const Element* bias, const Element* source, Element* output) const {
    sparse_conv2d_kernels<Element>().product(survivors_.rows(), values_.template const_data_ptr<Element>(), bias, first,
                                             last, source, output, region_);
  }

 private:
  TapRegion region_;
  Survivors survivors_;
  at::Tensor values_;
};

// offset(vertical tap, horizontal tap) of every tap.
template <typename Offset>
std::vector<int32_t> tap_offsets(const Geometry& shape, const Offset& offset) {
  std::vector<int32_t> offsets;
  for (int64_t y = 0; y < shape.vertical.kernel; ++y) {
    for (int64_t x = 0; x < shape.horizontal.kernel; ++x) offsets.push_back(static_cast<int32_t>(offset(y, x)));
  }
  return offsets;
}

// From the first pixel of the output to what the taps read of the padded input.
std::vector<int32_t> source_offsets(const Geometry& shape, const Layout& source, int64_t lanes) {
  const auto place = [](const Axis& axis, int64_t tap) { return axis.phase(tap) * axis.positions() + axis.shift(tap); };
  return tap_offsets(shape, [&](int64_t y, int64_t x) {
    return place(shape.vertical, y) * source.row + place(shape.horizontal, x) * lanes;
  });
}

// From the first pixel of a phase of the input to the gradients of the outputs that the taps made of it.
std::vector<int32_t> mirrored_offsets(const Geometry& shape, int64_t row, int64_t column, const Layout& grad_output,
                                      int64_t lanes) {
  const auto place = [](const Axis& axis, int64_t phase, int64_t tap) {
    return axis.first_position(phase) + axis.last_shift() - axis.shift(tap);
  };
  return tap_offsets(shape, [&](int64_t y, int64_t x) -> int64_t {
    if (shape.vertical.phase(y) != row || shape.horizontal.phase(x) != column) return kAbsent;
    return place(shape.vertical, row, y) * grad_output.row + place(shape.horizontal, column, x) * lanes;
  });
}

template <typename Element>
at::Tensor forward(const Geometry& shape, const Order& order, const at::Tensor& input, const at::Tensor& values,
                   const std::optional<at::Tensor>& bias, bool relu) {
  const Axis &vertical = shape.vertical, &horizontal = shape.horizontal;
  at::Tensor output = at::empty({shape.batch, shape.out_channels, vertical.output, horizontal.output}, input.options());
  if (output.numel() == 0) return output;
  const int64_t lanes = tile_lanes<Element>(horizontal.output, shape.batch);
  const Layout source = source_layout(shape, lanes), target = output_layout(shape, lanes);
  const auto region = product_region<Element>(vertical.output, horizontal.output, lanes, source, target);
  const Product<Element> product(shape, order, values.contiguous(), source_offsets(shape, source, lanes), region,
                                 source);
  const at::Tensor images = input.contiguous(), added = bias.has_value() ? bias->contiguous() : at::Tensor();
  const auto* start = bias.has_value() ? added.const_data_ptr<Element>() : nullptr;

  const Tiles tiles = {shape.batch, lanes};
  share_out(tiles.count(), [&](int64_t begin, int64_t end) {
    const at::Tensor source_tile = at::zeros({source.elements}, input.options());
    const at::Tensor target_tile = at::empty({target.elements}, input.options());
    const auto* from = source_tile.const_data_ptr<Element>();
    auto* to = target_tile.mutable_data_ptr<Element>();
    for (int64_t tile = begin; tile < end; ++tile) {
      pack<Element>(images, tiles[tile], source, source_tile);
      const int64_t grain = product.channels_per_thread(shape.out_channels);
      at::parallel_for(0, shape.out_channels, grain, [&](int64_t first, int64_t last) {
        product.compute(first, last, start, from, to);
        unpack<Element>(to, target, tiles[tile], first, last, output, relu);
      });
    }
  });
  return output;
}

template <typename Element>
class InputGrad {
 public:
  InputGrad(const Geometry& shape, const Order& order, const at::Tensor& values, const Layout& source, int64_t lanes)
      : result_(at::empty({shape.batch, shape.in_channels, shape.vertical.input, shape.horizontal.input},
                          values.options())),
        target_(grad_input_layout(shape, lanes)) {
    const Axis &vertical = shape.vertical, &horizontal = shape.horizontal;
    for (int64_t row = 0; row < vertical.stride; ++row) {
      for (int64_t column = 0; column < horizontal.stride; ++column) {
        const auto region =
            product_region<Element>(vertical.count(row), horizontal.count(column), lanes, source, target_);
        Product<Element> product(shape, order, values, mirrored_offsets(shape, row, column, source, lanes), region,
                                 source);
        const int64_t place =
            row * vertical.largest_count() * target_.row + column * horizontal.largest_count() * lanes;
        phases_.push_back({std::move(product), place});
      }
    }
  }

  at::Tensor empty_tile() const { return at::empty({target_.elements}, result_.options()); }

  void compute(const Samples& samples, const Element* grad_output, const at::Tensor& tile) const {
    auto* to = tile.template mutable_data_ptr<Element>();
    const int64_t channels = result_.size(1), grain = phases_.front().product.channels_per_thread(channels);
    at::parallel_for(0, channels, grain, [&](int64_t first, int64_t last) {
      for (const Phase& phase : phases_) phase.product.compute(first, last, nullptr, grad_output, to + phase.place);
      unpack<Element>(to, target_, samples, first, last, result_, false);
    });
  }

  const at::Tensor& result() const { return result_; }

 private:
  struct Phase {
    Product<Element> product;
    int64_t place;  // of its first pixel in the tile
  };

  at::Tensor result_;
  Layout target_;
  std::vector<Phase> phases_;
};

// ---- the gradient of the values ----

// Blocks of about as many vectors as make up for entering them.
template <typename Element>
TapRegion values_region(const Geometry& shape, int64_t lanes, const Layout& source, const Layout& grad_output) {
  constexpr int64_t kVectors = 32;
  const auto pixels = kVectors * static_cast<int64_t>(sparse_conv2d_kernels<Element>().vector_lanes) / lanes;
  const int64_t height = shape.vertical.output, width = shape.horizontal.output;
  TapRegion region{};
  region.height = height;
  region.width = width;
  region.block_width = std::min(width, pixels);
  region.block_height = std::clamp<int64_t>(pixels / width, 1, height);
  region.lanes = lanes;
  region.source_row = source.row;
  region.output_row = grad_output.row;
  region.output_channel = grad_output.channel;
  return region;
}

template <typename Element>
class ValuesGrad {
 public:
  ValuesGrad(const Geometry& shape, const Order& order, const at::Tensor& input, const Layout& grad_output,
             const Tiles& tiles, int64_t shares)
      : images_(input.contiguous()),
        source_(source_layout(shape, tiles.lanes)),
        region_(values_region<Element>(shape, tiles.lanes, source_, grad_output)),
        survivors_(order, source_offsets(shape, source_, tiles.lanes), panel_width<Element>(shape, order, region_),
                   source_.channel),
        sums_(at::empty({shares, survivors_.count()}, input.options())) {}

  at::Tensor zero_tile() const { return at::zeros({source_.elements}, images_.options()); }

  // `grad_output` points to the first pixel, inside of the zeros around it. The first samples start the share's sums.
  void add(int64_t share, bool first_of_share, const Samples& samples, const Element* grad_output,
           const at::Tensor& tile) const {
    pack<Element>(images_, samples, source_, tile);
    const auto* from = tile.template const_data_ptr<Element>();
    auto* to = sums_.template mutable_data_ptr<Element>() + share * survivors_.count();
    const auto channels = static_cast<int64_t>(survivors_.rows().rows);
    const int64_t grain = channels_per_thread(survivors_.count(), channels, region_);
    at::parallel_for(0, channels, grain, [&](int64_t first, int64_t last) {
      sparse_conv2d_kernels<Element>().values_grad(survivors_.rows(), first, last, grad_output, from, to,
                                                   !first_of_share, region_);
    });
  }

  at::Tensor result() const { return survivors_.template scatter<Element>(sums_); }

 private:
  at::Tensor images_;
  Layout source_;
  TapRegion region_;
  Survivors survivors_;
  at::Tensor sums_;  // [shares][survivors]
};

// The sums of the values' gradient that threads may work on at once, each over its part of the batch.
constexpr int64_t kShares = 8;

// The sum of each column of [tiles, channels]. Torch's sum to a single number is one per thread, added up in the end.
template <typename Element>
at::Tensor sum_of_tiles(const at::Tensor& sums) {
  const at::Tensor by_channel = sums.t().contiguous(), result = at::empty({sums.size(1)}, sums.options());
  const auto* from = by_channel.const_data_ptr<Element>();
  auto* to = result.mutable_data_ptr<Element>();
  const int64_t tiles = sums.size(0);
  for (int64_t channel = 0; channel < result.size(0); ++channel) {
    to[channel] = sparse_conv2d_kernels<Element>().sum(from + channel * tiles, 0, 1, tiles);
  }
  return result;
}

// The gradients of input, values and bias that are wanted; the others are empty.
template <typename Element>
std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(const Geometry& shape, const at::Tensor& grad_output,
                                                        const at::Tensor& input, const at::Tensor& values,
                                                        const Order& by_source, const Order& by_target,
                                                        std::array<bool, 3> wanted) {
  const auto [input_wanted, values_wanted, bias_wanted] = wanted;
  const Tiles tiles = {shape.batch, tile_lanes<Element>(shape.horizontal.output, shape.batch)};
  const int64_t shares = std::min(tiles.count(), kShares);
  const Layout layout = grad_output_layout(shape, tiles.lanes);
  std::optional<InputGrad<Element>> input_grad;
  if (input_wanted) input_grad.emplace(shape, by_source, values.contiguous(), layout, tiles.lanes);
  std::optional<ValuesGrad<Element>> values_grad;
  if (values_wanted) values_grad.emplace(shape, by_target, input, layout, tiles, shares);
  // A line per tile, added up in the end: whichever thread has a tile, the order is the same.
  const at::Tensor sums = at::empty({bias_wanted ? tiles.count() : 0, shape.out_channels}, values.options());

  const at::Tensor images = grad_output.contiguous();
  share_out(shares, [&](int64_t begin, int64_t end) {
    const at::Tensor grad_output_tile = at::zeros({layout.elements}, images.options());
    const at::Tensor grad_input_tile = input_grad.has_value() ? input_grad->empty_tile() : at::Tensor();
    const at::Tensor input_tile = values_grad.has_value() ? values_grad->zero_tile() : at::Tensor();
    const auto* from = grad_output_tile.const_data_ptr<Element>();
    for (int64_t share = begin; share < end; ++share) {
      const int64_t first = share * tiles.count() / shares, last = (share + 1) * tiles.count() / shares;
      for (int64_t tile = first; tile < last; ++tile) {
        pack<Element>(images, tiles[tile], layout, grad_output_tile,
                      bias_wanted ? sums.mutable_data_ptr<Element>() + tile * shape.out_channels : nullptr);
        if (input_grad.has_value()) input_grad->compute(tiles[tile], from, grad_input_tile);
        if (values_grad.has_value()) {
          values_grad->add(share, tile == first, tiles[tile], from + layout.places.front(), input_tile);
        }
      }
    }
  });
  return {input_grad.has_value() ? input_grad->result() : at::empty({0}, values.options()),
          values_grad.has_value() ? values_grad->result() : at::empty({0}, values.options()),
          bias_wanted ? sum_of_tiles<Element>(sums) : at::empty({0}, values.options())};
}

// ---- the registered functions ----

at::Tensor sparse_conv2d(const at::Tensor& input, const at::Tensor& values, const std::optional<at::Tensor>& bias,
                         const at::Tensor& output_starts, const at::Tensor& input_taps, const at::Tensor& input_starts,
                         const at::Tensor& output_taps, const at::Tensor& permutation, at::IntArrayRef kernel_size,
                         at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                         bool relu) {
  const Convolution convolution = {kernel_size, stride, padding, dilation, groups};
  if (past_autograd(input)) {
    check_sparse_conv2d(input, values, bias, {output_starts, input_taps, input_starts, output_taps, permutation},
                        convolution);
  }
  const Geometry shape = geometry(input.sizes(), output_starts.size(0) - 1, convolution);
  const Order order = by_output(shape, output_starts, input_taps);
  check_taps(order, shape.taps());
  return input.scalar_type() == at::kFloat ? forward<float>(shape, order, input, values, bias, relu)
                                           : forward<double>(shape, order, input, values, bias, relu);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> sparse_conv2d_backward(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& values, const at::Tensor& output_starts,
    const at::Tensor& input_taps, const at::Tensor& input_starts, const at::Tensor& output_taps,
    const at::Tensor& permutation, at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding,
    at::IntArrayRef dilation, int64_t groups, std::array<bool, 3> wanted) {
  const Convolution convolution = {kernel_size, stride, padding, dilation, groups};
  check_sparse_conv2d(input, values, std::nullopt, {output_starts, input_taps, input_starts, output_taps, permutation},
                      convolution);
  const int64_t out_channels = output_starts.size(0) - 1;
  const Geometry shape = geometry(input.sizes(), out_channels, convolution);
  const std::array<int64_t, 4> expected = {shape.batch, out_channels, shape.vertical.output, shape.horizontal.output};
  TORCH_CHECK(grad_output.sizes() == at::IntArrayRef(expected), "sparse_conv2d_backward: grad_output must have shape ",
              at::IntArrayRef(expected), " for input of shape ", input.sizes(), ", got ", grad_output.sizes());
  check_same_type("sparse_conv2d_backward", grad_output, "grad_output", values, "values");
  if (grad_output.numel() == 0) {
    const auto zeros = [&](bool given, at::IntArrayRef size) {
      return at::zeros(given ? size : at::IntArrayRef{0}, values.options());
    };
    return {zeros(wanted[0], input.sizes()), zeros(wanted[1], values.sizes()), zeros(wanted[2], {out_channels})};
  }
  const Order by_source = by_input(shape, input_starts, output_taps, permutation);
  const Order by_target = by_output(shape, output_starts, input_taps);
  check_taps(by_source, shape.taps());
  check_taps(by_target, shape.taps());
  return values.scalar_type() == at::kFloat
             ? backward<float>(shape, grad_output, input, values, by_source, by_target, wanted)
             : backward<double>(shape, grad_output, input, values, by_source, by_target, wanted);
}

}  // namespace
}  // namespace lth_fast

TORCH_LIBRARY_IMPL(lth_fast, CPU, library) {
  library.impl("sparse_conv2d", lth_fast::sparse_conv2d);
  library.impl("sparse_conv2d_backward", lth_fast::sparse_conv2d_backward);
}
