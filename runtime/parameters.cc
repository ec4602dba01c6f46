#include "runtime/parameters.h"

#include "runtime/parallel.h"

#include <algorithm>
#include <cmath>
#include <unordered_set>

namespace moe {

bool matches(std::string_view pattern, std::string_view name) {
  // Iterative wildcard match: on a mismatch fall back to the last '*' and let it eat one more
  // character.
  std::size_t p = 0, n = 0, star = std::string_view::npos, mark = 0;
  while (n < name.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      mark = n;
    } else if (p < pattern.size() && pattern[p] == name[n]) {
      ++p, ++n;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      n = ++mark;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

namespace {

// Rows are independent, so the numbers do not depend on the threads that draw them.
template <class T>
void initialise(const Tensor& x, const Init& init, const Dice& dice) {
  std::vector<T> values(static_cast<std::size_t>(x.size()));
  auto fill_row = [&](Index row) {
    T* to = values.data() + row * x.cols();
    for (Index column = 0; column < x.cols(); ++column) {
      double value = 0;
      switch (init.kind) {
        case Init::Kind::zeros:
          break;
        case Init::Kind::ones:
        case Init::Kind::constant:
          value = init.value;
          break;
        case Init::Kind::uniform:
          value = init.value * (2 * unit_real(dice.word(row, column)) - 1);
          break;
        case Init::Kind::normal: {
          PhiloxBlock block = dice.block(row, column / 2);
          value = init.value * normal_real(block[0], block[1], column % 2 == 0);
          break;
        }
      }
      to[column] = static_cast<T>(value);
    }
  };
  parallel_for(x.rows(), std::max<Index>(1, 4096 / std::max<Index>(x.cols(), 1)),
               [&](Index begin, Index end) {
                 for (Index row = begin; row < end; ++row) fill_row(row);
               });
  backend(x.device()).upload(x.mut<T>(), values.data(), values.size() * sizeof(T));
}

void copy_into(const Tensor& to, const Tensor& from) {
  with_type(to, [&]<class T>(const Kernels<T>& k) {
    Tensor flat = from.reshape(to.shape());
    k.copy(flat.view<T>(), to.mut_view<T>());
  });
}

bool same_shape(const std::vector<Index>& file, const Shape& shape) {
  // A file may drop dimensions of one, never reorder elements.
  Index size = 1;
  for (Index d : file) size *= d;
  if (size != shape.size()) return false;
  std::vector<Index> a, b;
  for (Index d : file)
    if (d != 1) a.push_back(d);
  for (int i = 0; i < shape.rank(); ++i)
    if (shape[i] != 1) b.push_back(shape[i]);
  return a == b;
}

}  // namespace

Scope Parameters::root() {
  return {*this, ""};
}

Tensor Parameters::find(std::string_view name) const {
  auto at = index_.find(std::string(name));
  return at == index_.end() ? Tensor() : entries_[at->second].tensor;
}

Tensor Parameters::declare(const std::string& name, const Shape& shape, DType dtype,
                           const Init& init) {
  check(!index_.contains(name), "two parameters are called '{}'", name);
  Tensor tensor;
  if (options_.source != nullptr) {
    auto at = options_.source->tensors.find(name);
    if (at != options_.source->tensors.end() && same_shape(at->second.shape, shape)) {
      used_[name] = true;
      tensor = to_tensor(name, at->second, dtype, options_.device).reshape(shape);
    }
  }
  if (!tensor) {
    tensor = empty(shape, dtype, options_.device);
    declare_into(name, tensor, init);
  } else {
    index_[name] = entries_.size();
    entries_.push_back({name, tensor});
  }
  tensor.require_grad();
  return tensor;
}

void Parameters::declare_into(const std::string& name, const Tensor& part, const Init& init) {
  check(!index_.contains(name), "two parameters are called '{}'", name);
  index_[name] = entries_.size();
  entries_.push_back({name, part});
  if (options_.source != nullptr) {
    auto at = options_.source->tensors.find(name);
    if (at != options_.source->tensors.end()) {
      used_[name] = true;
      if (same_shape(at->second.shape, part.shape())) {
        copy_into(part, to_tensor(name, at->second, part.dtype(), part.device()));
        return;
      }
      misshaped_.push_back(fmt::format("{}: file ({}), model {}", name,
                                       fmt::join(at->second.shape, ","), part.shape()));
      return;
    }
    bool may_miss = false;
    for (const auto& pattern : options_.may_be_missing) may_miss |= matches(pattern, name);
    if (!may_miss) {
      missing_.push_back(name);
      return;
    }
  }
  Draw draw{.seed = options_.seed};
  Dice dice = draw.dice(stream_hash("init:" + name));
  if (part.dtype() == DType::f64)
    initialise<double>(part, init, dice);
  else
    initialise<float>(part, init, dice);
}

void Parameters::finish(const std::vector<std::string>& ignore) {
  if (options_.source == nullptr) return;
  std::vector<std::string> unexpected;
  for (const auto& [name, entry] : options_.source->tensors) {
    bool skip = used_.contains(name);
    for (const auto& pattern : ignore) skip |= matches(pattern, name);
    if (!skip) unexpected.push_back(name);
  }
  auto list = [](const char* title, const std::vector<std::string>& names) {
    if (names.empty()) return std::string();
    std::size_t shown = std::min<std::size_t>(names.size(), 8);
    return fmt::format(
        "\n  {} ({}): {}{}", title, names.size(),
        fmt::join(names.begin(), names.begin() + static_cast<std::ptrdiff_t>(shown), "; "),
        names.size() > shown ? "; ..." : "");
  };
  if (!missing_.empty() || !misshaped_.empty() || !unexpected.empty())
    fail(Fault::bad_data, "{}: the tensors do not fit this model:{}{}{}", options_.source->source,
         list("missing", missing_), list("wrong shape", misshaped_),
         list("unexpected", unexpected));
  options_.source = nullptr;  // the file may be unmapped by its owners from here on
}

Index Parameters::count() const {
  Index total = 0;
  std::unordered_set<const Storage*> seen;
  for (const auto& entry : entries_)
    if (seen.insert(entry.tensor.storage().get()).second)
      total += static_cast<Index>(entry.tensor.storage()->buffer->bytes() /
                                  size_of(entry.tensor.dtype()));
  return total;
}

void Parameters::freeze(std::string_view pattern) {
  std::unordered_set<const Storage*> frozen;
  for (const auto& entry : entries_)
    if (matches(pattern, entry.name)) frozen.insert(entry.tensor.storage().get());
  // The parts of a stacked storage share one gradient: all of them rest, or none.
  for (const auto& entry : entries_) {
    if (!frozen.contains(entry.tensor.storage().get())) continue;
    check(
        matches(pattern, entry.name),
        "the pattern '{}' freezes a part of one fused weight, but not '{}': name all of its parts",
        pattern, entry.name);
  }
  for (const auto& entry : entries_)
    if (matches(pattern, entry.name)) entry.tensor.storage()->gradient.reset();
}

void Parameters::unfreeze(std::string_view pattern) {
  for (const auto& entry : entries_)
    if (matches(pattern, entry.name)) entry.tensor.require_grad();
}

void Parameters::tie(const std::string& alias, const std::string& name) {
  Tensor target = find(name);
  check(bool(target), "cannot tie '{}' to '{}': there is no such parameter", alias, name);
  if (options_.source == nullptr) return;
  auto at = options_.source->tensors.find(alias);
  if (at == options_.source->tensors.end()) return;
  used_[alias] = true;
  Tensor copy = to_tensor(alias, at->second, target.dtype(), target.device());
  bool equal = same_shape(at->second.shape, target.shape());
  if (equal)
    equal = target.dtype() == DType::f64 ? to_host<double>(copy) == to_host<double>(target)
                                         : to_host<float>(copy) == to_host<float>(target);
  if (!equal)
    fail(Fault::bad_data, "{}: '{}' must equal '{}' (they are tied), but the file's copies differ",
         at->second.file, alias, name);
}

void Parameters::clear_gradients() {
  for (const auto& entry : entries_)
    if (entry.tensor.needs_grad()) entry.tensor.storage()->gradient->clear();
}

std::vector<NamedTensor> Parameters::named_tensors(std::string_view pattern) const {
  std::vector<NamedTensor> list;
  for (const auto& entry : entries_)
    if (matches(pattern, entry.name)) list.push_back({entry.name, entry.tensor, {}});
  return list;
}

void Parameters::load_values(const TensorFile& file, std::string_view pattern) {
  for (const auto& entry : entries_) {
    if (!matches(pattern, entry.name)) continue;
    auto at = file.tensors.find(entry.name);
    if (at == file.tensors.end())
      fail(Fault::bad_data, "{}: tensor '{}' is missing", file.source, entry.name);
    if (!same_shape(at->second.shape, entry.tensor.shape()))
      fail(Fault::bad_data, "{}: tensor '{}' has the shape ({}), the model {}", file.source,
           entry.name, fmt::join(at->second.shape, ","), entry.tensor.shape());
    copy_into(entry.tensor,
              to_tensor(entry.name, at->second, entry.tensor.dtype(), entry.tensor.device()));
  }
}

// ---- Scope

std::string Scope::name(std::string_view leaf) const {
  return prefix_.empty() ? std::string(leaf) : prefix_ + "." + std::string(leaf);
}

Scope Scope::operator/(std::string_view child) const {
  return {*parameters_, name(child)};
}

Tensor Scope::matrix(std::string_view leaf, const Shape& shape, const Init& init) const {
  return parameters_->declare(name(leaf), shape, parameters_->dtype(), init);
}

Tensor Scope::vector(std::string_view leaf, Index size, const Init& init) const {
  return parameters_->declare(name(leaf), {size}, stat_of(parameters_->dtype()), init);
}

namespace {
Tensor stacked(Parameters& p, const std::vector<std::string>& names, const Shape& part,
               DType dtype) {
  Shape all{part.rows() * static_cast<Index>(names.size())};
  for (int i = 1; i < part.rank(); ++i) all.push(part[i]);
  Tensor whole = empty(all, dtype, p.device());
  whole.require_grad();
  return whole;
}
}  // namespace

Tensor Scope::stack(const std::vector<std::string>& names, const Shape& part,
                    const Init& init) const {
  Tensor whole = stacked(*parameters_, names, part, parameters_->dtype());
  for (std::size_t i = 0; i < names.size(); ++i) {
    Index begin = static_cast<Index>(i) * part.rows();
    parameters_->declare_into(name(names[i]), whole.slice_rows(begin, begin + part.rows()), init);
  }
  return whole;
}

Tensor Scope::stack_vectors(const std::vector<std::string>& names, Index size,
                            const Init& init) const {
  Tensor whole = stacked(*parameters_, names, {size}, stat_of(parameters_->dtype()));
  for (std::size_t i = 0; i < names.size(); ++i) {
    Index begin = static_cast<Index>(i) * size;
    parameters_->declare_into(name(names[i]), whole.slice_rows(begin, begin + size), init);
  }
  return whole;
}

}  // namespace moe
