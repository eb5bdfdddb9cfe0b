#include "ops/gather_images.h"

#include "cpu/dispatch.h"

namespace lth_fast {
namespace {

// Images lie anywhere in a set that no cache holds: those that come are fetched while others are worked on.
void fetch(const uint8_t* image, int64_t bytes) {
  constexpr int64_t kLine = 64;
  for (int64_t at = 0; at < bytes; at += kLine) __builtin_prefetch(image + at);
}

at::Tensor gather_images(const at::Tensor& images, const at::Tensor& indices, const at::Tensor& mean,
                         const at::Tensor& gain) {
  check_gather_images(images, indices, mean, gain);
  const int64_t count = indices.numel(), channels = images.size(1), pixels = images.size(2) * images.size(3);
  const at::Tensor chosen = indices.contiguous(), means = mean.contiguous(), gains = gain.contiguous();
  const auto* index = chosen.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < count; ++i) {
    TORCH_CHECK_INDEX(index[i] >= 0 && index[i] < images.size(0), "gather_images: indices must be in 0..",
                      images.size(0) - 1, ", got ", index[i]);
  }
  at::Tensor output = at::empty({count, channels, images.size(2), images.size(3)}, images.options().dtype(at::kFloat));
  const auto* from = images.const_data_ptr<uint8_t>();
  const auto *subtract = means.const_data_ptr<float>(), *multiply = gains.const_data_ptr<float>();
  auto* to = output.mutable_data_ptr<float>();
  constexpr int64_t kPixelsPerTask = 1 << 16;  // some 10 microseconds of work
  constexpr int64_t kBytesAhead = 2048;
  const int64_t size = channels * pixels, ahead = kBytesAhead / (size + 1) + 1;
  const auto kernel = kernels().gather_pixels;
  at::parallel_for(0, count, kPixelsPerTask / (size + 1) + 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      if (i + ahead < last) fetch(from + index[i + ahead] * size, size);
      for (int64_t channel = 0; channel < channels; ++channel) {
        kernel(from + (index[i] * channels + channel) * pixels, subtract[channel], multiply[channel],
               to + (i * channels + channel) * pixels, static_cast<size_t>(pixels));
      }
    }
  });
  return output;
}

}  // namespace
}  // namespace lth_fast

TORCH_LIBRARY_IMPL(lth_fast, CPU, library) { library.impl("gather_images", lth_fast::gather_images); }
