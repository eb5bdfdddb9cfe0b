// The k-th smallest magnitude of a list of weights and the masks that prune k of them, without the host in between.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lth_fast::cuda {

// The contiguous weights of one tensor.
struct MagnitudeTensor {
  const void* weights;
  const uint8_t* mask;  // a bool per byte; null: every weight survives
  uint8_t* new_mask;    // null until prune() has been told
  int64_t count;
};

// What a search found, in the first bytes of its workspace. Nothing is pruned when it refused its arguments.
struct MagnitudeOutcome {
  uint64_t key;        // of the k-th smallest magnitude: its bit pattern without the sign
  int64_t tie_budget;  // how many of the survivors with this key are pruned
  int64_t survivors;
  int64_t refused_tensor;  // the first that holds NaN or infinity among its survivors; kNoTensor: none
  int64_t k;               // how many are pruned; kRefused when the arguments are refused
};

constexpr int64_t kNoTensor = INT64_MAX;
constexpr int64_t kRefused = -1;

// Key: uint16_t, uint32_t or uint64_t, of the size of the weights; infinity: its key in the weights' format.
template <typename Key>
class MagnitudeSearch {
 public:
  MagnitudeSearch(std::vector<MagnitudeTensor> tensors, Key infinity);

  // Bytes of device memory the search needs, with the alignment of an int64_t.
  size_t workspace_bytes() const;

  // Leaves the outcome in the workspace. k outside of 0 to the survivors, NaN and infinity are refused there.
  void find(int64_t k, void* workspace, cudaStream_t stream) const;
  // After find: the k-th magnitude (0 for k = 0; NaN when refused) and the two counts, on the device.
  void write_threshold(const void* workspace, Key* threshold, int64_t* tie_budget, int64_t* survivors,
                       cudaStream_t stream) const;
  // After find: the new masks, one for each tensor. Of equal magnitudes the first in the order of tensors and flat
  // indices go. The masks may be allocated while the device is still searching.
  void prune(const std::vector<uint8_t*>& new_masks, void* workspace, cudaStream_t stream);

 private:
  std::vector<MagnitudeTensor> tensors_;
  Key infinity_;
};

}  // namespace lth_fast::cuda
