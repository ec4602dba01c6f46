// The laws of the contract, case by case: gradients add, results do not depend on threads, on the
// other rows of a batch or on packing, views are as good as whole tensors, frozen inputs change
// nothing for the others.
#include "runtime/parallel.h"
#include "tests/levels.h"
#include "tests/op_cases.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace moe::testing {

namespace {

class Laws : public ::testing::TestWithParam<OpCase> {
 protected:
  void TearDown() override { set_threads(2); }
};

class RowLaws : public Laws {};
class TextLaws : public Laws {};

const Placement on_cpu{.device = Device::cpu, .dtype = DType::f32};
const Placement on_reference{.device = Device::reference, .dtype = DType::f64};

// Large sizes are for what splits work among threads; the reference does not, and is slow.
std::vector<Sizes> sizes_for(const OpCase& c, const Placement& placement) {
  std::vector<Sizes> all = c.small;
  all.insert(all.end(), c.sweep.begin(), c.sweep.end());
  if (placement.device != Device::reference) all.insert(all.end(), c.large.begin(), c.large.end());
  return all;
}

// The rows first .. first+count-1 of a dense matrix.
std::vector<double> rows_of(const std::vector<double>& values, Index cols, Index first,
                            Index count) {
  return {values.begin() + first * cols, values.begin() + (first + count) * cols};
}

TEST_P(Laws, TwoBackwardPassesGiveTwice) {
  const OpCase& c = GetParam();
  for (const Placement& placement : {on_reference, on_cpu})
    for (const Sizes& sizes : sizes_for(c, placement)) {
      SCOPED_TRACE(fmt::format("{} {}", placement.device, describe(sizes)));
      Inputs once_in(placement, sizes), twice_in(placement, sizes);
      Outcome once = run(c.call, once_in, 1), twice = run(c.call, twice_in, 2);
      // The reference carries sums in double, and some start from the old value: exact in float,
      // not in double.
      bool exact = placement.dtype == DType::f32 && !c.scatters;
      double unit = placement.dtype == DType::f64 ? 0x1p-53 : 0x1p-24;
      for (auto& [name, gradient] : once.gradients) {
        for (double& g : gradient) g *= 2;
        double allowed = exact ? 0 : c.floor * unit * std::max(largest(gradient), c.terms);
        EXPECT_LE(distance(gradient, twice.gradients[name]), allowed) << "gradient of " << name;
      }
    }
}

TEST_P(Laws, ThreadsDoNotMatter) {
  const OpCase& c = GetParam();
  for (const Sizes& sizes : sizes_for(c, on_cpu)) {
    set_threads(1);
    Inputs alone(on_cpu, sizes);
    Outcome one = run(c.call, alone);
    for (int threads : {2, 3}) {
      set_threads(threads);
      Inputs in(on_cpu, sizes);
      expect_same(one, run(c.call, in), fmt::format("{} threads, {}", threads, describe(sizes)));
    }
  }
}

// Rows 37 .. of a batch of 64, recomputed alone and among 2 and 15.
TEST_P(RowLaws, OtherRowsDoNotMatter) {
  const OpCase& c = GetParam();
  std::vector<Sizes> widths = {c.sweep.front(), c.sweep.back()};
  widths.insert(widths.end(), c.large.begin(), c.large.end());
  on_every_level([&](const std::string& level) {
    for (Sizes sizes : widths) {
      sizes.rows = 64;
      Inputs batch(on_cpu, sizes);
      Outcome whole = run(c.call, batch);
      for (Index count : {1, 2, 15}) {
        constexpr Index first = 37;
        sizes.rows = count;
        Placement placement = on_cpu;
        placement.first_row = placement.first_output_row = first;
        Inputs in(placement, sizes);
        Outcome part = run(c.call, in), cut;
        cut.y = rows_of(whole.y, whole.shape.cols(), first, count);
        for (auto& [name, leaf] : in.leaves())
          if (leaf.origin == Origin::rows && whole.gradients.contains(name))
            cut.gradients[name] = rows_of(whole.gradients[name], leaf.view.cols(), first, count);
        expect_same(cut, part, fmt::format("{} {} rows, {}", level, count, describe(sizes)));
      }
    }
  });
}

// Every text of a ragged batch, recomputed alone.
TEST_P(TextLaws, OtherTextsDoNotMatter) {
  const OpCase& c = GetParam();
  on_every_level([&](const std::string& level) {
    for (const Sizes& sizes : sizes_for(c, on_cpu)) {
      Inputs batch(on_cpu, sizes);
      Outcome whole = run(c.call, batch);
      bool pooled = whole.shape.rows() == static_cast<Index>(sizes.lengths.size());
      Placement placement = on_cpu;
      for (std::size_t text = 0; text < sizes.lengths.size(); ++text) {
        Sizes one = sizes;
        one.lengths = {sizes.lengths[text]};
        one.rows = sizes.lengths[text];
        Index keys = one.rows;
        if (!sizes.key_lengths.empty()) {
          one.key_lengths = {sizes.key_lengths[text]};
          keys = sizes.key_lengths[text];
        }
        placement.first_output_row = pooled ? static_cast<Index>(text) : placement.first_row;
        Inputs in(placement, one);
        Outcome part = run(c.call, in), cut;
        cut.y =
            rows_of(whole.y, whole.shape.cols(), placement.first_output_row, pooled ? 1 : one.rows);
        for (auto& [name, leaf] : in.leaves())
          if (leaf.origin != Origin::fixed && whole.gradients.contains(name))
            cut.gradients[name] =
                rows_of(whole.gradients[name], leaf.view.cols(),
                        leaf.origin == Origin::rows ? placement.first_row : placement.first_key_row,
                        leaf.view.rows());
        expect_same(cut, part, fmt::format("{} text {}, {}", level, text, describe(sizes)));
        placement.first_row += one.rows;
        placement.first_key_row += keys;
      }
    }
  });
}

TEST_P(Laws, ViewsAreAsGood) {
  const OpCase& c = GetParam();
  for (Placement placement : {on_reference, on_cpu})
    for (const Sizes& sizes : sizes_for(c, placement)) {
      std::string where = fmt::format("{} {}", placement.device, describe(sizes));
      placement.embedded = false;
      Inputs whole(placement, sizes);
      placement.embedded = true;
      Inputs views(placement, sizes);
      expect_same(run(c.call, whole), run(c.call, views), where);
      std::string broken;
      EXPECT_TRUE(views.surroundings_intact(&broken)) << where << ": " << broken;
    }
}

TEST_P(Laws, FrozenInputsCostNothing) {
  const OpCase& c = GetParam();
  for (Placement placement : {on_reference, on_cpu})
    for (const Sizes& sizes : sizes_for(c, placement)) {
      placement.frozen = "";
      Inputs free_in(placement, sizes);
      Outcome free = run(c.call, free_in);
      for (const auto& [name, leaf] : free_in.leaves()) {
        placement.frozen = name;
        Inputs in(placement, sizes);
        Outcome frozen = run(c.call, in);
        EXPECT_FALSE(frozen.gradients.contains(name));
        expect_same(frozen, free,
                    fmt::format("{} frozen, {} {}", name, placement.device, describe(sizes)));
      }
    }
}

// Without a tape ops allocate and keep less; the result must not know.
TEST_P(Laws, InferenceGivesTheSame) {
  const OpCase& c = GetParam();
  for (const Placement& placement : {on_reference, on_cpu})
    for (const Sizes& sizes : sizes_for(c, placement)) {
      Inputs trained(placement, sizes), inferred(placement, sizes);
      Outcome a = run(c.call, trained, 1), b = run(c.call, inferred, 0);
      EXPECT_TRUE(b.gradients.empty());
      expect_same(a, b, fmt::format("{} {}", placement.device, describe(sizes)));
    }
}

TEST_P(Laws, NothingIsLeftUnwritten) {
  const OpCase& c = GetParam();
  for (const Placement& placement : {on_reference, on_cpu})
    for (const Sizes& sizes : sizes_for(c, placement)) {
      Inputs in(placement, sizes);
      Outcome outcome = run(c.call, in);
      auto finite = [](const std::vector<double>& values) {
        return std::all_of(values.begin(), values.end(), [](double v) { return v - v == 0; });
      };
      EXPECT_TRUE(finite(outcome.y)) << name_of(placement.device) << " " << describe(sizes);
      for (const auto& [name, gradient] : outcome.gradients)
        EXPECT_TRUE(finite(gradient)) << name << " " << describe(sizes);
    }
}

INSTANTIATE_TEST_SUITE_P(Ops, Laws, ::testing::ValuesIn(op_cases()),
                         [](const auto& one) { return test_name(one.param); });
INSTANTIATE_TEST_SUITE_P(Ops, RowLaws, ::testing::ValuesIn(op_cases_where([](const OpCase& c) {
                           return c.row_wise;
                         })),
                         [](const auto& one) { return test_name(one.param); });
INSTANTIATE_TEST_SUITE_P(Ops, TextLaws, ::testing::ValuesIn(op_cases_where([](const OpCase& c) {
                           return c.text_wise;
                         })),
                         [](const auto& one) { return test_name(one.param); });

}  // namespace

}  // namespace moe::testing
