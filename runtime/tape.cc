#include "runtime/tape.h"

#include <utility>

namespace moe {

namespace {
thread_local Tape* innermost = nullptr;

// Suspends recording on this thread.
struct Pause {
  Tape* saved = std::exchange(innermost, nullptr);
  Pause() = default;
  Pause(const Pause&) = delete;
  Pause& operator=(const Pause&) = delete;
  ~Pause() { innermost = saved; }
};
// x itself when it is all of its storage, else a copy that is: what a record's gradient belongs to.
Tensor whole(const Tensor& x) {
  std::size_t bytes = static_cast<std::size_t>(x.size()) * size_of(x.dtype());
  if (x.offset() == 0 && x.contiguous() && bytes == x.storage()->buffer->bytes()) return x;
  Tensor y = empty_like(x);
  with_type(x, [&]<class T>(const Kernels<T>& k) { k.copy(x.view<T>(), y.mut_view<T>()); });
  return y;
}
}  // namespace

Tape* Tape::current() {
  return innermost;
}

Tape::Tape() : outer_(innermost) {
  innermost = this;
}

Tape::~Tape() {
  close();
}

void Tape::close() {
  if (!open_) return;
  open_ = false;
  innermost = outer_;
}

void Tape::add(const Tensor& y, Closure closure) {
  y.require_grad();
  records_.push_back({y.shape(), y.storage()->gradient, std::move(closure)});
}

void Tape::backward(const Tensor& loss, double factor) {
  check(loss.size() == 1, "backward starts from a scalar, not from {}", loss.shape());
  backward(loss, full(loss.shape(), loss.dtype(), loss.device(), factor));
}

void Tape::backward(const Tensor& y, const Tensor& dy) {
  check(open_, "this tape was walked already");
  close();
  check(y.shape() == dy.shape(), "backward: cotangent {} does not fit {}", dy.shape(), y.shape());
  if (!y.needs_grad()) {
    records_.clear();
    return;
  }
  with_type(y, [&]<class T>(const Kernels<T>& k) { k.accumulate(dy.view<T>(), 1, grad<T>(y)); });
  walk();
}

void Tape::walk() {
  // Records die as backward passes them, so activations are released in reverse order.
  while (!records_.empty()) {
    Record record = std::move(records_.back());
    records_.pop_back();
    if (!record.gradient->touched) continue;  // nobody asked: zero
    const Gradient& g = *record.gradient;
    auto storage = std::make_shared<Storage>(Storage{g.dtype, g.device, g.buffer, nullptr, {}});
    record.closure(Tensor(record.shape, std::move(storage), 0, record.shape.cols()));
  }
}

Tensor recompute(const std::function<Tensor(const std::vector<Tensor>&)>& f,
                 const std::vector<Tensor>& inputs) {
  Tape* tape = Tape::current();
  if (tape == nullptr) return f(inputs);
  Tensor y;
  {
    Pause pause;
    std::vector<Tensor> detached;
    for (const Tensor& x : inputs) detached.push_back(x ? x.detach() : x);
    y = whole(f(detached)).detach();  // f may return a slice
  }
  tape->add(y, [f, inputs](const Tensor& dy) {
    Tape inner;
    std::vector<Tensor> leaves;
    for (const Tensor& x : inputs) {
      Tensor leaf = x ? x.detach() : x;
      if (x && x.needs_grad()) leaf.require_grad();
      leaves.push_back(leaf);
    }
    Tensor again = f(leaves);
    inner.backward(again, dy);
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      if (!leaves[i] || !leaves[i].needs_grad()) continue;
      Tensor dx = leaves[i].grad();
      if (!dx) continue;
      with_type(dx, [&]<class T>(const Kernels<T>& k) {
        k.accumulate(dx.view<T>(), 1, grad<T>(inputs[i]));
      });
    }
  });
  return y;
}

}  // namespace moe
