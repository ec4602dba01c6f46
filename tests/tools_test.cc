// Batch plans, exact search, embedding runs that are killed at every system call, search over their
// output, and conversion. The model is a tiny random encoder over the demo's vocabulary.
#include "runtime/parallel.h"
#include "runtime/random.h"
#include "runtime/tensor_file.h"
#include "tests/file_support.h"
#include "tools/batch.h"
#include "tools/commands.h"
#include "tools/demo_data.h"
#include "tools/embedding.h"
#include "tools/embedding_folder.h"
#include "tools/index.h"
#include "tools/progress.h"

#include <sys/wait.h>

#include <algorithm>
#include <cstring>
#include <numeric>

namespace moe {
namespace {

using testing::FaultKind;
using testing::Faults;
using testing::read_raw;
using testing::TemporaryFolder;
using testing::write_raw;

// ---- batches

std::vector<std::int32_t> random_lengths(std::size_t count, std::uint64_t seed) {
  std::vector<std::int32_t> lengths;
  for (std::size_t i = 0; i < count; ++i)
    lengths.push_back(2 + static_cast<std::int32_t>(mix64(seed + i) % 60));
  return lengths;
}

void expect_every_item_once(const std::vector<std::vector<Index>>& plan, std::size_t count) {
  std::vector<Index> all;
  for (const auto& batch : plan) all.insert(all.end(), batch.begin(), batch.end());
  std::sort(all.begin(), all.end());
  std::vector<Index> expected(count);
  std::iota(expected.begin(), expected.end(), Index{0});
  EXPECT_EQ(all, expected);
}

TEST(Batches, EpochHoldsEveryItemOnceWithinTheLimits) {
  for (std::size_t count : {0, 1, 2, 15, 16, 17, 1000})
    for (Index window : {1, 3, 8}) {
      auto lengths = random_lengths(count, 7);
      BatchLimits limits{.rows = 16, .tokens = 200, .window = window};
      auto plan = plan_epoch(lengths, limits, 42, 0);
      expect_every_item_once(plan, count);
      for (const auto& batch : plan) {
        Index tokens = 0;
        for (Index i : batch) tokens += lengths[static_cast<std::size_t>(i)];
        EXPECT_LE(batch.size(), 16u);
        EXPECT_LE(tokens, 200);
      }
      EXPECT_EQ(plan, plan_epoch(lengths, limits, 42, 0));  // a function of its arguments
    }
}

TEST(Batches, EpochsAndSeedsDiffer) {
  auto lengths = random_lengths(300, 1);
  BatchLimits limits{.rows = 16};
  auto plan = plan_epoch(lengths, limits, 42, 0);
  EXPECT_NE(plan, plan_epoch(lengths, limits, 42, 1));
  EXPECT_NE(plan, plan_epoch(lengths, limits, 43, 0));
}

TEST(Batches, AnItemAboveTheBudgetGetsItsOwnBatch) {
  std::vector<std::int32_t> lengths{5, 500, 5, 5};
  auto plan = plan_by_length(lengths, {.rows = 10, .tokens = 100});
  ASSERT_EQ(plan.size(), 2u);
  EXPECT_EQ(plan[0], std::vector<Index>{1});
  EXPECT_EQ(plan[1], (std::vector<Index>{0, 2, 3}));
}

TEST(Batches, DropLastLeavesNoSingleItem) {
  auto lengths = random_lengths(17, 3);
  auto plan = plan_epoch(lengths, {.rows = 4, .drop_last = true}, 42, 0);
  std::size_t items = 0;
  for (const auto& batch : plan) {
    EXPECT_GE(batch.size(), 2u);
    items += batch.size();
  }
  EXPECT_EQ(items, 16u);
}

TEST(Batches, ByLengthIsLongestFirst) {
  auto lengths = random_lengths(500, 9);
  auto plan = plan_by_length(lengths, {.rows = 32, .tokens = 700});
  expect_every_item_once(plan, lengths.size());
  std::int32_t last = 1000;
  for (const auto& batch : plan)
    for (Index i : batch) {
      EXPECT_LE(lengths[static_cast<std::size_t>(i)], last);
      last = lengths[static_cast<std::size_t>(i)];
    }
}

// ---- exact search

class ThreadCount {
 public:
  explicit ThreadCount(int count) : before_(threads()) { set_threads(count); }
  ~ThreadCount() { set_threads(before_); }
  ThreadCount(const ThreadCount&) = delete;
  ThreadCount& operator=(const ThreadCount&) = delete;

