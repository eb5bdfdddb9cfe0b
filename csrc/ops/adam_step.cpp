// Schema and checks of adam_step_: one step of Adam or AdamW over a group of parameters. It has no derivative.
#include "ops/adam_step.h"

// steps: one number each, raised by one before it is used. max_exp_avg_sqs: empty without AMSGrad. lr_tensor: used in
// the place of lr where given, so that a captured graph can change it. decoupled_weight_decay: AdamW's.
TORCH_LIBRARY_FRAGMENT(lth_fast, library) {
  library.def(
      "adam_step_(Tensor(a!)[] parameters, Tensor[] gradients, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs,"
      " Tensor(d!)[] max_exp_avg_sqs, Tensor(e!)[] steps, Tensor?[] mask_bits, *, float lr, Tensor? lr_tensor=None,"
      " float beta1, float beta2, float eps, float weight_decay, bool decoupled_weight_decay, bool maximize) -> ()");
}

namespace lth_fast {
namespace {

void check_beta(const char* function, double beta, const char* name) {
  TORCH_CHECK(beta >= 0.0 && beta < 1.0, function, ": ", name, " must be between 0 and 1 (excluded), got ", beta);
}

}  // namespace

void check_adam_step(at::TensorList parameters, at::TensorList gradients, at::TensorList exp_avgs,
                     at::TensorList exp_avg_sqs, at::TensorList max_exp_avg_sqs, at::TensorList steps,
                     const OptionalTensors& mask_bits, const std::optional<at::Tensor>& lr_tensor, double beta1,
                     double beta2) {
  constexpr auto function = "adam_step_";
  check_parameters(function, parameters);
  check_like_parameters(function, gradients, "gradients", parameters);
  check_state_of_parameters(function, exp_avgs, "exp_avgs", parameters);
  check_state_of_parameters(function, exp_avg_sqs, "exp_avg_sqs", parameters);
  if (!max_exp_avg_sqs.empty()) check_state_of_parameters(function, max_exp_avg_sqs, "max_exp_avg_sqs", parameters);
  TORCH_CHECK(steps.size() == parameters.size(), function, ": steps must hold one entry per parameter (",
              parameters.size(), "), got ", steps.size());
  for (size_t i = 0; i < steps.size(); ++i) {
    const auto type = steps[i].scalar_type();
    TORCH_CHECK(steps[i].numel() == 1 && (type == at::kFloat || type == at::kDouble), function, ": steps[", i,
                "] must be one float32 or float64 number, got shape ", steps[i].sizes(), " ", type);
    TORCH_CHECK(steps[i].device() == parameters[i].device(), function, ": steps[", i,
                "] must be on the device of parameters[", i, "] (", parameters[i].device(), "), got ",
                steps[i].device());
  }
  check_masks(function, mask_bits, parameters);
  check_lr_tensor(function, lr_tensor, parameters);
  check_beta(function, beta1, "beta1");
  check_beta(function, beta2, "beta2");
}

}  // namespace lth_fast
