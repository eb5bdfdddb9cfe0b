#pragma once

#include "ops/torch_headers.h"

namespace lth_fast {

// The operator of this name, for calls that go through torch's dispatcher. Looking it up takes time: once is enough.
template <typename Signature>
auto find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

}  // namespace lth_fast