 private:
  int before_;
};

// Small whole numbers: exact products, so many scores are equal and only the ids decide.
std::vector<float> small_numbers(Index count, std::uint64_t seed) {
  std::vector<float> values;
  for (Index i = 0; i < count; ++i)
    values.push_back(static_cast<float>(mix64(seed + static_cast<std::uint64_t>(i)) % 3) - 1);
  return values;
}

TEST(ExactSearch, EqualsAFullSortWithTiesForAnyBlockAndThreads) {
  constexpr Index documents = 333, queries = 21, size = 5;
  auto d = small_numbers(documents * size, 1), q = small_numbers(queries * size, 2);
  std::vector<std::string> ids;
  for (Index i = 0; i < documents; ++i)
    ids.push_back("d" + std::to_string(permuted(i, documents, 77)));  // no order of its own
  auto ranks = tie_ranks(ids);
  Tensor dt = from_host(d, {documents, size}, Device::cpu),
         qt = from_host(q, {queries, size}, Device::cpu);

  std::vector<std::vector<std::pair<float, std::string>>> expected;
  for (Index i = 0; i < queries; ++i) {
    std::vector<std::pair<float, std::string>> all;
    for (Index j = 0; j < documents; ++j) {
      float score = 0;
      for (Index c = 0; c < size; ++c)
        score +=
            q[static_cast<std::size_t>(i * size + c)] * d[static_cast<std::size_t>(j * size + c)];
      all.emplace_back(score, ids[static_cast<std::size_t>(j)]);
    }
    std::sort(all.begin(), all.end(), std::greater<>());  // score, then id, both descending
    expected.push_back(std::move(all));
  }
  for (int team : {1, 2, 3}) {
    ThreadCount count(team);
    for (Index block : {1, 7, 100, 333, 5000})
      for (Index k : {1, 10, 333, 1000}) {
        auto hits = search(qt, documents, ranks, {.k = k, .block = block},
                           [&](Index begin, Index end) { return dt.slice_rows(begin, end); });
        ASSERT_EQ(hits.size(), static_cast<std::size_t>(queries));
        for (std::size_t i = 0; i < hits.size(); ++i) {
          ASSERT_EQ(hits[i].size(), static_cast<std::size_t>(std::min(k, documents)));
          for (std::size_t r = 0; r < hits[i].size(); ++r) {
            EXPECT_EQ(hits[i][r].score, expected[i][r].first);
            EXPECT_EQ(ids[static_cast<std::size_t>(hits[i][r].row)], expected[i][r].second)
                << "query " << i << " rank " << r << " block " << block << " k " << k << " threads "
                << team;
          }
        }
      }
  }
}

TEST(ExactSearch, RealScoresAreTheSameBitsForAnyBlockAndThreads) {
  constexpr Index documents = 301, queries = 9, size = 37;
  Tensor d = random_normal({documents, size}, DType::f32, Device::cpu, Draw{.seed = 1}.dice(1));
  Tensor q = random_normal({queries, size}, DType::f32, Device::cpu, Draw{.seed = 1}.dice(2));
  std::vector<std::int32_t> ranks(documents);
  std::iota(ranks.begin(), ranks.end(), 0);
  auto run = [&](Index block, int team) {
    ThreadCount count(team);
    return search(q, documents, ranks, {.k = 20, .block = block},
                  [&](Index begin, Index end) { return d.slice_rows(begin, end); });
  };
  auto first = run(4096, 1);
  for (Index block : {1, 16, 33, 300})
    for (int team : {1, 2, 3}) {
      auto other = run(block, team);
      for (std::size_t i = 0; i < first.size(); ++i)
        for (std::size_t r = 0; r < first[i].size(); ++r) {
          EXPECT_EQ(first[i][r].row, other[i][r].row);
          EXPECT_EQ(first[i][r].score, other[i][r].score)
              << "block " << block << " threads " << team;
        }
    }
}

// ---- embedding

// A model folder and a collection, made once for all tests of this group.
class EmbedTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    set_quiet(true);
    folder_ = new TemporaryFolder();
    write_demo_collection(data());
    EncoderConfig config;
    config.bert.vocabulary = 6000;
    config.bert.hidden = 24;
    config.bert.layers = 1;
    config.bert.heads = 2;
    config.bert.feed_forward = 48;
    config.bert.positions = 64;
    config.bert.pooler = false;
    config.pooling = Pooling::mean;
    config.pooling_source = "test";
    config.max_length = 48;
    config.document_prompt = "passage: ";
    config.query_prompt = "query: ";
    config.tokenizer_directory = data();
    config.modules.push_back({});
    auto tokenizer = load_wordpiece(data());
    config.bert.vocabulary = tokenizer->vocab_size();
    auto encoder = TextEncoder::create(std::move(config), std::move(tokenizer), {});
    encoder->save(model(), "# test\n");
    // The first 40 documents, as a corpus file of their own.
    std::string all = read_raw(data() + "/corpus.jsonl");
    std::size_t end = 0;
    for (int i = 0; i < 40; ++i) end = all.find('\n', end) + 1;
    write_raw(corpus(), all.substr(0, end));
  }
  static void TearDownTestSuite() {
    delete folder_;
    folder_ = nullptr;
    set_quiet(false);
  }

