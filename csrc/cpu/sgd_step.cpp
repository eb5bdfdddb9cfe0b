#include "ops/sgd_step.h"

#include "cpu/optimizer_step.h"

namespace lth_fast {
namespace {

void sgd_step_(at::TensorList parameters, at::TensorList gradients, at::TensorList momentum_buffers,
               const OptionalTensors& mask_bits, double lr, const std::optional<at::Tensor>& lr_tensor, double momentum,
               double dampening, double weight_decay, bool nesterov, bool maximize, bool first_step) {
  check_sgd_step(parameters, gradients, momentum_buffers, mask_bits, lr_tensor, momentum);
  if (share_memory(parameters)) {
    for (size_t i = 0; i < parameters.size(); ++i) {
      sgd_step_(entry(parameters, i), entry(gradients, i), entry(momentum_buffers, i), entry(mask_bits, i), lr,
                lr_tensor, momentum, dampening, weight_decay, nesterov, maximize, first_step);
    }
    return;
  }
  step_in_working_type(parameters, [&](auto type) {
    using Element = decltype(type);
    const SgdFactors<Element> factors{static_cast<Element>(maximize ? -1.0 : 1.0),
                                      static_cast<Element>(weight_decay),
                                      static_cast<Element>(momentum),
                                      static_cast<Element>(first_step ? 1.0 : 1.0 - dampening),
                                      static_cast<Element>(learning_rate(lr, lr_tensor)),
                                      nesterov};
    WorkingTensors<Element> working;
    std::vector<SgdTensors<Element>> tensors;
    for (size_t i = 0; i < parameters.size(); ++i) {
      const MemoryOrder order(parameters[i]);
      if (first_step && !momentum_buffers.empty()) momentum_buffers[i].zero_();
      tensors.push_back({working.write(parameters[i], order), working.read(gradients[i], order),
                         momentum_buffers.empty() ? nullptr : working.write(momentum_buffers[i], order),
                         working.mask(mask_bits.get(i), order)});
    }
    const auto kernel = kernels_for<Element>(&KernelTable::sgd_step_32, &KernelTable::sgd_step_64);
    for_each_piece(parameters,
                   [&](size_t i, size_t first, size_t count) { kernel(tensors[i], factors, first, count); });
    working.finish();
  });
}

}  // namespace
}  // namespace lth_fast

TORCH_LIBRARY_IMPL(lth_fast, CPU, library) { library.impl("sgd_step_", lth_fast::sgd_step_); }
