// Which instruction set the kernels use: the best one this CPU has, or the one LTH_FAST_ISA names.
#pragma once

#include <string>
#include <vector>

#include "cpu/isa/table.h"

namespace lth_fast {

#define LTH_FAST_API __attribute__((visibility("default")))

// The kernels in use. Chosen on first use; throws std::invalid_argument when LTH_FAST_ISA names an ISA that was not
// built or that this CPU lacks.
const KernelTable& kernels();

// The one of two entries of that table that takes elements of this type, float or double.
template <typename Element, typename OfFloat, typename OfDouble>
const auto& kernels_for(OfFloat KernelTable::* of_float, OfDouble KernelTable::* of_double) {
  if constexpr (sizeof(Element) == 4) {
    return kernels().*of_float;
  } else {
    return kernels().*of_double;
  }
}

// Names of the ISAs in this build, best first ("avx512", "avx2", "scalar").
LTH_FAST_API std::vector<std::string> built_isas();
// Those of them that this CPU can run, best first.
LTH_FAST_API std::vector<std::string> usable_isas();
LTH_FAST_API std::string active_isa();
// For tests: use this ISA from now on, in this process. Not to be called while kernels run.
LTH_FAST_API void force_isa(const std::string& name);

}  // namespace lth_fast