  static std::string data() { return *folder_ / "data"; }
  static std::string model() { return *folder_ / "model"; }
  static std::string corpus() { return *folder_ / "corpus.jsonl"; }

  static EmbedCommand command(const std::string& out) {
    EmbedCommand c;
    c.common.device = "cpu";
    c.model.model = model();
    c.input = corpus();
    c.out = out;
    c.chunk = 13;
    return c;
  }
  static std::string files_of(const std::string& out) {
    return read_raw(out + "/embeddings.npy") + read_raw(out + "/ids.txt") +
           read_raw(out + "/manifest.json");
  }

  static TemporaryFolder* folder_;
};
TemporaryFolder* EmbedTest::folder_ = nullptr;

TEST_F(EmbedTest, RowsAreThoseOfTheEncoder) {
  TemporaryFolder out;
  run_embed(command(out / "index"));
  EmbeddingFolder index(out / "index");
  auto encoder = TextEncoder::load(model(), {});
  std::vector<std::string> texts, ids;
  CorpusReader reader(corpus());
  for (Document document; reader.next(document);) {
    ids.push_back(document.id);
    texts.push_back("passage: " + document.full());
  }
  EXPECT_EQ(index.ids(), ids);
  EmbedOptions options;
  options.batch_tokens = 100;  // other batches, the same bits
  std::vector<float> expected = embed_texts(*encoder, texts, options);
  EXPECT_EQ(to_host<float>(index.block(0, index.rows(), Device::cpu)), expected);

  const EmbeddingManifest& m = index.manifest();
  EXPECT_EQ(m.count, 40);
  EXPECT_EQ(m.dim, 24);
  EXPECT_EQ(m.pooling, "mean");
  EXPECT_EQ(m.prompt, "passage: ");
  EXPECT_EQ(m.max_length, 48);
  EXPECT_TRUE(m.normalize);
  EXPECT_EQ(m.model_hash, weights_hash(*encoder));
  EXPECT_EQ(m.source_bytes, static_cast<std::int64_t>(read_raw(corpus()).size()));
  std::string array = read_raw(out / "index/embeddings.npy");
  EXPECT_EQ(m.embeddings_hash,
            content_hash(std::as_bytes(std::span<const char>(array.data(), array.size()))));
  EXPECT_EQ(testing::files_in(out / "index"), 3u);  // nothing left behind
}

