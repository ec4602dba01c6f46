// Wrong shapes, absent operands and impossible options throw moe::Error and say which op and which
// shapes.
#include "ops/ops.h"

#include <gtest/gtest.h>

#include <functional>

namespace moe {

namespace {

constexpr Device device = Device::reference;

Tensor ones(const Shape& shape, DType dtype = DType::f32) {
  return full(shape, dtype, device, 1);
}
Tensor ids(const std::vector<std::int32_t>& values) {
  return from_host(values, {static_cast<Index>(values.size())}, device);
}
Segments segments(const std::vector<std::int32_t>& lengths) {
  return pack_segments(lengths, device);
}

struct Wrong {
  std::function<Tensor()> call;
  std::vector<std::string> says;
};

void expect_errors(const std::vector<Wrong>& list) {
  for (const Wrong& wrong : list) {
    try {
      wrong.call();
      ADD_FAILURE() << "no error; expected one that says "
                    << fmt::format("{}", fmt::join(wrong.says, ", "));
    } catch (const Error& error) {
      EXPECT_EQ(error.fault(), Fault::usage) << error.what();
      for (const std::string& part : wrong.says)
        EXPECT_NE(std::string(error.what()).find(part), std::string::npos)
            << "'" << error.what() << "' does not say '" << part << "'";
    }
  }
}

TEST(OpErrors, Pointwise) {
  expect_errors({
      {[] {
         return add(ones({2, 3}), ones({3, 2}));
       },
       {"add", "(2,3)", "(3,2)"}},
      {[] {
         return add(ones({2, 3}), {});
       },
       {"add", "absent"}},
      {[] {
         return add(ones({2, 3}), ones({2, 3}, DType::f64));
       },
       {"add", "f32", "f64"}},
      {[] {
         return mul(ones({2, 3}), ones({2, 4}));
       },
       {"mul", "(2,3)", "(2,4)"}},
      {[] { return scale({}, 2); }, {"scale"}},
      {[] {
         return scale_by(ones({2, 3}), ones({2}));
       },
       {"scale_by"}},
      {[] { return relu({}); }, {"activate"}},
      {[] {
         return dropout(ones({2, 3}), Draw{.train = true}, 1, 1.5);
       },
       {"dropout", "1.5"}},
  });
}

TEST(OpErrors, Products) {
  expect_errors({
      {[] {
         return linear(ones({2, 3}), ones({4, 5}), {});
       },
       {"linear", "(4,5)", "(2,3)"}},
      {[] {
         return linear(ones({2, 3}), {}, {});
       },
       {"linear"}},
      {[] {
         return linear(ones({2, 3}), ones({4, 3}), ones({5}));
       },
       {"linear", "(5)", "(4,3)"}},
      {[] {
         return linear(ones({2, 3}), ones({4, 3}), {},
                       {.activation = Activation::none, .residual = ones({2, 3})});
       },
       {"linear", "(2,3)", "(2,4)"}},
      {[] {
         return linear(ones({2, 3}), ones({4, 3}, DType::f64), {});
       },
       {"f32", "f64"}},
      {[] {
         return matmul_nt(ones({2, 3}), ones({4, 5}));
       },
       {"matmul_nt", "(2,3)", "(4,5)"}},
      {[] {
         return grouped_linear(ones({2, 3}), ones({4, 5, 6}), {}, segments({1, 1, 0, 0}));
       },
       {"grouped_linear", "(4,5,6)", "(2,3)"}},
      {[] {
         return grouped_linear(ones({2, 3}), ones({4, 5, 3}), {}, segments({2}));
       },
       {"grouped_linear", "1 groups", "4 experts"}},
      {[] {
         return grouped_linear(ones({2, 3}), ones({2, 5, 3}), ones({3, 5}), segments({1, 1}));
       },
       {"grouped_linear", "(3,5)", "(2,5,3)"}},
  });
}

TEST(OpErrors, Rows) {
  expect_errors({
      {[] {
         return layer_norm(ones({2, 3}), ones({4}), ones({3}), 1e-5);
       },
       {"layer_norm", "(4)", "(2,3)"}},
      {[] {
         return layer_norm(ones({2, 3}), ones({3}), {}, 1e-5);
       },
       {"layer_norm", "absent"}},
      {[] {
         return l2_normalize(ones({2, 3}), 0);
       },
       {"l2_normalize", "eps"}},
      {[] { return softmax({}); }, {"softmax"}},
      {[] { return log_softmax({}); }, {"log_softmax"}},
      {[] {
         return lookup(ones({2, 3}), {});
       },
       {"lookup"}},
      {[] {
         return lookup(ones({2, 3}), ones({2}));
       },
       {"f32", "i32"}},
  });
}

TEST(OpErrors, Segments) {
  auto attend = [](const Tensor& q, const Tensor& k, const Tensor& v, const Segments& queries,
                   const Segments& keys, Index heads) {
    AttentionOptions options;
    options.heads = heads;
    return attention(q, k, v, queries, keys, options);
  };
  expect_errors({
      {[=] {
         return attend(ones({2, 4}), ones({2, 6}), ones({2, 6}), segments({2}), segments({2}), 1);
       },
       {"attention", "(2,4)", "(2,6)"}},
      {[=] {
         return attend(ones({2, 4}), ones({2, 4}), ones({3, 4}), segments({2}), segments({2}), 1);
       },
       {"attention", "(2,4)", "(3,4)"}},
      {[=] {
         return attend(ones({2, 4}), ones({2, 4}), ones({2, 4}), segments({2}), segments({2}), 3);
       },
       {"attention", "4", "3"}},
      {[=] {
         return attend(ones({2, 4}), ones({2, 4}), ones({2, 4}), segments({2}), segments({1, 1}),
                       1);
       },
       {"attention", "1", "2"}},
      {[] { return segment_mean({}, segments({1})); }, {"segment_mean"}},
      {[] { return segment_max({}, segments({1})); }, {"segment_max"}},
  });
  EXPECT_THROW(segments({3, -1}), Error);
}

TEST(OpErrors, Routing) {
  auto route = [] { return top_k(ones({2, 3}), 2); };
  expect_errors({
      {[] {
         return top_k(ones({2, 3}), 4).weight;
       },
       {"top_k", "4", "3"}},
      {[] {
         return top_k(ones({2, 3}), 0).weight;
       },
       {"top_k", "0"}},
      {[] {
         TopKOptions options;
         options.straight_through = true;
         return top_k(ones({2, 3}), 2, options).weight;
       },
       {"top_k", "k = 1"}},
      {[] {
         TopKOptions options;
         options.bias = ones({4});
         return top_k(ones({2, 3}), 1, options).weight;
       },
       {"top_k", "(4)", "3"}},
      {[] {
         TopKOptions options;
         options.allow = from_host(std::vector<std::uint8_t>{1, 1}, {2}, device);
         return top_k(ones({2, 3}), 1, options).weight;
       },
       {"top_k", "(2)", "(2,3)"}},
      {[] {
         TopKOptions options;
         options.selection = ones({3, 2});
         return top_k(ones({2, 3}), 1, options).weight;
       },
       {"top_k", "(3,2)", "(2,3)"}},
      {[] {
         return given(ids({0, 1}), ones({2, 1}), 2).weight;
       },
       {"given", "(2)", "(2,1)"}},
      {[=] {
         return gather(ones({3, 4}), route());
       },
       {"gather", "3", "2"}},
      {[=] {
         return combine(ones({3, 4}), route());
       },
       {"combine", "3", "4"}},
  });
}

TEST(OpErrors, Losses) {
  auto mask = [](const Shape& shape) { return zeros(shape, DType::u8, device); };
  expect_errors({
      {[] {
         return cross_entropy(ones({2, 3}), ids({0}), 1);
       },
       {"cross_entropy", "1", "2"}},
      {[=] {
         return cross_entropy(ones({2, 3}), ids({0, 1}), 1, mask({3, 2}));
       },
       {"cross_entropy", "(3,2)", "(2,3)"}},
      {[] {
         return contrastive(ones({3, 4}), ones({2, 4}), {}, {});
       },
       {"contrastive", "3", "2"}},
      {[] {
         return contrastive(ones({2, 4}), ones({2, 4}), {}, {.temperature = 0});
       },
       {"contrastive", "temperature"}},
      {[] {
         return contrastive(ones({2, 4}), ones({3, 4}), {}, {.symmetric = true});
       },
       {"contrastive", "2", "3"}},
      {[] {
         return balance_loss(ones({2, 3}), ids({0}));
       },
       {"balance_loss", "2", "1"}},
      {[] { return z_loss({}); }, {"z_loss"}},
      {[] { return importance_loss({}); }, {"importance_loss"}},
  });
}

// Kernels do not look again: an index outside its table would read foreign memory.
TEST(OpErrors, Indices) {
  expect_errors({
      {[] {
         return lookup(ones({2, 3}), ids({0, 2}));
       },
       {"lookup", "index 2", "0..1"}},
      {[] {
         return lookup(ones({2, 3}), ids({-1}));
       },
       {"lookup", "index -1"}},
      {[] {
         return cross_entropy(ones({2, 3}), ids({0, 3}), 1);
       },
       {"cross_entropy", "index 3", "-1..2"}},
      {[] {
         return balance_loss(ones({2, 3}), ids({0, 3}));
       },
       {"balance_loss", "index 3"}},
      {[] {
         return given(ids({0, 2}), ones({2}), 2).weight;
       },
       {"given", "index 2"}},
      {[] {
         return segment_mean(ones({2, 3}), segments({1, 2}));
       },
       {"segment_mean", "3 rows", "(2,3)"}},
      {[] {
         return segment_max(ones({2, 3}), segments({3}));
       },
       {"segment_max", "3 rows", "(2,3)"}},
      {[] {
         return segment_first(ones({2, 3}), segments({2, 1}));
       },
       {"lookup", "index 2"}},
      {[] {
         return grouped_linear(ones({2, 3}), ones({1, 5, 3}), {}, segments({3}));
       },
       {"grouped_linear", "3 rows", "(2,3)"}},
      {[] {
         return attention(ones({2, 4}), ones({2, 4}), ones({2, 4}), segments({2}), segments({3}),
                          {});
       },
       {"attention", "3 rows", "(2,4)"}},
  });
}

// Biases, ids and masks are read as plain arrays: a column of a matrix is refused, not misread.
TEST(OpErrors, StridedArrays) {
  Tensor column = ones({3, 2}).slice_cols(0, 1).reshape({3, 1});
  Tensor numbers = zeros({2, 2}, DType::i32, device).slice_cols(0, 1);
  expect_errors({
      {[=] {
         return linear(ones({2, 4}), ones({3, 4}), column);
       },
       {"linear", "strided"}},
      {[=] {
         return layer_norm(ones({2, 3}), column, ones({3}), 1e-5);
       },
       {"layer_norm", "strided"}},
      {[=] {
         return lookup(ones({2, 3}), numbers);
       },
       {"lookup", "strided"}},
      {[=] {
         return cross_entropy(ones({2, 3}), numbers, 1);
       },
       {"cross_entropy", "strided"}},
      {[=] {
         return given(numbers, ones({2, 1}), 2).weight;
       },
       {"given", "strided"}},
  });
}

TEST(OpErrors, Devices) {
  Tensor far = full({2, 3}, DType::f32, Device::cpu, 1);
  expect_errors({
      {[=] {
         return linear(ones({2, 3}), far, {});
       },
       {"linear", "cpu", "reference"}},
      {[=] {
         return matmul_nt(ones({2, 3}), far);
       },
       {"matmul_nt", "cpu", "reference"}},
      {[=] {
         return attention(ones({2, 3}), far, far, segments({2}), segments({2}), {});
       },
       {"attention", "cpu", "reference"}},
      {[=] { return segment_mean(far, segments({2})); }, {"segment_mean", "cpu", "reference"}},
      {[=] { return lookup(far, ids({0})); }, {"lookup", "cpu", "reference"}},
  });
  EXPECT_THROW(add(full({2, 3}, DType::f32, Device::cpu, 1), ones({2, 3})), Error);
  // The fast table has no double kernels, and says so.
  try {
    relu(full({2, 3}, DType::f64, Device::cpu, 1));
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.fault(), Fault::unavailable);
    EXPECT_NE(std::string(error.what()).find("reference"), std::string::npos) << error.what();
  }
}

}  // namespace

}  // namespace moe
