// The formats of weights and the precision their arithmetic is done in.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace lth_fast::cuda {

enum class Format { kFloat, kDouble, kHalf, kBFloat16 };

// float for all but double.
template <typename Element>
struct Arithmetic {
  using Type = float;
};
template <>
struct Arithmetic<double> {
  using Type = double;
};

// Calls work(Element{}) for the format.
template <typename Work>
void with_element(Format format, const Work& work) {
  switch (format) {
    case Format::kFloat:
      return work(float{});
    case Format::kDouble:
      return work(double{});
    case Format::kHalf:
      return work(__half{});
    case Format::kBFloat16:
      return work(__nv_bfloat16{});
  }
}

}  // namespace lth_fast::cuda
