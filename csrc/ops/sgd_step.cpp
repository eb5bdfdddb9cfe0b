// Schema and checks of sgd_step_: one step of SGD over a group of parameters. It has no derivative.
#include "ops/sgd_step.h"

// momentum_buffers: empty without momentum. first_step: the buffers become the gradients, what they held is not read.
// lr_tensor: used in the place of lr where given, so that a captured graph can change it.
TORCH_LIBRARY_FRAGMENT(lth_fast, library) {
  library.def(
      "sgd_step_(Tensor(a!)[] parameters, Tensor[] gradients, Tensor(b!)[] momentum_buffers, Tensor?[] mask_bits, *,"
      " float lr, Tensor? lr_tensor=None, float momentum, float dampening, float weight_decay, bool nesterov,"
      " bool maximize, bool first_step) -> ()");
}

namespace lth_fast {

void check_sgd_step(at::TensorList parameters, at::TensorList gradients, at::TensorList momentum_buffers,
                    const OptionalTensors& mask_bits, const std::optional<at::Tensor>& lr_tensor, double momentum) {
  constexpr auto function = "sgd_step_";
  check_parameters(function, parameters);
  check_like_parameters(function, gradients, "gradients", parameters);
  if (momentum != 0.0 || !momentum_buffers.empty()) {
    check_state_of_parameters(function, momentum_buffers, "momentum_buffers", parameters);
  }
  check_masks(function, mask_bits, parameters);
  check_lr_tensor(function, lr_tensor, parameters);
}

}  // namespace lth_fast
