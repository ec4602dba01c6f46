// Nothing forgotten: every slot of the tables is filled, the list of cases reaches every slot, and
// every op of ops.h has a case. The link seam gives the test program a simt backend: the cpu table,
// with every call counted.
#include "runtime/backend.h"
#include "tests/op_cases.h"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <regex>
#include <set>
#include <string>

namespace moe {

namespace {

// A function of the slot's own type that counts and passes on.
template <auto Member, class Type = decltype(Member)>
struct Counted;
template <auto Member, class T, class Result, class... Args>
struct Counted<Member, Result (*Kernels<T>::*)(Args...)> {
  static inline Result (*original)(Args...) = nullptr;
  static inline Index calls = 0;
  static Result call(Args... args) {
    ++calls;
    return original(args...);
  }
};

struct Slot {
  std::string name;
  const Index* calls;
};
std::vector<Slot>& slots() {
  static std::vector<Slot> list;
  return list;
}

template <auto Member>
void count(Kernels<float>& table, const char* name) {
  using Counter = Counted<Member>;
  Counter::original = table.*Member;
  table.*Member = Counter::call;
  slots().push_back({name, &Counter::calls});
}

Kernels<float> counting(Kernels<float> t) {
  using K = Kernels<float>;
  count<&K::copy>(t, "copy");
  count<&K::add>(t, "add");
  count<&K::accumulate>(t, "accumulate");
  count<&K::scale>(t, "scale");
  count<&K::scale_by>(t, "scale_by");
  count<&K::scale_by_backward>(t, "scale_by_backward");
  count<&K::mul>(t, "mul");
  count<&K::mul_backward>(t, "mul_backward");
  count<&K::activate>(t, "activate");
  count<&K::activate_backward>(t, "activate_backward");
  count<&K::dropout>(t, "dropout");
  count<&K::dropout_backward>(t, "dropout_backward");
  count<&K::sum_rows>(t, "sum_rows");
  count<&K::random_uniform>(t, "random_uniform");
  count<&K::random_normal>(t, "random_normal");
  count<&K::gemm>(t, "gemm");
  count<&K::gemm_input_grad>(t, "gemm_input_grad");
  count<&K::gemm_weight_grad>(t, "gemm_weight_grad");
  count<&K::grouped_sum_rows>(t, "grouped_sum_rows");
  count<&K::packed_bytes>(t, "packed_bytes");
  count<&K::pack_weight>(t, "pack_weight");
  count<&K::layer_norm>(t, "layer_norm");
  count<&K::layer_norm_backward>(t, "layer_norm_backward");
  count<&K::l2_normalize>(t, "l2_normalize");
  count<&K::l2_normalize_backward>(t, "l2_normalize_backward");
  count<&K::softmax>(t, "softmax");
  count<&K::softmax_backward>(t, "softmax_backward");
  count<&K::log_softmax>(t, "log_softmax");
  count<&K::log_softmax_backward>(t, "log_softmax_backward");
  count<&K::lookup>(t, "lookup");
  count<&K::lookup_backward>(t, "lookup_backward");
  count<&K::attention>(t, "attention");
  count<&K::attention_backward>(t, "attention_backward");
  count<&K::segment_mean>(t, "segment_mean");
  count<&K::segment_mean_backward>(t, "segment_mean_backward");
  count<&K::segment_max>(t, "segment_max");
  count<&K::segment_max_backward>(t, "segment_max_backward");
  count<&K::top_k>(t, "top_k");
  count<&K::pick>(t, "pick");
  count<&K::pick_backward>(t, "pick_backward");
  count<&K::route>(t, "route");
  count<&K::gather_rows>(t, "gather_rows");
  count<&K::combine_rows>(t, "combine_rows");
  count<&K::combine_rows_backward>(t, "combine_rows_backward");
  count<&K::cross_entropy>(t, "cross_entropy");
  count<&K::cross_entropy_backward>(t, "cross_entropy_backward");
  count<&K::balance_loss>(t, "balance_loss");
  count<&K::balance_loss_backward>(t, "balance_loss_backward");
  count<&K::z_loss>(t, "z_loss");
  count<&K::z_loss_backward>(t, "z_loss_backward");
  count<&K::importance_loss>(t, "importance_loss");
  count<&K::importance_loss_backward>(t, "importance_loss_backward");
  count<&K::adamw>(t, "adamw");
  count<&K::adafactor>(t, "adafactor");
  count<&K::norm_squared>(t, "norm_squared");
  return t;
}

}  // namespace

// The link seam: these take the place of cuda/absent.cc, which the linker then leaves in its
// archive.
const Backend* cuda_backend() {
  return nullptr;
}
const Backend* simt_backend() {
  static const Kernels<float> table = counting(*cpu_backend().f32);
  static const Backend backend = [] {
    Backend b = cpu_backend();
    b.name = "counting";
    b.f32 = &table;
    return b;
  }();
  return &backend;
}

namespace testing {

namespace {

// A table of function pointers, walked as an array.
template <class T>
std::vector<std::size_t> empty_slots(const Kernels<T>& table) {
  constexpr std::size_t count = sizeof(table) / sizeof(void*);
  void* pointers[count];
  std::memcpy(pointers, &table, sizeof(table));
  std::vector<std::size_t> empty;
  for (std::size_t i = 0; i < count; ++i)
    if (pointers[i] == nullptr) empty.push_back(i);
  return empty;
}

TEST(Coverage, EverySlotIsFilled) {
  EXPECT_TRUE(empty_slots(*reference_backend().f32).empty());
  EXPECT_TRUE(empty_slots(*reference_backend().f64).empty());
  EXPECT_TRUE(empty_slots(*cpu_backend().f32).empty());
}

TEST(Coverage, CasesReachEverySlot) {
  ASSERT_NE(simt_backend(), nullptr);
  // A new slot must be added to counting() above.
  ASSERT_EQ(slots().size(), sizeof(Kernels<float>) / sizeof(void*));
  for (const OpCase& c : op_cases())
    for (const auto* list : {&c.small, &c.sweep})
      for (const Sizes& sizes : *list) {
        Inputs in({.device = Device::simt, .dtype = DType::f32}, sizes);
        run(c.call, in);
      }
  for (const Slot& slot : slots())
    EXPECT_GT(*slot.calls, 0) << "no case reaches the kernel '" << slot.name << "'";
}

TEST(Coverage, EveryOpHasACase) {
  std::ifstream file(std::string(MOE_SOURCE_DIR) + "/ops/ops.h");
  ASSERT_TRUE(file) << "no ops/ops.h under " << MOE_SOURCE_DIR;
  std::set<std::string> covered;
  for (const OpCase& c : op_cases()) covered.insert(c.op());
  std::regex declaration(R"(^(?:inline )?(?:Tensor|Routing) (\w+)\(.*)");
  std::size_t ops = 0;
  for (std::string line; std::getline(file, line);) {
    std::smatch match;
    if (!std::regex_match(line, match, declaration)) continue;
    ++ops;
    EXPECT_TRUE(covered.contains(match[1]))
        << "ops.h declares '" << match[1] << "', tests/op_cases*.cc has none";
  }
  EXPECT_GE(ops, 30u);
}

}  // namespace

}  // namespace testing

}  // namespace moe
