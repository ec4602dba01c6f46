#include "runtime/optimizer.h"

#include "runtime/tape.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <unordered_set>

namespace moe {

namespace {

constexpr double pi = std::numbers::pi;

const ParameterGroup& group_of(const std::vector<ParameterGroup>& groups, const std::string& name) {
  for (const auto& group : groups)
    if (matches(group.pattern, name)) return group;
  fail(Fault::usage, "no optimiser group matches the parameter '{}'", name);
}

// Entries whose storage is trainable, in declaration order; tied names appear once. Row views of a
// stacked storage are separate entries: together they cover it without overlap.
std::vector<const Parameters::Entry*> trainable(const Parameters& parameters) {
  std::vector<const Parameters::Entry*> list;
  std::unordered_set<std::string> seen;
  for (const auto& entry : parameters.entries()) {
    if (!entry.tensor.needs_grad()) continue;
    auto key = fmt::format("{}@{}", static_cast<const void*>(entry.tensor.storage().get()),
                           entry.tensor.offset());
    if (seen.insert(key).second) list.push_back(&entry);
  }
  return list;
}

// Norm over the touched gradients; each tensor's sum in the kernel's fixed order, tensors in
// declaration order.
StepReport measure(const Parameters& parameters) {
  StepReport report;
  double total = 0;
  for (const auto* entry : trainable(parameters)) {
    Tensor g = entry->tensor.grad();
    if (!g) continue;
    double sum = 0;
    with_type(g, [&]<class T>(const Kernels<T>& k) {
      k.norm_squared(g.data<Stat<T>>(), g.size(), &sum);
    });
    if (!std::isfinite(sum) && report.finite) {
      report.finite = false;
      report.bad_tensor = entry->name;
    }
    total += sum;
  }
  report.gradient_norm = std::sqrt(total);
  return report;
}

double clip_factor(double norm, double limit) {
  return limit > 0 && norm > limit ? limit / norm : 1.0;
}

void load_slot(const TensorFile& file, const std::string& name, const Tensor& into) {
  if (!into) return;
  auto at = file.tensors.find(name);
  if (at == file.tensors.end())
    fail(Fault::bad_data, "{}: optimiser state '{}' is missing", file.source, name);
  Tensor from = to_tensor(name, at->second, into.dtype(), into.device());
  if (from.size() != into.size())
    fail(Fault::bad_data, "{}: optimiser state '{}' has {} elements, expected {}", file.source,
         name, from.size(), into.size());
  with_type(into, [&]<class T>(const Kernels<T>& k) {
    k.copy(from.reshape(into.shape()).template view<T>(), into.mut_view<T>());
  });
}

}  // namespace

// ---- AdamW

AdamW::AdamW(Parameters& parameters, std::vector<ParameterGroup> groups, AdamWOptions options)
    : parameters_(parameters), options_(options) {
  for (const auto* entry : trainable(parameters)) {
    const Tensor& p = entry->tensor;
    check(p.contiguous(), "AdamW: '{}' is a strided view", entry->name);
    slots_.push_back({entry->name, p, zeros(p.shape(), p.dtype(), p.device()),
                      zeros(p.shape(), p.dtype(), p.device()), group_of(groups, entry->name), 0});
  }
}

StepReport AdamW::step(double rate) {
  check(Tape::current() == nullptr, "the optimiser cannot step while a tape is open");
  StepReport report = measure(parameters_);
  if (report.finite) {
    ++steps_;
    double clip = clip_factor(report.gradient_norm, options_.clip_norm);
    // A parameter's bias correction counts its own updates, as in the usual implementation: one
    // kernel call for each distinct count (nearly always one).
    std::vector<Index> counts;
    for (auto& slot : slots_)
      if (slot.parameter.needs_grad() && slot.parameter.storage()->gradient->touched)
        counts.push_back(++slot.updates);
    std::sort(counts.begin(), counts.end());
    counts.erase(std::unique(counts.begin(), counts.end()), counts.end());
    for (Index count : counts) {
      AdamWStep s{rate, clip, 1 - std::pow(options_.beta1, static_cast<double>(count)),
                  1 - std::pow(options_.beta2, static_cast<double>(count))};
      auto run = [&]<class T>(const Kernels<T>& k) {
        std::vector<AdamWChunk<T>> chunks;
        for (auto& slot : slots_) {
          Tensor g = slot.parameter.grad();
          if (!g || slot.updates != count) continue;
          using S = Stat<T>;
          chunks.push_back({slot.parameter.mut<S>(), slot.moment1.mut<S>(), slot.moment2.mut<S>(),
                            g.data<S>(), g.size(), slot.group.rate_factor, slot.group.decay});
        }
        k.adamw(chunks.data(), static_cast<Index>(chunks.size()), &s, options_.beta1,
                options_.beta2, options_.eps);
      };
      with_type(slots_.front().parameter, run);
    }
  }
  parameters_.clear_gradients();
  return report;
}

std::vector<NamedTensor> AdamW::state() const {
  std::vector<NamedTensor> list;
  for (const auto& slot : slots_) {
    list.push_back({"moment1." + slot.name, slot.moment1, {}});
    list.push_back({"moment2." + slot.name, slot.moment2, {}});
    list.push_back({"updates." + slot.name,
                    from_host(std::vector<std::int64_t>{slot.updates}, {1}, slot.moment1.device()),
                    {}});
  }
  return list;
}

void AdamW::load_state(const TensorFile& file, Index steps) {
  for (auto& slot : slots_) {
    load_slot(file, "moment1." + slot.name, slot.moment1);
    load_slot(file, "moment2." + slot.name, slot.moment2);
    auto at = file.tensors.find("updates." + slot.name);
    if (at == file.tensors.end())
      fail(Fault::bad_data, "{}: optimiser state 'updates.{}' is missing", file.source, slot.name);
    slot.updates = to_host<std::int64_t>(
        to_tensor(at->first, at->second, DType::i64, slot.moment1.device()))[0];
  }
  steps_ = steps;
}

// ---- Adafactor

Adafactor::Adafactor(Parameters& parameters, std::vector<ParameterGroup> groups,
                     AdafactorOptions options)
    : parameters_(parameters), options_(options) {
  for (const auto* entry : trainable(parameters)) {
    const Tensor& p = entry->tensor;
    check(p.contiguous(), "Adafactor: '{}' is a strided view", entry->name);
    Slot slot{entry->name, p, {}, {}, {}, group_of(groups, entry->name)};
    if (p.shape().rank() >= 2) {
      // The last dimension is factored against all others, so a bank of experts counts as one tall
      // matrix.
      Index cols = p.shape()[p.shape().rank() - 1];
      slot.row = zeros({p.size() / std::max<Index>(cols, 1)}, p.dtype(), p.device());
      slot.column = zeros({cols}, p.dtype(), p.device());
    } else {
      slot.full = zeros(p.shape(), p.dtype(), p.device());
    }
    slots_.push_back(std::move(slot));
  }
}

StepReport Adafactor::step(double rate) {
  check(Tape::current() == nullptr, "the optimiser cannot step while a tape is open");
  StepReport report = measure(parameters_);
  if (report.finite) {
    ++steps_;
    AdafactorStep s{rate, clip_factor(report.gradient_norm, options_.clip_norm),
                    1 - std::pow(static_cast<double>(steps_), -options_.decay_exponent)};
    for (auto& slot : slots_) {
      Tensor g = slot.parameter.grad();
      if (!g) continue;
      with_type(slot.parameter, [&]<class T>(const Kernels<T>& k) {
        using S = Stat<T>;
        auto state = [](const Tensor& t) { return t ? t.mut<S>() : nullptr; };
        Tensor scratch = empty_like(slot.parameter);
        Index cols = slot.column ? slot.column.size() : slot.parameter.size();
        k.adafactor({slot.parameter.mut<S>(), state(slot.row), state(slot.column), state(slot.full),
                     g.data<S>(), slot.parameter.size() / std::max<Index>(cols, 1), cols,
                     slot.group.rate_factor, slot.group.decay},
                    &s, scratch.mut<S>());
      });
    }
  }
  parameters_.clear_gradients();
  return report;
}

std::vector<NamedTensor> Adafactor::state() const {
  std::vector<NamedTensor> list;
  for (const auto& slot : slots_) {
    if (slot.row) list.push_back({"row." + slot.name, slot.row, {}});
    if (slot.column) list.push_back({"column." + slot.name, slot.column, {}});
    if (slot.full) list.push_back({"full." + slot.name, slot.full, {}});
  }
  return list;
}

void Adafactor::load_state(const TensorFile& file, Index steps) {
  for (auto& slot : slots_) {
    load_slot(file, "row." + slot.name, slot.row);
    load_slot(file, "column." + slot.name, slot.column);
    load_slot(file, "full." + slot.name, slot.full);
  }
  steps_ = steps;
}

// ---- schedules

double Schedule::factor(Index step) const {
  if (warmup > 0 && step < warmup)
    return static_cast<double>(step + 1) / static_cast<double>(warmup);
  double left =
      total > warmup ? static_cast<double>(step - warmup) / static_cast<double>(total - warmup) : 0;
  left = std::clamp(left, 0.0, 1.0);
  switch (kind) {
    case Kind::constant:
      return 1;
    case Kind::linear:
      return 1 - left;
    case Kind::cosine:
      return 0.5 * (1 + std::cos(pi * left));
    case Kind::inverse_sqrt:
      return std::sqrt(static_cast<double>(std::max<Index>(warmup, 1)) /
                       static_cast<double>(std::max<Index>({warmup, step, 1})));
  }
  return 1;
}

Schedule::Kind parse_schedule(std::string_view name) {
  if (name == "constant") return Schedule::Kind::constant;
  if (name == "linear") return Schedule::Kind::linear;
  if (name == "cosine") return Schedule::Kind::cosine;
  if (name == "inverse-sqrt") return Schedule::Kind::inverse_sqrt;
  fail(Fault::usage, "unknown schedule '{}': use constant, linear, cosine or inverse-sqrt", name);
}

}  // namespace moe
