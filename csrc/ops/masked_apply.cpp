// Schemas, checks and derivative of masked_apply, masked_apply_ and masked_apply_each_.
#include "ops/masked_apply.h"

#include "ops/checks.h"
#include "ops/find_op.h"

TORCH_LIBRARY_FRAGMENT(lth_fast, library) {
  library.def("masked_apply(Tensor input, Tensor mask_bits) -> Tensor");
  library.def("masked_apply_(Tensor(a!) self, Tensor mask_bits) -> ()");
  library.def("masked_apply_each_(Tensor(a!)[] tensors, Tensor[] mask_bits) -> ()");
}

namespace lth_fast {

at::Tensor masked_apply(const at::Tensor& input, const at::Tensor& mask_bits) {
  static const auto op = find_op<decltype(masked_apply)>("lth_fast::masked_apply");
  return op.call(input, mask_bits);
}

void masked_apply_(const at::Tensor& self, const at::Tensor& mask_bits) {
  static const auto op = find_op<decltype(masked_apply_)>("lth_fast::masked_apply_");
  op.call(self, mask_bits);
}

namespace {

struct MaskedApply : torch::autograd::Function<MaskedApply> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& input,
                            const at::Tensor& mask_bits) {
    context->save_for_backward({mask_bits});
    at::AutoDispatchBelowADInplaceOrView guard;
    return masked_apply(input, mask_bits);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    return {masked_apply(gradients[0].contiguous(), saved[0]), at::Tensor()};
  }
};

at::Tensor masked_apply_autograd(const at::Tensor& input, const at::Tensor& mask_bits) {
  return MaskedApply::apply(input, mask_bits);
}

}  // namespace
}  // namespace lth_fast

TORCH_LIBRARY_IMPL(lth_fast, Autograd, library) { library.impl("masked_apply", lth_fast::masked_apply_autograd); }