TEST_F(EmbedTest, FilesDoNotDependOnChunkBatchOrThreads) {
  TemporaryFolder out;
  run_embed(command(out / "one"));
  std::string expected = files_of(out / "one");
  for (int team : {1, 3}) {
    ThreadCount count(team);
    EmbedCommand c = command(out / fmt::format("team{}", team));
    c.chunk = team == 1 ? 1000 : 1;
    c.batch_tokens = team == 1 ? 50 : 100'000;
    run_embed(c);
    EXPECT_EQ(files_of(c.out), expected) << team;
  }
}

// The process ends at its n-th system call of the write side, for every n; the next run must end
// with the same files as one that was never stopped.
TEST_F(EmbedTest, ARunKilledAnywhereContinuesExactly) {
  TemporaryFolder out;
  run_embed(command(out / "whole"));
  std::string expected = files_of(out / "whole");
  ThreadCount one(1);  // a forked child has no team of threads
  int killed = 0, continued = 0;
  for (FaultKind kind : {FaultKind::exit_before, FaultKind::exit_half, FaultKind::exit_after})
    for (int call = 1;; ++call) {
      std::string name = out / fmt::format("run{}-{}", static_cast<int>(kind), call);
      pid_t child = fork();
      ASSERT_GE(child, 0);
      if (child == 0) {
        Faults faults(kind, call);
        int code = 3;
        try {
          run_embed(command(name));
        } catch (...) {
          code = 4;
        }
        _exit(code);  // not reached by a process that was "killed"
      }
      int status = 0;
      ASSERT_EQ(waitpid(child, &status, 0), child);
      ASSERT_TRUE(WIFEXITED(status));
      ASSERT_NE(WEXITSTATUS(status), 4);
      bool finished = WEXITSTATUS(status) == 3;
      if (!finished) ++killed;
      if (file_exists(name + "/progress.json")) ++continued;
      run_embed(command(name));
      ASSERT_EQ(files_of(name), expected) << "kind " << static_cast<int>(kind) << ", call " << call;
      if (finished && kind != FaultKind::exit_half) break;
      if (finished && call > 200) break;  // exit_half only acts on writes
    }
  EXPECT_GT(killed, 100);
  EXPECT_GT(continued, 50);
}

TEST_F(EmbedTest, AFailingDiskIsAnErrorAndTheNextRunContinues) {
  TemporaryFolder out;
  run_embed(command(out / "whole"));
  std::string expected = files_of(out / "whole");
  for (FaultKind kind : {FaultKind::disk_full, FaultKind::input_output})
    for (int call = 1;; call += 3) {
      std::string name = out / fmt::format("run{}-{}", static_cast<int>(kind), call);
      bool failed = false, reached = false;
      {
        Faults faults(kind, call);
        try {
          run_embed(command(name));
        } catch (const Error& error) {
          failed = true;
          EXPECT_EQ(error.fault(), Fault::io) << error.what();
        }
        reached = faults.reached();
      }
      if (!reached) break;
      EXPECT_TRUE(failed) << "call " << call;
      run_embed(command(name));
      ASSERT_EQ(files_of(name), expected) << "call " << call;
    }
}

// Stops a run after its second chunk.
void stop_in_the_middle(const EmbedCommand& command) {
  for (int call = 30; !file_exists(command.out + "/progress.json"); ++call) {
    Faults faults(FaultKind::input_output, call);
    try {
      run_embed(command);
      FAIL() << "the run was not stopped";
    } catch (const Error&) {
    }
  }
}

