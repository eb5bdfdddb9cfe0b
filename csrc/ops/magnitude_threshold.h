#pragma once

#include "ops/torch_headers.h"

namespace lth_fast {

// One mask per weight, none where every weight survives.
using OptionalMasks = c10::List<std::optional<at::Tensor>>;

// What both ops ask of their arguments; k is compared with the number of survivors where those are counted.
void check_magnitude_arguments(const char* function, at::TensorList weights, const OptionalMasks& masks);

}  // namespace lth_fast
