// Parameters by name. A module is a plain struct built from a Scope (parameters + name prefix); the
// names are those of the checkpoint files. The same constructor declares for training and binds
// when a source is given; finish() reports missing, unexpected and mis-shaped names together in one
// error.
#pragma once

#include "runtime/random.h"
#include "runtime/tensor_file.h"

#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace moe {

// How a parameter starts. Drawn by name (stream "init:" + name), so construction order does not
// matter.
struct Init {
  enum class Kind : std::uint8_t { zeros, ones, constant, uniform, normal } kind = Kind::zeros;
  double value = 0;  // constant; bound of uniform(-value, value); standard deviation
  static Init zeros() { return {}; }
  static Init ones() { return {Kind::ones, 1}; }
  static Init constant(double v) { return {Kind::constant, v}; }
  static Init uniform(double bound) { return {Kind::uniform, bound}; }
  static Init normal(double deviation) { return {Kind::normal, deviation}; }
};

class Scope;

class Parameters {
 public:
  struct Options {
    DType dtype = DType::f32;
    Device device = Device::cpu;
    std::uint64_t seed = 42;
    const TensorFile* source = nullptr;  // bind from here instead of initialising
    std::vector<std::string>
        may_be_missing;  // name patterns that are initialised when the source lacks them
  };
  struct Entry {
    std::string name;
    Tensor tensor;
  };

  explicit Parameters(Options options) : options_(std::move(options)) {}
  Parameters() : Parameters(Options{}) {}
  Parameters(const Parameters&) = delete;
  Parameters& operator=(const Parameters&) = delete;

  Scope root();
  // Call once after the modules are built: with a source, throws one error that lists every
  // missing, mis-shaped and unexpected tensor. `ignore` are patterns of names that may stand unused
  // in the source.
  void finish(const std::vector<std::string>& ignore = {});

  const std::vector<Entry>& entries() const { return entries_; }
  Tensor find(std::string_view name) const;  // empty when absent
  Index count() const;                       // elements over distinct storages
  DType dtype() const { return options_.dtype; }
  Device device() const { return options_.device; }
  std::uint64_t seed() const { return options_.seed; }

  // Patterns: '*' matches any run of characters. Frozen parameters need no gradient.
  void freeze(std::string_view pattern);
  void unfreeze(std::string_view pattern);
  // Two names, one storage: counted, stepped and saved once. A differing copy in the source is an
  // error.
  void tie(const std::string& alias, const std::string& name);

  // Marks every gradient untouched.
  void clear_gradients();
  // All tensors under their names, for a checkpoint file.
  std::vector<NamedTensor> named_tensors(std::string_view pattern = "*") const;
  // Copies values in by name; every entry matching `pattern` must be in the file with its shape.
  void load_values(const TensorFile& file, std::string_view pattern = "*");

 private:
  friend class Scope;
  Tensor declare(const std::string& name, const Shape& shape, DType dtype, const Init& init);
  void declare_into(const std::string& name, const Tensor& part, const Init& init);

  Options options_;
  std::vector<Entry> entries_;
  std::unordered_map<std::string, std::size_t> index_;
  std::unordered_map<std::string, bool> used_;
  std::vector<std::string> missing_, misshaped_;
};

bool matches(std::string_view pattern, std::string_view name);

class Scope {
 public:
  Scope(Parameters& parameters, std::string prefix)
      : parameters_(&parameters), prefix_(std::move(prefix)) {}

  Scope operator/(std::string_view name) const;
  Scope operator/(Index number) const { return *this / std::string_view(std::to_string(number)); }

  // A weight matrix (dtype of the parameters) or a vector of Stat type (bias, norm weight).
  Tensor matrix(std::string_view name, const Shape& shape, const Init& init) const;
  Tensor vector(std::string_view name, Index size, const Init& init) const;
  // One storage, several names: parts of equal shape stacked by rows, e.g. stack({"query.weight",
  // "key.weight", "value.weight"}, {H, H}, init) is a (3H, H) matrix that checkpoints see as three
  // tensors.
  Tensor stack(const std::vector<std::string>& names, const Shape& part, const Init& init) const;
  Tensor stack_vectors(const std::vector<std::string>& names, Index size, const Init& init) const;

  Parameters& parameters() const { return *parameters_; }
  std::string name(std::string_view leaf) const;

 private:
  Parameters* parameters_;
  std::string prefix_;
};

}  // namespace moe
