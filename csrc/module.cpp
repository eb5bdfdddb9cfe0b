// The Python module: what was built and which instruction set is in use. Operators do not live here; they are
// registered with torch by the library lth_fast_ops.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/dispatch.h"
#include "cpu/onednn.h"

PYBIND11_MODULE(_C, module) {
  module.doc() = "Build and instruction-set information of lth_fast.";
  module.def("built_isas", &lth_fast::built_isas, "Instruction sets in this build, best first.");
  module.def("usable_isas", &lth_fast::usable_isas, "Those of them this CPU can run, best first.");
  module.def("active_isa", &lth_fast::active_isa,
             "The instruction set the kernels use. Raises ValueError when LTH_FAST_ISA names one that cannot be used.");
  module.def("force_isa", &lth_fast::force_isa, pybind11::arg("name"),
             "For tests: use this instruction set from now on, in this process.");
  module.def("onednn_pays", &lth_fast::onednn_pays, pybind11::arg("samples"), pybind11::arg("in_features"),
             pybind11::arg("out_features"),
             "Whether masked_linear multiplies float32 matrices of this size by oneDNN, faster than nn.Linear does.");
  module.def("prefers_onednn", &lth_fast::prefers_onednn, "Whether it does so for any size on this CPU.");
  module.def("force_onednn", &lth_fast::force_onednn, pybind11::arg("preferred"),
             "For tests: as if this CPU preferred oneDNN, or did not, from now on, in this process.");
}
