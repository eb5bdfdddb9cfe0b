// One step of Adam (Kingma and Ba 2015) or AdamW (Loshchilov and Hutter 2019): every tensor passes by once.
//
// The order of the operations is that of torch's fused kernel, so that results agree to rounding. Pruned weights take
// part in the arithmetic (the lanes are there anyway) and are cleared at the end: nothing of their gradient is kept.
#include "flush_denormals.h"
#include "square_root.h"
#include "survivors.h"
#include "table.h"

namespace lth_fast::LTH_FAST_ISA {
namespace {

template <typename Element, bool kAmsgrad, bool kMasked>
inline void step_eight(const AdamTensors<Element>& tensors, const AdamFactors<Element>& factors, size_t at,
                       size_t count) {
  using Vector = Eight<Element>;
  const uint8_t bits = kMasked ? tensors.mask[at / 8] : 0xff;
  Vector parameter = load(tensors.parameter + at, count);
  Vector gradient = load(tensors.gradient + at, count) * factors.gradient_sign;
  if (factors.weight_decay != 0) gradient += parameter * factors.weight_decay;  // an infinite weight has no zero share
  parameter *= factors.kept;

  // Towards the gradient from the nearer end: exact where the gradient is all of the moment.
  Vector exp_avg = load(tensors.exp_avg + at, count);
  const Vector change = gradient - exp_avg;
  exp_avg = factors.gradient_share < Element(0.5) ? exp_avg + change * factors.gradient_share
                                                  : gradient + change * (factors.gradient_share - 1);
  Vector exp_avg_sq = load(tensors.exp_avg_sq + at, count);
  exp_avg_sq = exp_avg_sq * factors.beta2 + gradient * factors.square_share * gradient;
  Vector variance = exp_avg_sq;
  if (kAmsgrad) {
    const Vector largest = load(tensors.max_exp_avg_sq + at, count);
    // A NaN stays, in either of the two.
    variance = (largest > exp_avg_sq) | (largest != largest) ? largest : exp_avg_sq;
  }
  parameter -= exp_avg * factors.step_size / (square_root(variance) / factors.root_of_correction + factors.epsilon);

  if (kMasked) {
    parameter = zero_pruned<Element>(parameter, bits);
    exp_avg = zero_pruned<Element>(exp_avg, bits);
    exp_avg_sq = zero_pruned<Element>(exp_avg_sq, bits);
    variance = zero_pruned<Element>(variance, bits);
  }
  store(tensors.parameter + at, parameter, count);
  store(tensors.exp_avg + at, exp_avg, count);
  store(tensors.exp_avg_sq + at, exp_avg_sq, count);
  if (kAmsgrad) store(tensors.max_exp_avg_sq + at, variance, count);
}

template <typename Element, bool kAmsgrad, bool kMasked>
void step(const AdamTensors<Element>& tensors, const AdamFactors<Element>& factors, size_t first, size_t count) {
  const FlushDenormals flush;
  const AdamTensors<Element> held = tensors;  // whose pointers no store can change
  const AdamFactors<Element> constant = factors;
  for_each_eight(
      kMasked ? held.mask : nullptr, first, count,
      [&](size_t at, size_t lanes) { step_eight<Element, kAmsgrad, kMasked>(held, constant, at, lanes); },
      [&](size_t at) {
        store(held.parameter + at, Eight<Element>{}, 8);
        store(held.exp_avg + at, Eight<Element>{}, 8);
        store(held.exp_avg_sq + at, Eight<Element>{}, 8);
        if (kAmsgrad) store(held.max_exp_avg_sq + at, Eight<Element>{}, 8);
      });
}

template <typename Element>
void adam_step(const AdamTensors<Element>& tensors, const AdamFactors<Element>& factors, size_t first, size_t count) {
  const bool amsgrad = tensors.max_exp_avg_sq != nullptr, masked = tensors.mask != nullptr;
  if (amsgrad) {
    (masked ? step<Element, true, true> : step<Element, true, false>)(tensors, factors, first, count);
  } else {
    (masked ? step<Element, false, true> : step<Element, false, false>)(tensors, factors, first, count);
  }
}

}  // namespace

void register_adam_step(KernelTable& table) {
  table.adam_step_32 = adam_step<float>;
  table.adam_step_64 = adam_step<double>;
}

}  // namespace lth_fast::LTH_FAST_ISA
