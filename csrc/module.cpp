// The Python module: what was built and which instruction set is in use. Operators do not live here; they are
// registered with torch by the library lth_fast_ops.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/dispatch.h"

PYBIND11_MODULE(_C, module) {
  module.doc() = "Build and instruction-set information of lth_fast.";
  module.def("built_isas", &lth_fast::built_isas, "Instruction sets in this build, best first.");
  module.def("usable_isas", &lth_fast::usable_isas, "Those of them this CPU can run, best first.");
  module.def(
      "active_isa", &lth_fast::active_isa,
      "The instruction set the kernels use. Raises RuntimeError when LTH_FAST_ISA names one that cannot be used.");
  module.def("force_isa", &lth_fast::force_isa, pybind11::arg("name"),
             "For tests: use this instruction set from now on, in this process.");
}
