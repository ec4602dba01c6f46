// Slots that no op calls: copies and the optimisers' kernels, called through the table as their
// users do.
#include "tests/op_cases.h"

namespace moe::testing {

namespace {

OpCase bare(const std::string& name, std::vector<Sizes> sizes,
            std::function<Tensor(Inputs&)> call) {
  OpCase c{.name = name,
           .small = {},
           .sweep = std::move(sizes),
           .large = large_matrices(),
           .call = std::move(call)};
  c.numeric = false;
  return c;
}

// A tensor of its own, which the kernel may change.
Tensor state(Inputs& in, const std::string& name, const Shape& shape,
             Values values = Values::uniform) {
  return tensor_of(numbers(name, shape, values, 0), shape, in.placement().dtype,
                   in.placement().device);
}

Tensor adamw(Inputs& in) {
  Shape shape{in.rows(), in.cols()};
  Tensor p = state(in, "p", shape), m = state(in, "m", shape), g = state(in, "g", shape),
         v = state(in, "v", shape, Values::positive);
  Tensor p2 = state(in, "p2", {in.cols()}), m2 = state(in, "m2", {in.cols()}),
         g2 = state(in, "g2", {in.cols()}), v2 = state(in, "v2", {in.cols()}, Values::positive);
  with_type(p, [&]<class T>(const Kernels<T>& k) {
    using S = Stat<T>;
    AdamWChunk<T> chunks[] = {
        {p.mut<S>(), m.mut<S>(), v.mut<S>(), g.data<S>(), p.size(), 1, 0.01},
        {p2.mut<S>(), m2.mut<S>(), v2.mut<S>(), g2.data<S>(), p2.size(), 0.5, 0}};
    AdamWStep step{0.1, 0.8, 0.3, 0.2};
    k.adamw(chunks, 2, &step, 0.9, 0.999, 1e-8);
  });
  // All state in one result: (4 or 8 rows of this shape) by sums of products with one.
  return add(add(p, scale(m, 3)), scale(v, 7));
}

Tensor adafactor(Inputs& in, bool factored) {
  Shape shape{in.rows(), in.cols()};
  Tensor p = state(in, "p", shape), g = state(in, "g", shape), scratch = empty_like(p);
  Tensor row = state(in, "row", {in.rows()}, Values::positive),
         column = state(in, "column", {in.cols()}, Values::positive),
         full_state = state(in, "full", shape, Values::positive);
  with_type(p, [&]<class T>(const Kernels<T>& k) {
    using S = Stat<T>;
    AdafactorChunk<T> chunk{p.mut<S>(),
                            factored ? row.mut<S>() : nullptr,
                            factored ? column.mut<S>() : nullptr,
                            factored ? nullptr : full_state.mut<S>(),
                            g.data<S>(),
                            in.rows(),
                            in.cols(),
                            1,
                            0.01};
    AdafactorStep step{0.1, 0.8, 0.7};
    k.adafactor(chunk, &step, scratch.mut<S>());
  });
  return factored ? p : add(p, full_state);
}

}  // namespace

std::vector<OpCase> kernel_cases() {
  std::vector<OpCase> list;
  list.push_back(bare("copy", edge_matrices(), [](Inputs& in) {
    Tensor x = in.x("x", {in.rows(), in.cols()}), y = empty_like(x);
    with_type(x, [&]<class T>(const Kernels<T>& k) { k.copy(x.view<T>(), y.mut_view<T>()); });
    return y;
  }));
  list.back().row_wise = true;
  list.push_back(bare("adamw", edge_matrices(), adamw));
  list.push_back(
      bare("adafactor", edge_matrices(false), [](Inputs& in) { return adafactor(in, true); }));
  list.push_back(bare("adafactor/vector", edge_matrices(false),
                      [](Inputs& in) { return adafactor(in, false); }));
  for (std::size_t i = list.size() - 3; i < list.size(); ++i) list[i].floor = 64;
  // Blocks of 4096 summed in order: sizes around one block.
  list.push_back(bare("norm_squared",
                      {{.rows = 1, .cols = 1},
                       {.rows = 0, .cols = 4},
                       {.rows = 1, .cols = 4095},
                       {.rows = 1, .cols = 4096},
                       {.rows = 1, .cols = 4097},
                       {.rows = 3, .cols = 4111}},
                      [](Inputs& in) {
                        Tensor x = state(in, "x", {in.rows(), in.cols()});
                        double sum = 0;
                        with_type(x, [&]<class T>(const Kernels<T>& k) {
                          k.norm_squared(x.data<Stat<T>>(), x.size(), &sum);
                        });
                        return from_host(std::vector<double>{sum}, {1}, in.placement().device);
                      }));
  return list;
}

}  // namespace moe::testing
