// Optimizer steps of a network of linear layers without Python in between. No op: a class that Python fills once and
// then asks for many steps at a time (lth_fast/train/native_stepper.py, which also decides what it may train).
//
// A step calls the operators that autograd would call, in the same order: its bits are those of the steps that Python
// takes. What it saves is everything around them, which is most of a small network's step.
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "ops/find_op.h"
#include "ops/optimizer_step.h"
#include "ops/rows.h"
#include "ops/torch_headers.h"

namespace lth_fast {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using Tensors = std::vector<at::Tensor>;

// One linear layer, in the form that nn.Linear, MaskedLinear or SparseLinear has. The mask of a masked one is left to
// the optimizer's step.
struct Layer {
  enum class Form { kDense, kMasked, kSparse };

  Form form;
  at::Tensor weight;  // the values of a sparse one
  OptionalTensor bias;
  Tensors pattern;  // of a sparse one: the seven tensors of sparse_pattern
  bool relu;        // whether a ReLU follows

  at::Tensor forward(const at::Tensor& input) const {
    static const auto masked =
        find_op<at::Tensor(const at::Tensor&, const at::Tensor&, const OptionalTensor&, const OptionalTensor&)>(
            "lth_fast::masked_linear");
    static const auto sparse =
        find_op<at::Tensor(const at::Tensor&, const at::Tensor&, const OptionalTensor&, const at::Tensor&,
                           const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                           const at::Tensor&, const at::Tensor&, bool)>("lth_fast::sparse_linear");
    const auto product = [&] {
      if (form == Form::kDense) return at::linear(input, weight, bias);
      if (form == Form::kMasked) return masked.call(input, weight, bias, std::nullopt);
      return sparse.call(input, weight, bias, pattern[0], pattern[1], pattern[2], pattern[3], pattern[4], pattern[5],
                         pattern[6], false);
    };
    const at::Tensor output = product();
    return relu ? at::relu(output) : output;
  }

  // The gradients of weight and bias behind those of the layers above; returns that of the input, or nothing.
  at::Tensor backward(const at::Tensor& grad_output, const at::Tensor& input, bool input_wanted,
                      Tensors& gradients) const {
    if (form == Form::kSparse) return sparse_backward(grad_output, input, input_wanted, gradients);
    static const auto input_grad =
        find_op<at::Tensor(const at::Tensor&, const at::Tensor&)>("lth_fast::masked_linear_input_grad");
    static const auto weight_grad = find_op<at::Tensor(const at::Tensor&, const at::Tensor&, const OptionalTensor&)>(
        "lth_fast::masked_linear_weight_grad");
    const bool masked = form == Form::kMasked;
    at::Tensor grad_input;
    if (input_wanted) grad_input = masked ? input_grad.call(grad_output, weight) : grad_output.mm(weight);
    gradients.push_back(masked ? weight_grad.call(grad_output, input, std::nullopt) : grad_output.t().mm(input));
    if (bias.has_value()) gradients.push_back(grad_output.sum(0));
    return grad_input;
  }

 private:
  at::Tensor sparse_backward(const at::Tensor& grad_output, const at::Tensor& input, bool input_wanted,
                             Tensors& gradients) const {
    static const auto backward = find_op<std::tuple<at::Tensor, at::Tensor, at::Tensor>(
        const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
        const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
        std::array<bool, 3>)>("lth_fast::sparse_linear_backward");
    auto [grad_input, grad_values, grad_bias] =
        backward.call(grad_output, input, weight, pattern[0], pattern[1], pattern[2], pattern[3], pattern[4],
                      pattern[5], pattern[6], {input_wanted, true, bias.has_value()});
    gradients.push_back(std::move(grad_values));
    if (bias.has_value()) gradients.push_back(std::move(grad_bias));
    return input_wanted ? grad_input : at::Tensor();
  }
};

class LinearTrainer : public torch::CustomClassHolder {
 public:
  // images: uint8 [N, C, H, W]; labels: int64 [N]; mean and gain: as gather_images takes them.
  LinearTrainer(at::Tensor images, at::Tensor labels, at::Tensor mean, at::Tensor gain, int64_t batch_size)
      : images_(std::move(images)),
        labels_(std::move(labels)),
        mean_(std::move(mean)),
        gain_(std::move(gain)),
        batch_size_(batch_size) {
    TORCH_CHECK_VALUE(batch_size >= 1, "LinearTrainer: batch_size must be at least 1, got ", batch_size);
  }

  // The next layer, from the images to the logits. form: "dense", "masked" or "sparse".
  void add_layer(const std::string& form, at::Tensor weight, OptionalTensor bias, Tensors pattern, bool relu) {
    TORCH_CHECK_VALUE(form == "dense" || form == "masked" || form == "sparse",
                      "LinearTrainer: form must be dense, masked or sparse, got ", form);
    TORCH_CHECK_VALUE(pattern.size() == (form == "sparse" ? 7 : 0), "LinearTrainer: pattern must hold ",
                      form == "sparse" ? 7 : 0, " tensors for a ", form, " layer, got ", pattern.size());
    const auto found = form == "dense"    ? Layer::Form::kDense
                       : form == "masked" ? Layer::Form::kMasked
                                          : Layer::Form::kSparse;
    parameters_.push_back(weight);
    if (bias.has_value()) parameters_.push_back(*bias);
    layers_.push_back({found, std::move(weight), std::move(bias), std::move(pattern), relu});
  }

