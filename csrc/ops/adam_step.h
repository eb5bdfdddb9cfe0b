#pragma once

#include "ops/optimizer_step.h"
#include "ops/torch_headers.h"

namespace lth_fast {

// What adam_step_ asks of its arguments on every device.
void check_adam_step(at::TensorList parameters, at::TensorList gradients, at::TensorList exp_avgs,
                     at::TensorList exp_avg_sqs, at::TensorList max_exp_avg_sqs, at::TensorList steps,
                     const OptionalTensors& mask_bits, const std::optional<at::Tensor>& lr_tensor, double beta1,
                     double beta2);

}  // namespace lth_fast