TEST_F(EmbedTest, OtherSettingsAreNotContinued) {
  TemporaryFolder out;
  EmbedCommand c = command(out / "index");
  stop_in_the_middle(c);
  EmbedCommand other = c;
  other.model.max_length = 20;
  EXPECT_ERROR(run_embed(other), "max length");
  other = c;
  other.model.pooling = "cls";
  EXPECT_ERROR(run_embed(other), "pooling mean, not cls");
  other = c;
  other.model.normalize = "off";
  EXPECT_ERROR(run_embed(other), "unit length");
  other = c;
  other.chunk = 7;
  EXPECT_ERROR(run_embed(other), "--chunk was 13");
  other = c;
  other.kind = "query";
  EXPECT_ERROR(run_embed(other), "--kind document");
  other = c;
  other.input = out / "longer.jsonl";
  write_raw(other.input, read_raw(corpus()) + "{\"_id\": \"more\", \"text\": \"one more\"}\n");
  EXPECT_ERROR(run_embed(other), "texts have changed");
  other.no_resume = true;  // the way out that every message names
  run_embed(other);
  EXPECT_EQ(EmbeddingFolder(c.out).manifest().count, 41);
}

TEST_F(EmbedTest, DamagedPartialFilesAreNotContinued) {
  TemporaryFolder out;
  EmbedCommand c = command(out / "index");
  stop_in_the_middle(c);
  std::string array = read_raw(c.out + "/embeddings.npy.partial"),
              progress = read_raw(c.out + "/progress.json");
  std::string damaged = array;
  damaged[200] = static_cast<char>(damaged[200] ^ 1);
  write_raw(c.out + "/embeddings.npy.partial", damaged);
  EXPECT_ERROR(run_embed(c), "damaged");
  write_raw(c.out + "/embeddings.npy.partial", array);
  write_raw(c.out + "/progress.json", progress.substr(0, progress.size() / 2));
  EXPECT_ERROR(run_embed(c), "progress.json");
  write_raw(c.out + "/progress.json", progress);
  write_raw(c.out + "/ids.txt.partial", "x\n");
  EXPECT_ERROR(run_embed(c), "damaged");
}

TEST_F(EmbedTest, FinishedFoldersAreKept) {
  TemporaryFolder out;
  EmbedCommand c = command(out / "index");
  run_embed(c);
  std::string before = files_of(c.out);
  auto stamp = std::filesystem::last_write_time(c.out + "/embeddings.npy");
  run_embed(c);  // already there: nothing is done
  EXPECT_EQ(std::filesystem::last_write_time(c.out + "/embeddings.npy"), stamp);
  EmbedCommand other = c;
  other.model.pooling = "cls";
  EXPECT_ERROR(run_embed(other), "--no-resume");
  EXPECT_EQ(files_of(c.out), before);
  other.no_resume = true;
  run_embed(other);
  EXPECT_EQ(EmbeddingFolder(c.out).manifest().pooling, "cls");
}

TEST_F(EmbedTest, EmptyInputGivesAnEmptyFolder) {
  TemporaryFolder out;
  EmbedCommand c = command(out / "index");
  c.input = out / "empty.jsonl";
  write_raw(c.input, "");
  run_embed(c);
  EmbeddingFolder index(c.out);
  EXPECT_EQ(index.rows(), 0);
  EXPECT_EQ(index.cols(), 24);
}

TEST_F(EmbedTest, UnfinishedAndBrokenFoldersAreRefused) {
  TemporaryFolder out;
  EXPECT_ERROR(EmbeddingFolder(out / "nowhere"), "no such folder");
  EmbedCommand c = command(out / "index");
  stop_in_the_middle(c);
  EXPECT_ERROR(EmbeddingFolder folder(c.out), "run the same command again");
  run_embed(c);
  std::string array = read_raw(c.out + "/embeddings.npy"), ids = read_raw(c.out + "/ids.txt"),
              manifest = read_raw(c.out + "/manifest.json");
  for (std::size_t size : {std::size_t{0}, std::size_t{5}, std::size_t{127}, array.size() - 1}) {
    write_raw(c.out + "/embeddings.npy", array.substr(0, size));
    EXPECT_ERROR(EmbeddingFolder folder(c.out), "embeddings.npy");
  }
  write_raw(c.out + "/embeddings.npy", array);
  write_raw(c.out + "/ids.txt", ids + "more\n");
  EXPECT_ERROR(EmbeddingFolder folder(c.out), "41 ids for 40 rows");
  write_raw(c.out + "/ids.txt", ids);
  for (std::size_t size = 0; size + 2 < manifest.size(); size += 7) {
    write_raw(c.out + "/manifest.json", manifest.substr(0, size));
    EXPECT_ERROR(EmbeddingFolder folder(c.out), "manifest.json");
  }
}

