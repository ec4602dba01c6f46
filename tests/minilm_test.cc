// all-MiniLM-L6-v2 against vectors of another implementation (its GELU is the tanh form, so 5e-3 is
// the bound). Needs the weights in MOE_MINILM and the golden folder of MOE_DATA; SKIPPED without.
#include "models/text_encoder.h"
#include "tools/embedding.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <fstream>

namespace moe {
namespace {

// All numbers of a snapshot: YAML list items behind a three-line head.
std::vector<double> snapshot(const std::string& path) {
  std::ifstream file(path);
  std::vector<double> values;
  std::string line;
  for (int dashes = 0; std::getline(file, line);) {
    if (line == "---") ++dashes;
    std::size_t at = line.rfind("- ");
    if (dashes < 2 || at == std::string::npos || line == "---") continue;
    values.push_back(std::stod(line.substr(at + 2)));
  }
  return values;
}

class MiniLm : public testing::Test {
 protected:
  void SetUp() override {
    const char *model = std::getenv("MOE_MINILM"), *data = std::getenv("MOE_DATA");
    if (model == nullptr || data == nullptr)
      GTEST_SKIP() << "MOE_MINILM and MOE_DATA name the weights and the golden vectors";
    model_ = model;
    golden_ = std::string(data) + "/minilm-l6/golden/test_bert__bert_";
  }
  void expect_golden(const std::vector<std::string>& texts, Pooling pooling,
                     const std::string& name) {
    TextEncoder::Options options;
    options.pooling = pooling;
    options.normalize = false;
    auto encoder = TextEncoder::load(model_, options);
    auto ours = embed_texts(*encoder, texts);
    auto expected = snapshot(golden_ + name + ".snap");
    ASSERT_EQ(ours.size(), expected.size());
    double worst = 0;
    for (std::size_t i = 0; i < ours.size(); ++i)
      worst = std::max(worst, std::abs(static_cast<double>(ours[i]) - expected[i]));
    EXPECT_LE(worst, 5e-3);
    std::printf("%s: largest difference %.1e\n", name.c_str(), worst);
  }
  std::string model_, golden_;
  const std::vector<std::string> one_{"What is Deep Learning?"};
  const std::vector<std::string> three_{"What is Deep Learning?", "Deep Learning is...",
                                        "What is Deep Learning?"};
};

TEST_F(MiniLm, MeanPooling) {
  expect_golden(one_, Pooling::mean, "single");
  expect_golden(three_, Pooling::mean, "batch");
}
TEST_F(MiniLm, ClsPooling) {
  expect_golden(one_, Pooling::cls, "single_pooled");
  expect_golden(three_, Pooling::cls, "batch_pooled");
}
TEST_F(MiniLm, TokenVectors) {
  auto encoder = TextEncoder::load(model_, {});
  std::vector<std::vector<std::int32_t>> ids{encoder->tokenize(one_[0])};
  TokenBatch batch = make_batch(ids, encoder->device());
  Pass pass;
  pass.rows = batch.segments;
  auto ours = to_host<float>(encoder->bert()(batch, pass));
  auto expected = snapshot(golden_ + "single_raw.snap");
  ASSERT_EQ(ours.size(), expected.size());
  for (std::size_t i = 0; i < ours.size(); ++i) EXPECT_NEAR(ours[i], expected[i], 5e-3);
}

}  // namespace
}  // namespace moe
