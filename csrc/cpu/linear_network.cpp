// A network of linear layers over images in memory, without Python in between. No op: a class that Python fills once
// and then asks for many optimizer steps at a time (lth_fast/train/native_stepper.py), or for the outputs of a batch
// (native_outputs.py there). What it takes say native_refusal.py and native_outputs_refusal.py.
//
// A step calls the operators that autograd would call, in the same order: its bits are those of the steps that Python
// takes. What it saves is everything around them, which is most of a small network's step. The outputs have the bits of
// those operators, too.
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "cpu/sparse_chain.h"
#include "ops/checks.h"
#include "ops/find_op.h"
#include "ops/gather_images.h"
#include "ops/optimizer_step.h"
#include "ops/sparse_linear.h"
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
    if (form == Form::kSparse) {
      return sparse.call(input, weight, bias, pattern[0], pattern[1], pattern[2], pattern[3], pattern[4], pattern[5],
                         pattern[6], relu);
    }
    const at::Tensor output =
        form == Form::kDense ? at::linear(input, weight, bias) : masked.call(input, weight, bias, std::nullopt);
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
    if (input_wanted) grad_input = masked ? input_grad.call(grad_output, weight) : dense_input_grad(grad_output, input);
    gradients.push_back(masked ? weight_grad.call(grad_output, input, std::nullopt) : grad_output.t().mm(input));
    if (bias.has_value()) gradients.push_back(grad_output.sum(0));
    return grad_input;
  }

 private:
  // Autograd multiplies in the memory order of the input, which a single number has both of.
  at::Tensor dense_input_grad(const at::Tensor& grad_output, const at::Tensor& input) const {
    const bool by_columns = input.stride(0) == 1 && input.stride(1) == input.size(0);
    return by_columns ? weight.t().mm(grad_output.t()).t() : grad_output.mm(weight);
  }

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

class LinearNetwork : public torch::CustomClassHolder {
 public:
  // images: uint8 [N, C, H, W]; labels: int64 [N]; mean and gain: as gather_images takes them.
  LinearNetwork(at::Tensor images, at::Tensor labels, at::Tensor mean, at::Tensor gain, int64_t batch_size)
      : images_(std::move(images)),
        labels_(std::move(labels)),
        mean_(std::move(mean)),
        gain_(std::move(gain)),
        batch_size_(batch_size) {
    TORCH_CHECK_VALUE(batch_size >= 1, "LinearNetwork: batch_size must be at least 1, got ", batch_size);
    check_gather_images(images_, at::empty({0}, at::kLong), mean_, gain_);
    mean_ = mean_.contiguous(), gain_ = gain_.contiguous();
    TORCH_CHECK_VALUE(images_.is_cpu(), "LinearNetwork: images must be on the CPU, got ", images_.device());
    features_ = images_.size(1) * images_.size(2) * images_.size(3);
  }

