// Where the survivors of a convolution's mask are: by output channel for the forward and the gradient of the values, by
// input channel for the gradient of the input.
#include <algorithm>
#include <limits>
#include <tuple>
#include <vector>

#include "ops/torch_headers.h"

namespace lth_fast {
namespace {

constexpr int64_t kLargest = std::numeric_limits<int32_t>::max();
constexpr int64_t kWeightsPerThread = 1 << 16;

// The mask as [groups][outputs of a group][inputs of a group][taps].
struct Mask {
  const uint8_t* kept;
  int64_t groups, outputs, inputs, taps;

  int64_t filter() const { return inputs * taps; }
};

template <typename Work>
void for_each_channel(int64_t channels, int64_t weights, const Work& work) {
  at::parallel_for(0, channels, kWeightsPerThread / std::max<int64_t>(weights, 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t channel = begin; channel < end; ++channel) work(channel);
  });
}

// counts[1...] become the positions where the survivors of each channel start, counts[0] = 0.
void counts_to_starts(int32_t* counts, int64_t channels) {
  counts[0] = 0;
  for (int64_t channel = 0; channel < channels; ++channel) counts[channel + 1] += counts[channel];
}

void find_input_taps(const Mask& mask, int32_t* output_starts, const at::Tensor& input_taps) {
  auto* taps = input_taps.mutable_data_ptr<int32_t>();
  for_each_channel(mask.groups * mask.outputs, mask.filter(), [&](int64_t output) {
    const uint8_t* kept = mask.kept + output * mask.filter();
    int32_t* next = taps + output_starts[output];
    for (int64_t tap = 0; tap < mask.filter(); ++tap) {
      if (kept[tap]) *next++ = static_cast<int32_t>(tap);
    }
  });
}

// A group's survivors stay within the group: each task has one group, whose input channels are its own.
void find_output_taps(const Mask& mask, const int32_t* output_starts, const int32_t* input_taps, int32_t* input_starts,
                      int32_t* output_taps, int32_t* permutation) {
  const auto for_each_survivor = [&](int64_t group, const auto& visit) {
    for (int64_t local = 0; local < mask.outputs; ++local) {
      const int64_t output = group * mask.outputs + local;
      for (int32_t s = output_starts[output]; s < output_starts[output + 1]; ++s) {
        const int64_t input = input_taps[s] / mask.taps;
        visit(group * mask.inputs + input, local * mask.taps + input_taps[s] - input * mask.taps, s);
      }
    }
  };
  const int64_t inputs = mask.groups * mask.inputs, weights = mask.outputs * mask.filter();
  std::fill_n(input_starts, inputs + 1, 0);
  for_each_channel(mask.groups, weights, [&](int64_t group) {
    for_each_survivor(group, [&](int64_t input, int64_t, int32_t) { ++input_starts[input + 1]; });
  });
  counts_to_starts(input_starts, inputs);
  std::vector<int32_t> next(input_starts, input_starts + inputs);
  for_each_channel(mask.groups, weights, [&](int64_t group) {
    for_each_survivor(group, [&](int64_t input, int64_t tap, int32_t survivor) {
      const int32_t place = next[input]++;
      output_taps[place] = static_cast<int32_t>(tap);
      permutation[place] = survivor;
    });
  });
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> sparse_conv2d_pattern(const at::Tensor& mask,
                                                                                             int64_t groups) {
  TORCH_CHECK(mask.scalar_type() == at::kBool, "sparse_conv2d_pattern: mask must be bool, got ", mask.scalar_type());
  TORCH_CHECK(mask.dim() == 4,
              "sparse_conv2d_pattern: mask must have 4 dimensions [out_channels, in_channels / groups, height, width], "
              "got ",
              mask.sizes());
  TORCH_CHECK(groups >= 1 && mask.size(0) % groups == 0,
              "sparse_conv2d_pattern: groups must be positive and divide the ", mask.size(0), " output channels, got ",
              groups);
  TORCH_CHECK(groups <= kLargest / std::max<int64_t>(mask.size(1), 1), "sparse_conv2d_pattern: groups must be at most ",
              kLargest / std::max<int64_t>(mask.size(1), 1), " for a mask of shape ", mask.sizes(), ", got ", groups);
  TORCH_CHECK(mask.numel() <= kLargest, "sparse_conv2d_pattern: mask must have at most ", kLargest,
              " elements, got shape ", mask.sizes());
  const at::Tensor dense = mask.contiguous();
  const Mask weights = {reinterpret_cast<const uint8_t*>(dense.const_data_ptr<bool>()), groups, mask.size(0) / groups,
                        mask.size(1), mask.size(2) * mask.size(3)};
  const int64_t outputs = mask.size(0), inputs = groups * mask.size(1);
  const auto integers = dense.options().dtype(at::kInt);

  at::Tensor output_starts = at::empty({outputs + 1}, integers), input_starts = at::empty({inputs + 1}, integers);
  auto* starts = output_starts.mutable_data_ptr<int32_t>();
  for_each_channel(outputs, weights.filter(), [&](int64_t output) {
    const uint8_t* kept = weights.kept + output * weights.filter();
    starts[output + 1] = static_cast<int32_t>(weights.filter() - std::count(kept, kept + weights.filter(), uint8_t{0}));
  });
  counts_to_starts(starts, outputs);

  const int64_t survivors = starts[outputs];
  at::Tensor input_taps = at::empty({survivors}, integers), output_taps = at::empty({survivors}, integers);
  at::Tensor permutation = at::empty({survivors}, integers);
  find_input_taps(weights, starts, input_taps);
  find_output_taps(weights, starts, input_taps.const_data_ptr<int32_t>(), input_starts.mutable_data_ptr<int32_t>(),
                   output_taps.mutable_data_ptr<int32_t>(), permutation.mutable_data_ptr<int32_t>());
  return {output_starts, input_taps, input_starts, output_taps, permutation};
}

}  // namespace
}  // namespace lth_fast

TORCH_LIBRARY_IMPL(lth_fast, CPU, library) { library.impl("sparse_conv2d_pattern", lth_fast::sparse_conv2d_pattern); }
