// Training end to end on the embedded collection: it learns, it does not depend on threads, it
// resumes bit for bit, and what it saves is what it evaluates.
#include "tools/trainer.h"

#include "runtime/checkpoint.h"
#include "runtime/file.h"
#include "runtime/parallel.h"
#include "tools/demo_data.h"
#include "tools/embedding.h"
#include "tools/progress.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

namespace moe {
namespace {

namespace fs = std::filesystem;

class TrainerTest : public testing::Test {
 protected:
  void SetUp() override {
    set_quiet(true);
    root_ = fs::temp_directory_path() / ("moe-trainer-" + std::to_string(getpid()));
    fs::create_directories(root_);
    write_demo_collection(data());
    collection_ = load_collection(data());
    // A fifth of the collection is enough for a test of the machinery.
    collection_.documents.resize(120);
    collection_.document_index = {};
    std::vector<Document> documents;
    for (Document& d : collection_.documents) {
      documents.push_back(std::move(d));
      collection_.document_index.insert_last(documents);
    }
    collection_.documents = std::move(documents);
  }
  void TearDown() override { fs::remove_all(root_); }

  std::string data() const { return (root_ / "data").string(); }
  std::string folder(const std::string& name) const { return (root_ / name).string(); }

  std::unique_ptr<TextEncoder> encoder(std::optional<SbMoeConfig> block,
                                       std::uint64_t seed = 42) const {
    auto tokenizer = load_wordpiece(data());
    EncoderConfig c;
    c.bert.vocabulary = tokenizer->vocab_size();
    c.bert.hidden = 32;
    c.bert.layers = 1;
    c.bert.heads = 2;
    c.bert.feed_forward = 48;
    c.bert.positions = 64;
    c.bert.pooler = false;
    c.pooling = Pooling::mean;
    c.max_length = 40;
    c.tokenizer_directory = data();
    c.modules.push_back({});
    TextEncoder::Options o;
    o.seed = seed;
    o.add_moe = block;
    return TextEncoder::create(std::move(c), std::move(tokenizer), o);
  }

  static TrainConfig short_run(Index steps) {
    TrainConfig c;
    c.epochs = 3;
    c.batch = 24;
    c.max_steps = steps;
    c.rate = 2e-3;
    c.block_rate = 2e-3;
    return c;
  }

  static std::vector<std::vector<float>> weights(const TextEncoder& e) {
    std::vector<std::vector<float>> all;
    for (const auto& entry : e.parameters().entries()) all.push_back(to_host<float>(entry.tensor));
    return all;
  }

