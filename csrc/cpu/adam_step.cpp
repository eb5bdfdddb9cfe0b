#include "ops/adam_step.h"

#include <cmath>

#include "cpu/optimizer_step.h"

namespace lth_fast {
namespace {

// Raises the count by one. Without torch's operators: a few microseconds of those for every parameter would take longer
// than the weights of a small layer.
double next_step(const at::Tensor& step) {
  const double next =
      step.scalar_type() == at::kFloat ? ++*step.mutable_data_ptr<float>() : ++*step.mutable_data_ptr<double>();
  if (!step.is_inference()) step.unsafeGetTensorImpl()->bump_version();
  return next;
}

void adam_step_(at::TensorList parameters, at::TensorList gradients, at::TensorList exp_avgs,
                at::TensorList exp_avg_sqs, at::TensorList max_exp_avg_sqs, at::TensorList steps,
                const OptionalTensors& mask_bits, double lr, const std::optional<at::Tensor>& lr_tensor, double beta1,
                double beta2, double eps, double weight_decay, bool decoupled_weight_decay, bool maximize) {
  check_adam_step(parameters, gradients, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps, mask_bits, lr_tensor, beta1,
                  beta2);
  if (share_memory(parameters)) {
    for (size_t i = 0; i < parameters.size(); ++i) {
      adam_step_(entry(parameters, i), entry(gradients, i), entry(exp_avgs, i), entry(exp_avg_sqs, i),
                 entry(max_exp_avg_sqs, i), entry(steps, i), entry(mask_bits, i), lr, lr_tensor, beta1, beta2, eps,
                 weight_decay, decoupled_weight_decay, maximize);
    }
    return;
  }
  step_in_working_type(parameters, [&](auto type) {
    using Element = decltype(type);
    const double rate = learning_rate(lr, lr_tensor);
    WorkingTensors<Element> working;
    std::vector<AdamTensors<Element>> tensors;
    std::vector<AdamFactors<Element>> factors;
    for (size_t i = 0; i < parameters.size(); ++i) {
      const MemoryOrder order(parameters[i]);
      tensors.push_back({working.write(parameters[i], order), working.read(gradients[i], order),
                         working.write(exp_avgs[i], order), working.write(exp_avg_sqs[i], order),
                         max_exp_avg_sqs.empty() ? nullptr : working.write(max_exp_avg_sqs[i], order),
                         working.mask(mask_bits.get(i), order)});
      const double step = next_step(steps[i]);
      factors.push_back({static_cast<Element>(maximize ? -1.0 : 1.0),
                         static_cast<Element>(decoupled_weight_decay ? 0.0 : weight_decay),
                         static_cast<Element>(decoupled_weight_decay ? 1.0 - rate * weight_decay : 1.0),
                         static_cast<Element>(1.0 - beta1), static_cast<Element>(beta2),
                         static_cast<Element>(1.0 - beta2),
                         static_cast<Element>(std::sqrt(1.0 - std::pow(beta2, step))), static_cast<Element>(eps),
                         static_cast<Element>(rate / (1.0 - std::pow(beta1, step)))});
    }
    const auto kernel = kernels_for<Element>(&KernelTable::adam_step_32, &KernelTable::adam_step_64);
    for_each_piece(parameters,
                   [&](size_t i, size_t first, size_t count) { kernel(tensors[i], factors[i], first, count); });
    working.finish();
  });
}

}  // namespace
}  // namespace lth_fast

TORCH_LIBRARY_IMPL(lth_fast, CPU, library) { library.impl("adam_step_", lth_fast::adam_step_); }
