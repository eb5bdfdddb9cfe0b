// Schema of sparse_conv2d_pattern.
#include "ops/torch_headers.h"

TORCH_LIBRARY_FRAGMENT(lth_fast, library) {
  library.def(
      "sparse_conv2d_pattern(Tensor mask, int groups) -> (Tensor output_starts, Tensor input_taps, "
      "Tensor input_starts, Tensor output_taps, Tensor permutation)");
}
