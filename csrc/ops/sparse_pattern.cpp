// Schema of sparse_pattern.
#include "ops/torch_headers.h"

TORCH_LIBRARY_FRAGMENT(lth_fast, library) {
  library.def(
      "sparse_pattern(Tensor mask) -> (Tensor row_starts, Tensor row_order, Tensor columns, Tensor column_starts, "
      "Tensor column_order, Tensor rows, Tensor permutation)");
}