// ---- search over folders

class SearchTest : public EmbedTest {
 protected:
  SearchTest() {
    EmbedCommand c = command(out_ / "index");
    c.input = data();
    c.chunk = 1000;
    run_embed(c);
  }
  SearchCommand searching(const std::string& name) const {
    SearchCommand s;
    s.common.device = "cpu";
    s.model.model = model();
    s.index = out_ / "index";
    s.queries = data();
    s.split = "test";
    s.k = 10;
    s.out = out_ / name;
    return s;
  }
  TemporaryFolder out_;
};

TEST_F(SearchTest, RunsDoNotDependOnBlocksOrOnHowQueriesCome) {
  SearchCommand s = searching("a.trec");
  run_search(s);
  std::string expected = read_raw(s.out);
  EXPECT_FALSE(expected.empty());
  s.block = 17;
  s.out = out_ / "b.trec";
  run_search(s);
  EXPECT_EQ(read_raw(s.out), expected);

  // All queries of the folder, embedded before: the run holds the split's and more.
  EmbedCommand c = command(out_ / "queries");
  c.input = data();
  c.kind = "query";
  run_embed(c);
  EXPECT_EQ(EmbeddingFolder(c.out).manifest().prompt, "query: ");
  SearchCommand ready = searching("c.trec");
  ready.model.model.clear();
  ready.queries.clear();
  ready.split.clear();
  ready.query_embeddings = c.out;
  run_search(ready);
  SearchCommand all = searching("d.trec");
  all.split.clear();
  run_search(all);
  EXPECT_EQ(read_raw(ready.out), read_raw(all.out));
  moe::Run part = read_run(out_ / "a.trec"), whole = read_run(all.out);
  EXPECT_GT(whole.size(), part.size());
  for (const auto& [query, ranking] : part) {
    ASSERT_EQ(whole[query].size(), ranking.size());
    for (std::size_t r = 0; r < ranking.size(); ++r) {
      EXPECT_EQ(whole[query][r].document, ranking[r].document);
      EXPECT_EQ(whole[query][r].score, ranking[r].score);
    }
  }
}

TEST_F(SearchTest, ATextFindsItself) {
  // Asked with a document's own words and the document's prompt, the document itself has score 1.
  CorpusReader reader(data());
  Document document;
  for (int i = 0; i < 5; ++i) reader.next(document);
  TemporaryFolder other;
  write_raw(other / "q.jsonl", "{\"_id\": \"q\", \"text\": " + json_quote(document.full()) + "}\n");
  EmbedCommand c = command(other / "queries");
  c.input = other / "q.jsonl";
  run_embed(c);  // kind document: the same prompt
  SearchCommand s = searching("self.trec");
  s.model.model.clear();
  s.queries.clear();
  s.split.clear();
  s.query_embeddings = c.out;
  run_search(s);
  moe::Run run = read_run(s.out);
  EXPECT_EQ(run["q"][0].document, document.id);
  EXPECT_NEAR(run["q"][0].score, 1, 1e-5);
}

TEST_F(SearchTest, WrongUseIsRefused) {
  SearchCommand s = searching("x.trec");
  s.text = {"two sources"};
  EXPECT_ERROR(run_search(s), "search needs one of");
  s = searching("x.trec");
  s.model.model.clear();
  EXPECT_ERROR(run_search(s), "--model");
  s = searching("x.trec");
  s.split = "tset";
  EXPECT_ERROR(run_search(s), "tset");
  // The same id twice would be counted twice.
  std::string ids = read_raw(out_ / "index/ids.txt");
  std::size_t first = ids.find('\n') + 1, second = ids.find('\n', first) + 1;
  write_raw(out_ / "index/ids.txt",
            ids.substr(0, first) + ids.substr(0, first) + ids.substr(second));
  EXPECT_ERROR(run_search(searching("x.trec")), "lines 1 and 2");
}

