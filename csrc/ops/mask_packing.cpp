// Schemas of pack_mask and unpack_mask.
#include "ops/torch_headers.h"

TORCH_LIBRARY_FRAGMENT(lth_fast, library) {
  library.def("pack_mask(Tensor mask) -> Tensor");
  library.def("unpack_mask(Tensor bits, SymInt[] shape) -> Tensor");
}
