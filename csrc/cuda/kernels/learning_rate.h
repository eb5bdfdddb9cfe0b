#pragma once

#include <cuda_runtime_api.h>

namespace lth_fast::cuda {

// A number of the host, or one on the device that a captured graph reads anew in every replay.
struct LearningRate {
  double number;
  const double* on_device;  // null: the number counts

  __device__ double read() const { return on_device == nullptr ? number : *on_device; }
};

}  // namespace lth_fast::cuda