  // The next layer, from the images to the logits. form: "dense", "masked" or "sparse".
  void add_layer(const std::string& form, at::Tensor weight, OptionalTensor bias, Tensors pattern, bool relu) {
    TORCH_CHECK_VALUE(form == "dense" || form == "masked" || form == "sparse",
                      "LinearNetwork: form must be dense, masked or sparse, got ", form);
    TORCH_CHECK_VALUE(pattern.size() == (form == "sparse" ? 7 : 0), "LinearNetwork: pattern must hold ",
                      form == "sparse" ? 7 : 0, " tensors for a ", form, " layer, got ", pattern.size());
    const auto found = form == "dense"    ? Layer::Form::kDense
                       : form == "masked" ? Layer::Form::kMasked
                                          : Layer::Form::kSparse;
    const auto [inputs, outputs] = check_layer(weight, bias, pattern);
    TORCH_CHECK_VALUE(inputs == features_, "LinearNetwork: the layer must take ", features_, " features, it takes ",
                      inputs);
    features_ = outputs;
    parameters_.push_back(weight);
    if (bias.has_value()) parameters_.push_back(*bias);
    if (found == Layer::Form::kSparse && first_sparse_.size() == layers_.size()) {
      first_sparse_.push_back({weight, bias, pattern, relu});
    }
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
    const int64_t batches = order.numel() / batch_size_ + (order.numel() % batch_size_ > 0 ? 1 : 0);
    TORCH_CHECK_VALUE(order.dim() == 1 && batches == steps, "LinearNetwork: order must hold the images of ", steps,
                      " batches of ", batch_size_, ", got ", order.sizes());
    TORCH_CHECK_VALUE(!layers_.empty() && step_, "LinearNetwork: expected layers and an optimizer before advance()");
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

  // The logits of images first to first + count, float32 [count, classes]. Sparse layers at the start take all of them
  // at once, those behind them batch by batch: the bits of dense products may depend on what else is in the batch.
  at::Tensor outputs(int64_t first, int64_t count) const {
    TORCH_CHECK_INDEX(first >= 0 && count >= 1 && count <= images_.size(0) - first,
                      "LinearNetwork: first and count must be one or more images in 0..", images_.size(0) - 1, ", got ",
                      first, " and ", count);
    TORCH_CHECK_VALUE(!layers_.empty(), "LinearNetwork: expected layers before outputs()");
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    at::Tensor reached;
    if (!first_sparse_.empty()) reached = sparse_chain(first_sparse_, images_, first, count, mean_, gain_);
    if (first_sparse_.size() == layers_.size()) return reached;
    Tensors batches;
    for (int64_t done = 0, size; done < count; done += size) {
      size = std::min(batch_size_, count - done);
      // A copy begins where a batch of its own would, at a line of the cache, which may decide bits as well.
      at::Tensor activation = reached.defined() ? reached.narrow(0, done, size).clone()
                                                : inputs(at::arange(first + done, first + done + size, at::kLong));
      for (size_t i = first_sparse_.size(); i < layers_.size(); ++i) activation = layers_[i].forward(activation);
      batches.push_back(std::move(activation));
    }
    return at::cat(batches);
  }

 private:
  // Features that go in and come out of a layer: below autograd nobody else looks whether its tensors fit.
  static std::pair<int64_t, int64_t> check_layer(const at::Tensor& weight, const OptionalTensor& bias,
                                                 const Tensors& pattern) {
    TORCH_CHECK_VALUE(weight.is_cpu() && weight.scalar_type() == at::kFloat,
                      "LinearNetwork: weight must be float32 on the CPU, got ", weight.scalar_type(), " on ",
                      weight.device());
    if (!pattern.empty()) {
      const int64_t inputs = pattern[4].dim() == 2 ? pattern[4].size(1) : 0;
      check_sparse_linear(at::empty({0, inputs}, weight.options()), weight, bias, pattern[0], pattern[1], pattern[2],
                          pattern[3], pattern[4], pattern[5], pattern[6]);
      return {inputs, pattern[1].size(1)};
    }
    TORCH_CHECK_VALUE(weight.dim() == 2,
                      "LinearNetwork: weight must have 2 dimensions [out_features, in_features], got ", weight.sizes());
    check_bias("LinearNetwork", bias, weight.size(0), weight, "weight");
    return {weight.size(1), weight.size(0)};
  }

  // The images at `indices` as the first layer takes them.
  at::Tensor inputs(const at::Tensor& indices) const {
    static const auto gather =
        find_op<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&)>(
            "lth_fast::gather_images");
    return gather.call(images_, indices, mean_, gain_).flatten(1);
  }

  float take(const at::Tensor& indices, double rate) const {
    const at::Tensor labels = labels_.index_select(0, indices);
    Tensors activations{inputs(indices)};  // of every layer, and the logits
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

  const at::Tensor images_, labels_;
  at::Tensor mean_, gain_;
  const int64_t batch_size_;
  int64_t features_;  // that the next layer takes
  const at::Tensor one_ = at::ones({}, at::kFloat);
  std::vector<Layer> layers_;
  std::vector<SparseLayer> first_sparse_;  // those before the first one of another form
  Tensors parameters_;
  std::function<void(const Tensors&, double)> step_;
};

}  // namespace
}  // namespace lth_fast

TORCH_LIBRARY_FRAGMENT(lth_fast, library) {
  using lth_fast::LinearNetwork;
  library.class_<LinearNetwork>("LinearNetwork")
      .def(torch::init<at::Tensor, at::Tensor, at::Tensor, at::Tensor, int64_t>())
      .def("add_layer", &LinearNetwork::add_layer)
      .def("use_adam", &LinearNetwork::use_adam)
      .def("use_sgd", &LinearNetwork::use_sgd)
      .def("advance", &LinearNetwork::advance)
      .def("outputs", &LinearNetwork::outputs);
}