  fs::path root_;
  Collection collection_;
};

SbMoeConfig gate() {
  SbMoeConfig c;
  c.experts = 4;
  c.k = 2;
  c.weights = RouterConfig::Weights::renormalise;
  return c;
}

TEST_F(TrainerTest, LossFalls) {
  auto e = encoder(std::nullopt);
  TrainConfig c = short_run(0);
  Trainer trainer(*e, collection_, c, "", "");
  TrainResult r = trainer.run();
  EXPECT_LT(r.last_loss, 0.8 * r.first_loss);
}

TEST_F(TrainerTest, ThreadsDoNotChangeABit) {
  std::vector<std::vector<std::vector<float>>> runs;
  std::vector<std::vector<double>> losses;
  for (int team : {1, 2, 3}) {
    set_threads(team);
    auto e = encoder(gate());
    Trainer trainer(*e, collection_, short_run(4), "", "");
    losses.emplace_back();
    trainer.on_step = [&](Index, Index, double loss) { losses.back().push_back(loss); };
    trainer.run();
    runs.push_back(weights(*e));
  }
  set_threads(2);
  EXPECT_EQ(runs[0], runs[1]);
  EXPECT_EQ(runs[0], runs[2]);
  EXPECT_EQ(losses[0], losses[1]);
  EXPECT_EQ(losses[0], losses[2]);
}

TEST_F(TrainerTest, ResumeEqualsNoInterruption) {
  for (const char* optimizer : {"adamw", "adafactor"}) {
    SCOPED_TRACE(optimizer);
    TrainConfig c = short_run(9);
    c.optimizer = optimizer;
    std::string whole = folder(std::string("whole-") + optimizer),
                parts = folder(std::string("parts-") + optimizer);
    auto a = encoder(gate());
    Trainer(*a, collection_, c, whole, "same").run();
    // Stops by its time limit after every step; each time a fresh process would start from the
    // folder.
    TrainConfig limited = c;
    limited.max_minutes = 1e-9;
    std::vector<std::vector<float>> last;
    for (int part = 0; part < 20; ++part) {
      auto b =
          encoder(gate(), 7);  // other initial weights: everything must come from the checkpoint
      if (part == 0) b = encoder(gate());
      Trainer t(*b, collection_, limited, parts, "same");
      EXPECT_EQ(t.resume(), part > 0);
      TrainResult r = t.run();
      last = weights(*b);
      if (r.steps == 9) break;
    }
    EXPECT_EQ(last, weights(*a));
    auto log = [&](const std::string& f) { return read_text_file(f + "/log.jsonl", 1 << 24); };
    EXPECT_EQ(log(whole), log(parts));
  }
}

TEST_F(TrainerTest, ResumeRefusesAnotherConfiguration) {
  auto a = encoder(std::nullopt);
  Trainer(*a, collection_, short_run(2), folder("run"), "one").run();
  auto b = encoder(std::nullopt);
  Trainer other(*b, collection_, short_run(2), folder("run"), "two");
  EXPECT_THROW(other.resume(), Error);
}

TEST_F(TrainerTest, SavedModelEmbedsTheSameBits) {
  auto a = encoder(gate());
  Trainer(*a, collection_, short_run(3), folder("run"), "").run();
  std::vector<std::string> texts{"tides and the moon", "how do plants make sugar", ""};
  auto before = embed_texts(*a, texts);
  auto b = TextEncoder::load(folder("run") + "/last", {});
  EXPECT_EQ(embed_texts(*b, texts), before);
  // top-1 and all from one folder
  TextEncoder::Options all, one;
  all.route = RouterConfig::Select::all;
  one.k = 1;
  EXPECT_THROW(TextEncoder::load(folder("run") + "/last", one),
               Error);  // renorm with k = 1 cannot have learnt
  EXPECT_NE(embed_texts(*TextEncoder::load(folder("run") + "/last", all), texts), before);
}

TEST_F(TrainerTest, EmbeddingDoesNotDependOnTheBatch) {
  auto e = encoder(gate());
  std::vector<std::string> texts;
  for (Index i = 0; i < 40; ++i)
    texts.push_back(collection_.documents[static_cast<std::size_t>(i)].full());
  texts.push_back("");
  texts.push_back("one");
  EmbedOptions small, large;
  small.batch_tokens = 1;
  auto reference = embed_texts(*e, texts, small);
  for (int team : {1, 2, 3}) {
    set_threads(team);
    EXPECT_EQ(embed_texts(*e, texts, large), reference) << team << " threads";
  }
  set_threads(2);
}

TEST_F(TrainerTest, FrozenEncoderStaysAsItIs) {
  auto e = encoder(gate());
  auto before = weights(*e);
  TrainConfig c = short_run(2);
  c.freeze_encoder = true;
  Trainer(*e, collection_, c, "", "").run();
  auto after = weights(*e);
  for (std::size_t i = 0; i < before.size(); ++i) {
    const std::string& name = e->parameters().entries()[i].name;
    if (name.starts_with("bert.")) {
      EXPECT_EQ(before[i], after[i]) << name;
    } else if (name == "moe.experts.up.weight") {
      EXPECT_NE(before[i], after[i]);
    }
  }
}

TEST_F(TrainerTest, NonFiniteGradientStopsAndNamesTheTensor) {
  auto e = encoder(std::nullopt);
  Tensor w = e->parameters().find("bert.encoder.layer.0.output.dense.weight");
  w.mut<float>()[5] = std::numeric_limits<float>::quiet_NaN();
  Trainer t(*e, collection_, short_run(2), "", "");
  try {
    t.run();
    FAIL() << "expected an error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("bert."), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace moe
