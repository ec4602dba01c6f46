// From router probabilities to a Routing: select, weigh, and sort the (token, choice) pairs by
// expert. Gradients flow through the weights only.
#include "ops/check.h"
#include "ops/gradient.h"
#include "ops/ops.h"

namespace moe {

namespace {

// Stable counting sort of the choices; the counts stay on the device.
void sort_by_expert(Routing& r, Index experts, const Backend& b) {
  Index rows = r.expert.rows(), k = r.expert.cols();
  Device device = r.expert.device();
  r.slot = empty({rows, k}, DType::i32, device);
  r.source = empty({rows * k}, DType::i32, device);
  r.offsets = empty({experts + 1}, DType::i32, device);
  b.kernels<float>().route(r.expert.data<std::int32_t>(), rows, k, experts,
                           r.slot.mut<std::int32_t>(), r.source.mut<std::int32_t>(),
                           r.offsets.mut<std::int32_t>());
  r.groups = {r.offsets.slice_rows(0, experts), r.offsets.slice_rows(1, experts + 1), experts,
              rows * k, rows};
}

// weight[t,j] = prob[t, expert[t,j]], renormalised or not
Tensor pick(const Tensor& prob, const Tensor& expert, bool renormalise, double floor) {
  Tensor weight = empty(expert.shape(), prob.dtype(), prob.device());
  with_type(prob, [&]<class T>(const Kernels<T>& k) {
    k.pick(prob.view<T>(), expert.data<std::int32_t>(), renormalise, floor, weight.mut_view<T>());
    record({prob}, weight, [&] {
      return [prob, expert, weight = weight.detach(), renormalise, floor, &k](const Tensor& dw) {
        k.pick_backward(prob.view<T>(), expert.data<std::int32_t>(), renormalise, floor,
                        weight.view<T>(), dw.view<T>(), grad<T>(prob));
      };
    });
  });
  return weight;
}

// Forward 1, backward the identity: weight + (1 - weight) without gradient in the bracket.
Tensor straight_through(const Tensor& weight) {
  Tensor y = full(weight.shape(), weight.dtype(), weight.device(), 1);
  with_type(weight, [&]<class T>(const Kernels<T>& k) {
    record({weight}, y, [&] {
      return [dx = gradient_of(weight), &k](const Tensor& dy) {
        k.accumulate(dy.view<T>(), 1, dx.rows<T>());
      };
    });
  });
  return y;
}

}  // namespace

Routing top_k(const Tensor& prob, Index k, const TopKOptions& options) {
  check(bool(prob), "top_k: the probabilities are absent");
  Index experts = prob.cols();
  check(k >= 1 && k <= experts, "top_k: k is {}, there are {} experts", k, experts);
  check(!options.straight_through || k == 1, "top_k: straight-through weights need k = 1, not {}",
        k);
  const Tensor& by = options.selection ? options.selection : prob;
  check(by.shape() == prob.shape(), "top_k: selection scores {} do not fit {}", by.shape(),
        prob.shape());
  check(!options.bias || options.bias.size() == experts, "top_k: bias {} for {} experts",
        options.bias ? options.bias.shape() : Shape{}, experts);
  bool by_row = options.allow && options.allow.size() != experts;
  check(!by_row || options.allow.shape() == prob.shape(), "top_k: allow {} fits neither (E) nor {}",
        options.allow ? options.allow.shape() : Shape{}, prob.shape());
  check_device("top_k", prob, {by});
  check_arrays("top_k", prob, {options.bias, options.allow});
  Routing r;
  r.expert = empty({prob.rows(), k}, DType::i32, prob.device());
  with_type(prob, [&]<class T>(const Kernels<T>& kernels) {
    kernels.top_k(by.view<T>(), options.bias ? options.bias.data<Stat<T>>() : nullptr,
                  options.allow ? options.allow.data<std::uint8_t>() : nullptr, by_row, k,
                  r.expert.mut<std::int32_t>());
  });
  r.weight = pick(prob, r.expert, options.renormalise, options.floor);
  if (options.straight_through) r.weight = straight_through(r.weight);
  sort_by_expert(r, experts, backend(prob.device()));
  return r;
}

Routing given(const Tensor& expert, const Tensor& weight, Index experts) {
  check(expert && weight && expert.shape() == weight.shape(),
        "given: experts {} and weights {} differ", expert ? expert.shape() : Shape{},
        weight ? weight.shape() : Shape{});
  check_arrays("given", weight, {expert});
  check_range("given", expert, -1, experts);
  Routing r;
  r.expert = expert;
  r.weight = weight;
  sort_by_expert(r, experts, backend(expert.device()));
  return r;
}

// dx[t] += sum_j dy[slot[t,j]]: a combine with weight 1
Tensor gather(const Tensor& x, const Routing& r) {
  check(bool(x) && x.rows() == r.expert.rows(), "gather: {} rows are not the routing's {}",
        x ? x.rows() : 0, r.expert.rows());
  check_device("gather", x, {r.expert});
  Index k = r.expert.cols(), experts = r.groups.count;
  Tensor y = zeros({x.rows() * k, x.cols()}, x.dtype(), x.device());
  with_type(x, [&]<class T>(const Kernels<T>& kernels) {
    kernels.gather_rows(x.view<T>(), r.source.data<std::int32_t>(),
                        r.offsets.data<std::int32_t>() + experts, y.mut_view<T>());
    record({x}, y, [&] {
      return [dx = gradient_of(x), slot = r.slot, k, &kernels](const Tensor& dy) {
        kernels.combine_rows(dy.view<T>(), slot.data<std::int32_t>(), k, {}, 1, dx.rows<T>());
      };
    });
  });
  return y;
}

// dy[slot] += weight dout    dweight += y . dout
Tensor combine(const Tensor& y, const Routing& r) {
  check(bool(y) && y.rows() == r.expert.size(), "combine: {} rows for {} choices", y ? y.rows() : 0,
        r.expert.size());
  check_device("combine", y, {r.expert, r.weight});
  Index k = r.expert.cols();
  Tensor out = empty({r.expert.rows(), y.cols()}, y.dtype(), y.device());
  with_type(y, [&]<class T>(const Kernels<T>& kernels) {
    kernels.combine_rows(y.view<T>(), r.slot.data<std::int32_t>(), k, r.weight.view<T>(), 0,
                         out.mut_view<T>());
    record({y, r.weight}, out, [&] {
      return [y, weight = r.weight, slot = r.slot, k, &kernels](const Tensor& dout) {
        kernels.combine_rows_backward(y.view<T>(), slot.data<std::int32_t>(), k, weight.view<T>(),
                                      dout.view<T>(), grad<T>(y), grad<T>(weight));
      };
    });
  });
  return out;
}

}  // namespace moe
