// The tape: closures in execution order, walked backwards. Nothing is recorded while no Tape is
// open, so inference is the default and costs one thread-local null test.
//
//   Tape tape;
//   Tensor loss = model.loss(batch);
//   tape.backward(loss);      // ends the recording; leaves now hold grad()
#pragma once

#include "runtime/tensor.h"

#include <functional>
#include <initializer_list>

namespace moe {

class Tape {
 public:
  Tape();   // opens; tapes nest and the innermost records
  ~Tape();  // drops what was not walked
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;

  // Gradient of a scalar, times `factor`.
  void backward(const Tensor& loss, double factor = 1);
  // From any cotangent: dy has y's shape and dtype.
  void backward(const Tensor& y, const Tensor& dy);

  static Tape* current();

  using Closure = std::function<void(const Tensor& dy)>;
  void add(const Tensor& y, Closure closure);
  std::size_t size() const { return records_.size(); }

 private:
  struct Record {
    Shape shape;
    std::shared_ptr<Gradient> gradient;  // of the whole storage of y
    Closure closure;
  };
  void close();
  void walk();

  std::vector<Record> records_;
  Tape* outer_ = nullptr;
  bool open_ = true;
};

using TensorRef = std::reference_wrapper<const Tensor>;

// True when a tape is open and one of the inputs needs a gradient.
inline bool recording(std::initializer_list<TensorRef> inputs) {
  if (Tape::current() == nullptr) return false;
  for (const Tensor& x : inputs)
    if (x.needs_grad()) return true;
  return false;
}

// Records make() -> closure(dy) for the freshly allocated output y, if anything is to be
// differentiated.
template <class Make>
void record(std::initializer_list<TensorRef> inputs, const Tensor& y, const Make& make) {
  if (recording(inputs)) Tape::current()->add(y, make());
}

// Gradient checkpointing: runs f without a tape; in backward runs it again under an inner tape. f
// maps tensors to one tensor and draws by counter, so both runs agree. Leaves that f captures get
// their gradient.
Tensor recompute(const std::function<Tensor(const std::vector<Tensor>&)>& f,
                 const std::vector<Tensor>& inputs);

}  // namespace moe