  // Adam or AdamW. The lists are those of adam_step_, in the order weight, bias, weight, bias of the layers.
  void use_adam(Tensors exp_avgs, Tensors exp_avg_sqs, Tensors max_exp_avg_sqs, Tensors steps,
                OptionalTensors mask_bits, double beta1, double beta2, double eps, double weight_decay,
                bool decoupled_weight_decay, bool maximize) {
    static const auto op = find_op<void(at::TensorList, at::TensorList, at::TensorList, at::TensorList, at::TensorList,
                                        at::TensorList, const OptionalTensors&, double, const OptionalTensor&, double,
                                        double, double, double, bool, bool)>("lth_fast::adam_step_");
    step_ = [=, this](const Tensors& gradients, double rate) {
      op.call(parameters_, gradients, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps, mask_bits, rate, std::nullopt,
              beta1, beta2, eps, weight_decay, decoupled_weight_decay, maximize);
    };
  }

  // The lists are those of sgd_step_, likewise. The buffers hold the momentum of earlier steps.
  void use_sgd(Tensors momentum_buffers, OptionalTensors mask_bits, double momentum, double dampening,
               double weight_decay, bool nesterov, bool maximize) {
    static const auto op =
        find_op<void(at::TensorList, at::TensorList, at::TensorList, const OptionalTensors&, double,
                     const OptionalTensor&, double, double, double, bool, bool, bool)>("lth_fast::sgd_step_");
    step_ = [=, this](const Tensors& gradients, double rate) {
      op.call(parameters_, gradients, momentum_buffers, mask_bits, rate, std::nullopt, momentum, dampening,
              weight_decay, nesterov, maximize, false);
    };
  }

  // One step for each of `rates`, its learning rate, on the images at `order` (int64), batch after batch; the last one
  // may be smaller. Returns the losses before the steps, float32.
  at::Tensor advance(const at::Tensor& order, const std::vector<double>& rates) const {
    const auto steps = static_cast<int64_t>(rates.size());
    TORCH_CHECK_VALUE(order.dim() == 1 && (order.numel() + batch_size_ - 1) / batch_size_ == steps,
                      "LinearTrainer: order must hold the images of ", steps, " batches of ", batch_size_, ", got ",
                      order.sizes());
    TORCH_CHECK_VALUE(!layers_.empty() && step_, "LinearTrainer: expected layers and an optimizer before advance()");
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    at::Tensor losses = at::empty({steps}, at::kFloat);
    auto* loss = losses.mutable_data_ptr<float>();
    for (int64_t step = 0; step < steps; ++step) {
      const int64_t first = step * batch_size_;
      const at::Tensor indices = order.narrow(0, first, std::min(batch_size_, order.numel() - first));
      loss[step] = take(indices, rates[static_cast<size_t>(step)]);
    }
    return losses;
  }

 private:
  float take(const at::Tensor& indices, double rate) const {
    static const auto gather =
        find_op<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&)>(
            "lth_fast::gather_images");
    const at::Tensor labels = labels_.index_select(0, indices);
    Tensors activations{gather.call(images_, indices, mean_, gain_).flatten(1)};  // of every layer, and the logits
    for (const Layer& layer : layers_) activations.push_back(layer.forward(activations.back()));

    const at::Tensor log_probabilities = at::_log_softmax(activations.back(), 1, false);
    const auto [loss, total_weight] =
        at::nll_loss_forward(log_probabilities, labels, std::nullopt, at::Reduction::Mean, kNoLabelIsIgnored);
    at::Tensor gradient = at::nll_loss_backward(one_, log_probabilities, labels, std::nullopt, at::Reduction::Mean,
                                                kNoLabelIsIgnored, total_weight);
    gradient = at::_log_softmax_backward_data(gradient, log_probabilities, 1, at::kFloat);

    std::vector<Tensors> by_layer(layers_.size());
    for (size_t i = layers_.size(); i-- > 0;) {
      if (layers_[i].relu) gradient = at::threshold_backward(gradient, activations[i + 1], 0);
      gradient = layers_[i].backward(gradient, activations[i], i > 0, by_layer[i]);
    }
    Tensors gradients;
    for (Tensors& own : by_layer) std::move(own.begin(), own.end(), std::back_inserter(gradients));
    step_(gradients, rate);
    return *loss.const_data_ptr<float>();
  }

  static constexpr int64_t kNoLabelIsIgnored = -100;  // cross-entropy's own default

  const at::Tensor images_, labels_, mean_, gain_;
  const int64_t batch_size_;
  const at::Tensor one_ = at::ones({}, at::kFloat);
  std::vector<Layer> layers_;
  Tensors parameters_;
  std::function<void(const Tensors&, double)> step_;
};

}  // namespace
}  // namespace lth_fast

TORCH_LIBRARY_FRAGMENT(lth_fast, library) {
  using lth_fast::LinearTrainer;
  library.class_<LinearTrainer>("LinearTrainer")
      .def(torch::init<at::Tensor, at::Tensor, at::Tensor, at::Tensor, int64_t>())
      .def("add_layer", &LinearTrainer::add_layer)
      .def("use_adam", &LinearTrainer::use_adam)
      .def("use_sgd", &LinearTrainer::use_sgd)
      .def("advance", &LinearTrainer::advance);
}