TEST_F(SearchTest, NaNInAnIndexIsRefused) {
  std::string array = read_raw(out_ / "index/embeddings.npy");
  float nan = std::numeric_limits<float>::quiet_NaN();
  std::memcpy(array.data() + array.size() - 40, &nan, sizeof nan);
  write_raw(out_ / "index/embeddings.npy", array);
  SearchCommand s = searching("x.trec");
  s.k = 100'000;
  EXPECT_ERROR(run_search(s), "not a number");
}

// ---- npy

TEST(NpyFolder, WritesWhatNumpyWrites) {
  TemporaryFolder out;
  std::vector<float> values{1, -2, 0.5f, 4, 5, 6};
  write_npy(out / "a.npy", values.data(), 3, 2);
  std::string file = read_raw(out / "a.npy");
  ASSERT_EQ(file.size(), 128u + 24);
  EXPECT_EQ(file.substr(0, 10), std::string("\x93NUMPY\x01\x00\x76\x00", 10));
  EXPECT_EQ(file.substr(10, 59), "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }");
  EXPECT_EQ(file[127], '\n');
  EXPECT_EQ(std::memcmp(file.data() + 128, values.data(), 24), 0);
  NpyWriter writer(out / "b.npy", 2);
  writer.append(values.data(), 1);
  writer.save();
  writer.append(values.data() + 2, 2);
  writer.finish();
  EXPECT_EQ(read_raw(out / "b.npy"), file);
  NpyFile again(out / "b.npy");
  std::vector<float> row(2);
  again.read_rows(1, 2, row.data());
  EXPECT_EQ(row, (std::vector<float>{0.5f, 4}));
}

// ---- convert

TEST_F(EmbedTest, ConvertedModelsKeepTheirWeights) {
  TemporaryFolder out;
  ConvertCommand c;
  c.from = model();
  c.to = out / "model";
  run_convert(c);
  auto before = TextEncoder::load(model(), {}), after = TextEncoder::load(c.to, {});
  EXPECT_EQ(weights_hash(*before), weights_hash(*after));
  EXPECT_EQ(before->config().query_prompt, after->config().query_prompt);
  EXPECT_EQ(before->config().max_length, after->config().max_length);
  EXPECT_ERROR(run_convert(c), "is there already");

  c.to = out / "half";
  c.dtype = "bf16";
  run_convert(c);
  TensorFile full = read_safetensors(model() + "/model.safetensors"),
             half = read_safetensors(c.to + "/model.safetensors");
  ASSERT_EQ(full.tensors.size(), half.tensors.size());
  for (const auto& [name, entry] : half.tensors) {
    EXPECT_EQ(entry.dtype, "BF16");
    auto values = to_host<float>(to_tensor(name, full.tensors.at(name), DType::f32, Device::cpu));
    auto rounded = to_host<float>(to_tensor(name, entry, DType::f32, Device::cpu));
    ASSERT_EQ(values.size(), rounded.size());
    for (std::size_t i = 0; i < values.size(); ++i)
      ASSERT_EQ(static_cast<float>(bf16(values[i])), rounded[i]);
  }
  auto small = TextEncoder::load(c.to, {});  // a bf16 folder loads as f32
  EXPECT_NE(weights_hash(*small), weights_hash(*before));
}

TEST_F(EmbedTest, ConvertReadsPickles) {
  TemporaryFolder out;
  for (const char* name : {"ordered.bin", "views.bin"}) {
    std::string from = testing::fixture(name);
    ConvertCommand c;
    c.from = from;
    c.to = out / std::string(name) + ".safetensors";
    run_convert(c);
    TensorFile before = read_pytorch_bin(from), after = read_safetensors(c.to);
    ASSERT_EQ(before.tensors.size(), after.tensors.size());
    for (const auto& [key, entry] : before.tensors)
      EXPECT_EQ(entry.shape, after.tensors.at(key).shape);
  }
}

}  // namespace
}  // namespace moe
