#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "cuda/kernels/element.h"
#include "cuda/kernels/learning_rate.h"
#include "cuda/kernels/mask_order.h"

namespace lth_fast::cuda {

// One parameter: `count` weights, and as many of all the others, in one memory order.
struct AdamTensor {
  void* parameter;
  const void* gradient;
  void* exp_avg;
  void* exp_avg_sq;
  void* max_exp_avg_sq;      // null without AMSGrad
  void* step;                // one number, float or double
  const uint8_t* mask_bits;  // null: every weight survives
  MaskOrder order;
  int64_t count;
  bool step_is_double;
};

struct AdamSettings {
  LearningRate lr;
  double beta1, beta2, eps, weight_decay;
  bool decoupled_weight_decay, maximize;
};

// One step of Adam or AdamW. Pruned weights and their moments become +0, whatever the gradient is.
void adam_step(const std::vector<AdamTensor>& tensors, Format format, const AdamSettings& settings,
               cudaStream_t stream);

}  // namespace lth_fast::cuda
