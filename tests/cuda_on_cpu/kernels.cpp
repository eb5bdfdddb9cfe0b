// The CUDA kernels as functions of C that run on a CPU; see include/cuda_runtime_api.h.
#include "cuda/kernels/adam_step.cu"
#include "cuda/kernels/magnitude_threshold.cu"
#include "cuda/kernels/mask_packing.cu"
#include "cuda/kernels/masked_apply.cu"
#include "cuda/kernels/sgd_step.cu"
#include "cuda/kernels/sparse_linear.cu"

namespace {

using namespace lth_fast::cuda;

template <typename Key>
MagnitudeOutcome search(const MagnitudeTensor* tensors, int64_t count, int64_t k, uint64_t infinity, Key* threshold,
                        int64_t* tie_budget, int64_t* survivors) {
  MagnitudeSearch<Key> search({tensors, tensors + count}, static_cast<Key>(infinity));
  std::vector<int64_t> workspace(search.workspace_bytes() / sizeof(int64_t), INT64_C(0x5a5a5a5a5a5a5a5a));
  search.find(k, workspace.data(), nullptr);
  search.write_threshold(workspace.data(), threshold, tie_budget, survivors, nullptr);
  std::vector<uint8_t*> new_masks;
  for (int64_t i = 0; i < count; ++i) new_masks.push_back(tensors[i].new_mask);
  search.prune(new_masks, workspace.data(), nullptr);
  MagnitudeOutcome outcome;
  std::memcpy(&outcome, workspace.data(), sizeof(outcome));
  return outcome;
}

template <typename Element, typename Index>
void sparse_layer(const SparseLines<Index>& rows, const SparseLines<Index>& columns, const Element* values,
                  const Element* values_by_column, const Element* bias, const Element* input, Element* output,
                  const Element* grad_output, Element* grad_input, Element* grad_values, int64_t samples) {
  sparse_product(rows, values, bias, input, output, samples, nullptr);
  sparse_product(columns, values_by_column, static_cast<const Element*>(nullptr), grad_output, grad_input, samples,
                 nullptr);
  sampled_product(rows, grad_output, input, grad_values, samples, nullptr);
}

}  // namespace

extern "C" {

void adam(const AdamTensor* tensors, int64_t count, int format, const AdamSettings* settings) {
  adam_step({tensors, tensors + count}, static_cast<Format>(format), *settings, nullptr);
}
void sgd(const SgdTensor* tensors, int64_t count, int format, const SgdSettings* settings) {
  sgd_step({tensors, tensors + count}, static_cast<Format>(format), *settings, nullptr);
}

void set_reversed(bool reversed) { cuda_on_cpu::reversed = reversed; }
void set_memory_of_a_block(int64_t bytes) { cuda_on_cpu::most_dynamic_bytes = static_cast<size_t>(bytes); }

void pack(const uint8_t* mask, uint8_t* bits, int64_t count) { pack_mask(mask, bits, count, nullptr); }
void unpack(const uint8_t* bits, uint8_t* mask, int64_t count) { unpack_mask(bits, mask, count, nullptr); }

void apply_16(const uint16_t* input, const uint8_t* bits, uint16_t* output, int64_t count) {
  masked_apply(input, bits, output, count, nullptr);
}
void apply_32(const uint32_t* input, const uint8_t* bits, uint32_t* output, int64_t count) {
  masked_apply(input, bits, output, count, nullptr);
}
void apply_64(const uint64_t* input, const uint8_t* bits, uint64_t* output, int64_t count) {
  masked_apply(input, bits, output, count, nullptr);
}
void apply_channels_last(uint32_t* weights, const uint8_t* bits, int64_t channels, int64_t area, int64_t count) {
  masked_apply_in_order(weights, bits, {channels, area}, count, nullptr);
}
void apply_each_16(const MaskedTensor* tensors, int64_t count) {
  masked_apply_each<uint16_t>({tensors, tensors + count}, nullptr);
}
void apply_each_32(const MaskedTensor* tensors, int64_t count) {
  masked_apply_each<uint32_t>({tensors, tensors + count}, nullptr);
}
void apply_each_64(const MaskedTensor* tensors, int64_t count) {
  masked_apply_each<uint64_t>({tensors, tensors + count}, nullptr);
}

MagnitudeOutcome search_16(const MagnitudeTensor* tensors, int64_t count, int64_t k, uint64_t infinity, uint16_t* key,
                           int64_t* tie_budget, int64_t* survivors) {
  return search(tensors, count, k, infinity, key, tie_budget, survivors);
}
MagnitudeOutcome search_32(const MagnitudeTensor* tensors, int64_t count, int64_t k, uint64_t infinity, uint32_t* key,
                           int64_t* tie_budget, int64_t* survivors) {
  return search(tensors, count, k, infinity, key, tie_budget, survivors);
}
MagnitudeOutcome search_64(const MagnitudeTensor* tensors, int64_t count, int64_t k, uint64_t infinity, uint64_t* key,
                           int64_t* tie_budget, int64_t* survivors) {
  return search(tensors, count, k, infinity, key, tie_budget, survivors);
}

#define LTH_FAST_SPARSE_LAYER(name, Element, Index)                                                                    \
  void name(const SparseLines<Index>* rows, const SparseLines<Index>* columns, const Element* values,                  \
            const Element* values_by_column, const Element* bias, const Element* input, Element* output,               \
            const Element* grad_output, Element* grad_input, Element* grad_values, int64_t samples) {                  \
    sparse_layer(*rows, *columns, values, values_by_column, bias, input, output, grad_output, grad_input, grad_values, \
                 samples);                                                                                             \
  }
void invert(const int32_t* order, int32_t* places, int64_t panels, int64_t lines) {
  invert_order(order, places, panels, lines, nullptr);
}
LTH_FAST_SPARSE_LAYER(sparse_layer_float_16, float, int16_t)
LTH_FAST_SPARSE_LAYER(sparse_layer_double_32, double, int32_t)

void product_float(const SparseLines<int32_t>* rows, const float* values, const float* input, float* output,
                   int64_t samples) {
  sparse_product<float>(*rows, values, nullptr, input, output, samples, nullptr);
}
void product_double(const SparseLines<int32_t>* rows, const double* values, const double* input, double* output,
                    int64_t samples) {
  sparse_product<double>(*rows, values, nullptr, input, output, samples, nullptr);
}
}
