#include "cuda/kernels/mask_packing.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>

#include "ops/checks.h"

namespace lth_fast {
namespace {

at::Tensor pack_mask(const at::Tensor& mask) {
  TORCH_CHECK(mask.scalar_type() == at::kBool, "pack_mask: mask must be bool, got ", mask.scalar_type());
  const c10::cuda::CUDAGuard guard(mask.device());
  const at::Tensor flat = mask.contiguous();
  at::Tensor bits = at::empty({mask_bytes(flat.numel())}, flat.options().dtype(at::kByte));
  cuda::pack_mask(reinterpret_cast<const uint8_t*>(flat.const_data_ptr<bool>()), bits.mutable_data_ptr<uint8_t>(),
                  flat.numel(), c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return bits;
}

at::Tensor unpack_mask(const at::Tensor& bits, at::IntArrayRef shape) {
  const c10::cuda::CUDAGuard guard(bits.device());
  at::Tensor mask = at::empty(shape, bits.options().dtype(at::kBool));
  check_mask_bits("unpack_mask", bits, mask, "a mask", "bits");
  cuda::unpack_mask(bits.const_data_ptr<uint8_t>(), reinterpret_cast<uint8_t*>(mask.mutable_data_ptr<bool>()),
                    mask.numel(), c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return mask;
}

}  // namespace
}  // namespace lth_fast

TORCH_LIBRARY_IMPL(lth_fast, CUDA, library) {
  library.impl("pack_mask", lth_fast::pack_mask);
  library.impl("unpack_mask", lth_fast::unpack_mask);
}
