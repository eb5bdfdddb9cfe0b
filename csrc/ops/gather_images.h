#pragma once

#include "ops/torch_headers.h"

namespace lth_fast {

// What gather_images asks of its arguments.
void check_gather_images(const at::Tensor& images, const at::Tensor& indices, const at::Tensor& mean,
                         const at::Tensor& gain);

}  // namespace lth_fast
