#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "ops/checks.h"

namespace lth_fast {
namespace {

at::Tensor pack_mask(const at::Tensor& mask) {
  TORCH_CHECK(mask.scalar_type() == at::kBool, "pack_mask: mask must be bool, got ", mask.scalar_type());
  const at::Tensor flat = mask.contiguous();
  at::Tensor bits = at::empty({mask_bytes(flat.numel())}, flat.options().dtype(at::kByte));
  const auto* from = reinterpret_cast<const uint8_t*>(flat.const_data_ptr<bool>());
  auto* to = bits.mutable_data_ptr<uint8_t>();
  const auto& table = kernels();
  parallel_over_weights(flat.numel(), [&](int64_t first, int64_t count) {
    table.pack_mask(from + first, to + first / 8, static_cast<size_t>(count));
  });
  return bits;
}

at::Tensor unpack_mask(const at::Tensor& bits, at::IntArrayRef shape) {
  at::Tensor mask = at::empty(shape, bits.options().dtype(at::kBool));
  check_mask_bits("unpack_mask", bits, mask, "a mask", "bits");
  const auto* from = bits.const_data_ptr<uint8_t>();
  auto* to = reinterpret_cast<uint8_t*>(mask.mutable_data_ptr<bool>());
  const auto& table = kernels();
  parallel_over_weights(mask.numel(), [&](int64_t first, int64_t count) {
    table.unpack_mask(from + first / 8, to + first, static_cast<size_t>(count));
  });
  return mask;
}

}  // namespace
}  // namespace lth_fast

TORCH_LIBRARY_IMPL(lth_fast, CPU, library) {
  library.impl("pack_mask", lth_fast::pack_mask);
  library.impl("unpack_mask", lth_fast::unpack_mask);
}
