// Sparse linear layers, one after the other, over images as bytes.
#pragma once

#include <optional>
#include <vector>

#include "ops/torch_headers.h"

namespace lth_fast {

struct SparseLayer {
  at::Tensor values;
  std::optional<at::Tensor> bias;
  std::vector<at::Tensor> pattern;  // the seven tensors of sparse_pattern
  bool relu;                        // whether a ReLU follows
};

// What the last of `layers`, of which there is at least one, makes of images first to first + count: float32 [count,
// out_features], the bits of gather_images and of sparse_linear after sparse_linear. Images, mean and gain are those of
// gather_images, contiguous.
at::Tensor sparse_chain(const std::vector<SparseLayer>& layers, const at::Tensor& images, int64_t first, int64_t count,
                        const at::Tensor& mean, const at::Tensor& gain);

}  // namespace lth_fast
