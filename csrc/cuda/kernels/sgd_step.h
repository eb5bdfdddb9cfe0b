#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "cuda/kernels/element.h"
#include "cuda/kernels/learning_rate.h"
#include "cuda/kernels/mask_order.h"

namespace lth_fast::cuda {

// One parameter: `count` weights, and as many of all the others, in one memory order.
struct SgdTensor {
  void* parameter;
  const void* gradient;
  void* momentum_buffer;     // null without momentum
  const uint8_t* mask_bits;  // null: every weight survives
  MaskOrder order;
  int64_t count;
};

struct SgdSettings {
  LearningRate lr;
  double momentum, dampening, weight_decay;
  bool nesterov, maximize;
  bool first_step;  // the buffers become the gradients, what they held is not read
};

// One step of SGD. Pruned weights and their momentum become +0, whatever the gradient is.
void sgd_step(const std::vector<SgdTensor>& tensors, Format format, const SgdSettings& settings, cudaStream_t stream);

}  // namespace lth_fast::cuda
