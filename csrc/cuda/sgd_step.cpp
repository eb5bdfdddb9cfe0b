#include "cuda/kernels/sgd_step.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>

#include "cuda/optimizer_step.h"
#include "ops/sgd_step.h"

namespace lth_fast {
namespace {

void sgd_step_(at::TensorList parameters, at::TensorList gradients, at::TensorList momentum_buffers,
               const OptionalTensors& mask_bits, double lr, const std::optional<at::Tensor>& lr_tensor, double momentum,
               double dampening, double weight_decay, bool nesterov, bool maximize, bool first_step) {
  check_sgd_step(parameters, gradients, momentum_buffers, mask_bits, lr_tensor, momentum);
  if (parameters.empty()) return;
  if (share_memory(parameters)) {
    for (size_t i = 0; i < parameters.size(); ++i) {
      sgd_step_(entry(parameters, i), entry(gradients, i), entry(momentum_buffers, i), entry(mask_bits, i), lr,
                lr_tensor, momentum, dampening, weight_decay, nesterov, maximize, first_step);
    }
    return;
  }
  const c10::cuda::CUDAGuard guard(parameters[0].device());
  WorkingTensors working;
  std::vector<cuda::SgdTensor> tensors;
  for (size_t i = 0; i < parameters.size(); ++i) {
    const at::MemoryFormat order = memory_order(parameters[i]);
    tensors.push_back({working.write(parameters[i], order), working.read(gradients[i], order),
                       working.write(momentum_buffers, i, order), mask_of(mask_bits, i),
                       mask_order(parameters[i], order), parameters[i].numel()});
  }
  const cuda::SgdSettings settings = {
      working.learning_rate(lr, lr_tensor), momentum, dampening, weight_decay, nesterov, maximize, first_step};
  cuda::sgd_step(tensors, format_of(parameters[0]), settings, c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  working.finish();
}

}  // namespace
}  // namespace lth_fast

TORCH_LIBRARY_IMPL(lth_fast, CUDA, library) { library.impl("sgd_step_", lth_fast::sgd_step_); }
