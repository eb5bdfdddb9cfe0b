// Schema and checks of gather_images: a batch of images that lie in memory as bytes, as the numbers a network takes. It
// has no derivative.
#include "ops/gather_images.h"

// (images[indices] - mean) * gain, mean and gain by channel.
TORCH_LIBRARY_FRAGMENT(lth_fast, library) {
  library.def("gather_images(Tensor images, Tensor indices, Tensor mean, Tensor gain) -> Tensor");
}

namespace lth_fast {

void check_gather_images(const at::Tensor& images, const at::Tensor& indices, const at::Tensor& mean,
                         const at::Tensor& gain) {
  constexpr auto function = "gather_images";
  TORCH_CHECK(images.dim() == 4 && images.scalar_type() == at::kByte && images.is_contiguous(), function,
              ": images must be uint8 [N, C, H, W] and contiguous, got ", images.scalar_type(), " of shape ",
              images.sizes(), " with strides ", images.strides());
  TORCH_CHECK(indices.dim() == 1 && indices.scalar_type() == at::kLong, function, ": indices must be int64 [B], got ",
              indices.scalar_type(), " of shape ", indices.sizes());
  for (const auto& [factor, name] : {std::pair(&mean, "mean"), std::pair(&gain, "gain")}) {
    TORCH_CHECK(factor->numel() == images.size(1) && factor->scalar_type() == at::kFloat, function, ": ", name,
                " must be float32 with one number per channel (", images.size(1), "), got ", factor->scalar_type(),
                " of shape ", factor->sizes());
  }
  for (const auto& [tensor, name] :
       {std::pair(&indices, "indices"), std::pair(&mean, "mean"), std::pair(&gain, "gain")}) {
    TORCH_CHECK(tensor->device() == images.device(), function, ": ", name, " must be on the device of images (",
                images.device(), "), got ", tensor->device());
  }
}

}  // namespace lth_fast
