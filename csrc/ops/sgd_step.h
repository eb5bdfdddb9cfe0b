#pragma once

#include "ops/optimizer_step.h"
#include "ops/torch_headers.h"

namespace lth_fast {

// What sgd_step_ asks of its arguments on every device.
void check_sgd_step(at::TensorList parameters, at::TensorList gradients, at::TensorList momentum_buffers,
                    const OptionalTensors& mask_bits, const std::optional<at::Tensor>& lr_tensor, double momentum);

}  // namespace lth_fast
