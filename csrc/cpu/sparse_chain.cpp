// One tile of samples passes through all layers before the next one. What a layer hands to the next one stays a tile,
// in the second-level cache of the thread that made it: nothing is transposed but the bytes of the images, and the
// outputs of the last layer.
#include "cpu/sparse_chain.h"

#include <utility>

#include "cpu/scratch.h"
#include "cpu/sparse_linear_tiles.h"
#include "cpu/touch.h"

namespace lth_fast {
namespace {

// Images as bytes whose pixels are the features of the first layer: channels, rows, columns.
struct Images {
  const uint8_t* bytes;
  int64_t channels, pixels;
  const float *mean, *gain;

  // Brings some of them into the caches in the order of memory: read a line of each in turn, they come much slower.
  void touch(int64_t first_image, int64_t last_image) const {
    const int64_t size = channels * pixels;
    lth_fast::touch(bytes + first_image * size, (last_image - first_image) * size);
  }

  // Features first to last of the tile that begins at image `first_image`, as numbers; feature f goes to `to` + f *
  // lanes.
  void to_tile(int64_t first_image, const Tile& tile, int64_t first, int64_t last, float* to) const {
    if (first >= last) return;  // a panel of no features, of images without pixels for instance
    std::vector<const uint8_t*> planes(tile.samples);
    for (int64_t channel = first / pixels; channel * pixels < last; ++channel) {
      for (int64_t sample = 0; sample < tile.samples; ++sample) {
        planes[sample] = bytes + ((first_image + sample) * channels + channel) * pixels;
      }
      const int64_t before = channel * pixels;
      kernels().pixels_to_tile(planes.data(), tile.samples, std::max(first - before, int64_t{0}),
                               std::min(last - before, pixels), mean[channel], gain[channel], to + before * tile.lanes,
                               tile.lanes);
    }
  }
};

// sums = matrix * input, with 0 for what is negative where `relu`. panel_of_input(panel) is where the features of a
// panel lie; `second` has room for as much as `sums`.
template <typename PanelOfInput>
void multiply(const SparseRows<float>& matrix, bool relu, int64_t lanes, float* sums, float* second,
              const PanelOfInput& panel_of_input) {
  for (int64_t part = 0; part < matrix.parts; ++part) {
    for (int64_t panel = matrix.first_panel(part); panel < matrix.first_panel(part + 1); ++panel) {
      matrix.add_panel(panel, part, 0, matrix.rows, panel_of_input(panel), part == 0 ? sums : second, lanes);
    }
  }
  if (matrix.parts == 1 && !relu) return;
  sparse_linear_kernels<float>().finish_tile(sums, matrix.parts == 2 ? second : nullptr, matrix.rows * lanes, relu);
}

}  // namespace

at::Tensor sparse_chain(const std::vector<SparseLayer>& layers, const at::Tensor& images, int64_t first, int64_t count,
                        const at::Tensor& mean, const at::Tensor& gain) {
  const Images source{images.const_data_ptr<uint8_t>(), images.size(1), images.size(2) * images.size(3),
                      mean.const_data_ptr<float>(), gain.const_data_ptr<float>()};
  const int64_t pixels = source.channels * source.pixels;
  std::vector<SparseRows<float>> matrices;
  int64_t features = pixels, widest = 0;
  for (const SparseLayer& layer : layers) {
    matrices.emplace_back(layer.values, layer.bias.has_value() ? &*layer.bias : nullptr, layer.pattern[0],
                          layer.pattern[1], layer.pattern[2], features);
    features = matrices.back().rows;
    widest = std::max(widest, features);
  }
  at::Tensor output = at::empty({count, features}, images.options().dtype(at::kFloat));
  if (output.numel() == 0) return output;
  auto* to = output.mutable_data_ptr<float>();
  const auto tiles = cut_batch<float>(count);
  const int64_t size = widest * tiles.front().lanes, width = (pixels - 1) / matrices.front().panels + 1;

  at::parallel_for(0, static_cast<int64_t>(tiles.size()), 1, [&](int64_t begin, int64_t end) {
    const Scratch<float> scratch(3 * size, /*kept=*/true), panels(width * tiles.front().lanes);
    for (int64_t number = begin; number < end; ++number) {
      const Tile& tile = tiles[number];
      source.touch(first + tile.first_sample, first + tile.first_sample + tile.samples);
      float *input = scratch.data(), *sums = input + size, *second = sums + size;
      multiply(matrices.front(), layers.front().relu, tile.lanes, sums, second, [&](int64_t panel) {
        float* here = panels.from(panel * width * tile.lanes);
        source.to_tile(first + tile.first_sample, tile, panel * width, std::min((panel + 1) * width, pixels), here);
        return here;
      });
      for (size_t i = 1; i < layers.size(); ++i) {
        std::swap(input, sums);
        multiply(matrices[i], layers[i].relu, tile.lanes, sums, second, [&](int64_t) { return input; });
      }
      sparse_linear_kernels<float>().from_tile(sums, nullptr, tile.lanes, 0, features,
                                               to + tile.first_sample * features, features, tile.samples, false);
    }
  });
  return output;
}

}  // namespace lth_fast
