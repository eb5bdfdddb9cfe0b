#include "cuda/kernels/adam_step.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>

#include "cuda/optimizer_step.h"
#include "ops/adam_step.h"

namespace lth_fast {
namespace {

void adam_step_(at::TensorList parameters, at::TensorList gradients, at::TensorList exp_avgs,
                at::TensorList exp_avg_sqs, at::TensorList max_exp_avg_sqs, at::TensorList steps,
                const OptionalTensors& mask_bits, double lr, const std::optional<at::Tensor>& lr_tensor, double beta1,
                double beta2, double eps, double weight_decay, bool decoupled_weight_decay, bool maximize) {
  check_adam_step(parameters, gradients, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps, mask_bits, lr_tensor, beta1,
                  beta2);
  if (parameters.empty()) return;
  if (share_memory(parameters)) {
    for (size_t i = 0; i < parameters.size(); ++i) {
      adam_step_(entry(parameters, i), entry(gradients, i), entry(exp_avgs, i), entry(exp_avg_sqs, i),
                 entry(max_exp_avg_sqs, i), entry(steps, i), entry(mask_bits, i), lr, lr_tensor, beta1, beta2, eps,
                 weight_decay, decoupled_weight_decay, maximize);
    }
    return;
  }
  const c10::cuda::CUDAGuard guard(parameters[0].device());
  WorkingTensors working;
  std::vector<cuda::AdamTensor> tensors;
  for (size_t i = 0; i < parameters.size(); ++i) {
    const at::MemoryFormat order = memory_order(parameters[i]);
    tensors.push_back({working.write(parameters[i], order), working.read(gradients[i], order),
                       working.write(exp_avgs[i], order), working.write(exp_avg_sqs[i], order),
                       working.write(max_exp_avg_sqs, i, order), working.write(steps[i], at::MemoryFormat::Contiguous),
                       mask_of(mask_bits, i), mask_order(parameters[i], order), parameters[i].numel(),
                       steps[i].scalar_type() == at::kDouble});
  }
  const cuda::AdamSettings settings = {
      working.learning_rate(lr, lr_tensor), beta1, beta2, eps, weight_decay, decoupled_weight_decay, maximize};
  cuda::adam_step(tensors, format_of(parameters[0]), settings, c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  working.finish();
}

}  // namespace
}  // namespace lth_fast

TORCH_LIBRARY_IMPL(lth_fast, CUDA, library) { library.impl("adam_step_", lth_fast::adam_step_); }
