// One step of stochastic gradient descent, with momentum or without: every tensor passes by once.
//
// The order of the operations is torch's. Pruned weights take part in the arithmetic (the lanes are there anyway) and
// are cleared at the end: nothing of their gradient is kept.
#include "flush_denormals.h"
#include "survivors.h"
#include "table.h"

namespace lth_fast::LTH_FAST_ISA {
namespace {

// Weights between the one at work and the one being fetched: the arithmetic is so little that memory sets the pace.
// Processors with AVX-512 foresee such streams themselves; Zen 5 takes a third more time when it is told.
constexpr size_t kAhead = 256;
#if defined(__AVX512F__)
constexpr bool kFetchesAhead = false;
#else
constexpr bool kFetchesAhead = true;
#endif

template <typename Element, bool kMomentum, bool kMasked>
inline void step_eight(const SgdTensors<Element>& tensors, const SgdFactors<Element>& factors, size_t at,
                       size_t count) {
  using Vector = Eight<Element>;
  const uint8_t bits = kMasked ? tensors.mask[at / 8] : 0xff;
  if (kFetchesAhead) {
    __builtin_prefetch(tensors.parameter + at + kAhead);
    __builtin_prefetch(tensors.gradient + at + kAhead);
    if (kMomentum) __builtin_prefetch(tensors.momentum + at + kAhead);
  }
  Vector parameter = load(tensors.parameter + at, count);
  Vector direction = load(tensors.gradient + at, count) * factors.gradient_sign;
  if (factors.weight_decay != 0) direction += parameter * factors.weight_decay;  // an infinite weight has no zero share
  if (kMomentum) {
    Vector momentum = load(tensors.momentum + at, count);
    momentum = momentum * factors.momentum + direction * factors.gradient_share;
    direction = factors.nesterov ? direction + momentum * factors.momentum : momentum;
    if (kMasked) momentum = zero_pruned<Element>(momentum, bits);
    store(tensors.momentum + at, momentum, count);
  }
  parameter -= direction * factors.step_size;
  if (kMasked) parameter = zero_pruned<Element>(parameter, bits);
  store(tensors.parameter + at, parameter, count);
}

template <typename Element, bool kMomentum, bool kMasked>
void step(const SgdTensors<Element>& tensors, const SgdFactors<Element>& factors, size_t first, size_t count) {
  const FlushDenormals flush;
  const SgdTensors<Element> held = tensors;  // whose pointers no store can change
  const SgdFactors<Element> constant = factors;
  for_each_eight(
      kMasked ? held.mask : nullptr, first, count,
      [&](size_t at, size_t lanes) { step_eight<Element, kMomentum, kMasked>(held, constant, at, lanes); },
      [&](size_t at) {
        store(held.parameter + at, Eight<Element>{}, 8);
        if (kMomentum) store(held.momentum + at, Eight<Element>{}, 8);
      });
}

template <typename Element>
void sgd_step(const SgdTensors<Element>& tensors, const SgdFactors<Element>& factors, size_t first, size_t count) {
  const bool momentum = tensors.momentum != nullptr, masked = tensors.mask != nullptr;
  if (momentum) {
    (masked ? step<Element, true, true> : step<Element, true, false>)(tensors, factors, first, count);
  } else {
    (masked ? step<Element, false, true> : step<Element, false, false>)(tensors, factors, first, count);
  }
}

}  // namespace

void register_sgd_step(KernelTable& table) {
  table.sgd_step_32 = sgd_step<float>;
  table.sgd_step_64 = sgd_step<double>;
}

}  // namespace lth_fast::LTH_FAST_ISA
