// One pass over weights, gradients and moments of all parameters together.
#include "cuda/kernels/adam_step.h"

#include <cmath>

#include "cuda/kernels/launch.h"
#include "cuda/kernels/tensor_list.h"

namespace lth_fast::cuda {
namespace {

constexpr int64_t kAdamChunk = 1 << 10;  // four weights a thread: a small network still fills the device
using AdamList = TensorList<AdamTensor, kAdamChunk>;

__device__ double read_step(const AdamTensor& tensor) {
  return tensor.step_is_double ? *static_cast<const double*>(tensor.step) : *static_cast<const float*>(tensor.step);
}

// Launched before the step itself, whose blocks all read these numbers.
__global__ void raise_steps(AdamList list) {
  for (int i = threadIdx.x; i < list.size; i += kThreads) {
    const AdamTensor& tensor = list.tensors[i];
    if (tensor.step_is_double) {
      *static_cast<double*>(tensor.step) += 1;
    } else {
      *static_cast<float*>(tensor.step) += 1;
    }
  }
}

// What the step number makes of the settings.
struct Corrected {
  double decay;      // of the weights
  double step_size;  // lr / (1 - beta1^step)
  double root;       // sqrt(1 - beta2^step)
};

template <typename Element>
__global__ void adam(AdamList list, AdamSettings settings) {
  using Number = typename Arithmetic<Element>::Type;
  __shared__ Corrected shared;
  const Chunk chunk = chunk_of_block(list);
  const AdamTensor& tensor = list.tensors[chunk.tensor];
  if (threadIdx.x == 0) {
    const double step = read_step(tensor), lr = settings.lr.read();
    shared.decay = settings.decoupled_weight_decay ? 1 - lr * settings.weight_decay : 1;
    shared.step_size = lr / (1 - std::pow(settings.beta1, step));
    shared.root = std::sqrt(1 - std::pow(settings.beta2, step));
  }
  __syncthreads();

  const auto decay = static_cast<Number>(shared.decay), step_size = static_cast<Number>(shared.step_size);
  const auto root = static_cast<Number>(shared.root), eps = static_cast<Number>(settings.eps);
  const auto beta2 = static_cast<Number>(settings.beta2);
  const auto new_share = static_cast<Number>(1 - settings.beta1), new_square = static_cast<Number>(1 - settings.beta2);
  const auto penalty = static_cast<Number>(settings.decoupled_weight_decay ? 0 : settings.weight_decay);
  auto* parameters = static_cast<Element*>(tensor.parameter);
  auto* exp_avgs = static_cast<Element*>(tensor.exp_avg);
  auto* exp_avg_sqs = static_cast<Element*>(tensor.exp_avg_sq);
  auto* max_exp_avg_sqs = static_cast<Element*>(tensor.max_exp_avg_sq);
  const auto* gradients = static_cast<const Element*>(tensor.gradient);

  for (int64_t i = chunk.first + threadIdx.x; i < chunk.first + chunk.count; i += kThreads) {
    if (tensor.mask_bits != nullptr && !survives(tensor.mask_bits, tensor.order.flat_index(i))) {
      parameters[i] = exp_avgs[i] = exp_avg_sqs[i] = Element(Number{0});
      if (max_exp_avg_sqs != nullptr) max_exp_avg_sqs[i] = Element(Number{0});
      continue;
    }
    const auto weight = static_cast<Number>(parameters[i]);
    Number gradient = static_cast<Number>(gradients[i]);
    if (settings.maximize) gradient = -gradient;
    if (penalty != 0) gradient += penalty * weight;
    const auto old_avg = static_cast<Number>(exp_avgs[i]), old_sq = static_cast<Number>(exp_avg_sqs[i]);
    // Towards the gradient from the nearer end: exact where the gradient is all of the moment.
    const Number change = gradient - old_avg;
    const Number exp_avg = new_share < Number{0.5} ? old_avg + new_share * change : gradient + (new_share - 1) * change;
    const Number exp_avg_sq = beta2 * old_sq + new_square * gradient * gradient;
    Number square = exp_avg_sq;
    if (max_exp_avg_sqs != nullptr) {
      const auto largest = static_cast<Number>(max_exp_avg_sqs[i]);
      // Not the maximum of <cmath>, which drops NaN.
      if (largest > square || largest != largest) square = largest;
      max_exp_avg_sqs[i] = Element(square);
    }
    parameters[i] = Element(decay * weight - step_size * exp_avg / (std::sqrt(square) / root + eps));
    exp_avgs[i] = Element(exp_avg);
    exp_avg_sqs[i] = Element(exp_avg_sq);
  }
}

}  // namespace

void adam_step(const std::vector<AdamTensor>& tensors, Format format, const AdamSettings& settings,
               cudaStream_t stream) {
  for_each_list<AdamTensor, kAdamChunk>(
      tensors, [&](const AdamList& list) { launch(raise_steps, dim3(1), dim3(kThreads), stream, list); });
  with_element(format, [&](auto element) { launch_over_chunks(adam<decltype(element)>, tensors, stream, settings); });
}

}  // namespace lth_fast::cuda
