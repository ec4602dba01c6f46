// AdamW and Adafactor over named parameters, global-norm clipping and learning-rate schedules.
//
// One step: gradients hold the sum over micro-batches -> norm over distinct storages in a fixed
// order (not finite: the step is refused, naming the first bad tensor) -> clip factor -> update ->
// gradients untouched.
#pragma once

#include "runtime/parameters.h"

namespace moe {

// The first group whose pattern matches a parameter's name owns it.
struct ParameterGroup {
  std::string pattern = "*";
  double rate_factor = 1;  // times the schedule's rate
  double decay = 0.01;     // decoupled weight decay
};

struct StepReport {
  double gradient_norm = 0;  // before clipping
  bool finite = true;        // false: nothing was updated
  std::string bad_tensor;    // the first tensor with a NaN or infinity in its gradient
};

struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  double clip_norm = 0;  // 0: no clipping
};

class AdamW {
 public:
  AdamW(Parameters& parameters, std::vector<ParameterGroup> groups, AdamWOptions options);
  // Updates every trainable parameter whose gradient was touched; clears all gradients. Throws
  // under a tape.
  StepReport step(double rate);
  Index steps() const { return steps_; }

  // Moments as named tensors ("moment1." + name, ...), and back; the step count rides along.
  std::vector<NamedTensor> state() const;
  void load_state(const TensorFile& file, Index steps);

 private:
  struct Slot {
    std::string name;
    Tensor parameter, moment1, moment2;
    ParameterGroup group;
    Index updates = 0;
  };
  std::vector<Slot> slots_;
  Parameters& parameters_;
  AdamWOptions options_;
  Index steps_ = 0;
};

struct AdafactorOptions {
  double decay_exponent = 0.8;  // beta2 = 1 - t^-0.8
  double clip_norm = 0;
};

class Adafactor {
 public:
  Adafactor(Parameters& parameters, std::vector<ParameterGroup> groups, AdafactorOptions options);
  StepReport step(double rate);
  Index steps() const { return steps_; }
  std::vector<NamedTensor> state() const;
  void load_state(const TensorFile& file, Index steps);

 private:
  struct Slot {
    std::string name;
    Tensor parameter, row, column, full;
    ParameterGroup group;
  };
  std::vector<Slot> slots_;
  Parameters& parameters_;
  AdafactorOptions options_;
  Index steps_ = 0;
};

// Schedules: step (from 0) -> factor on the rate.
struct Schedule {
  enum class Kind : std::uint8_t { constant, linear, cosine, inverse_sqrt } kind = Kind::linear;
  Index warmup = 0, total = 0;
  double factor(Index step) const;
};
Schedule::Kind parse_schedule(std::string_view name);

}  // namespace moe
