// Readers of collections, judgements, runs and training files: every layout on a small example, and
// every defined answer to odd or broken files. Files are made in the temporary folder.
#include "tools/dataset.h"

#include "runtime/error.h"
#include "tools/training_file.h"

#include <gtest/gtest.h>
#include <unistd.h>
#include <zlib.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <vector>

namespace moe {
namespace {

namespace fs = std::filesystem;

// A folder of its own for each test, removed at the end.
class DatasetTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::temp_directory_path() / fmt::format("moe-dataset-{}-{}", info->name(), getpid());
    fs::create_directories(folder_);
  }
  void TearDown() override {
    std::error_code error;
    fs::remove_all(folder_, error);
  }

  fs::path put(const std::string& name, const std::string& content) {
    fs::path path = folder_ / name;
    fs::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << content;
    return path;
  }
  fs::path put_gzip(const std::string& name, const std::string& content) {
    fs::path path = folder_ / name;
    fs::create_directories(path.parent_path());
    gzFile file = gzopen(path.c_str(), "wb");
    gzwrite(file, content.data(), static_cast<unsigned>(content.size()));
    gzclose(file);
    return path;
  }
  static std::string get(const fs::path& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }

  // Runs `action`, expects an Error of this kind whose message holds `part`.
  static void expect_fault(Fault fault, const std::string& part,
                           const std::function<void()>& action) {
    try {
      action();
      ADD_FAILURE() << "no error was thrown; expected one with '" << part << "'";
    } catch (const Error& error) {
      EXPECT_EQ(error.fault(), fault) << error.what();
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  }

  static std::vector<Document> read_all(const fs::path& path) {
    std::vector<Document> documents;
    CorpusReader reader(path);
    for (Document document; reader.next(document);) documents.push_back(document);
    return documents;
  }

  fs::path folder_;
};

TEST_F(DatasetTest, LinesKnowWhereTheyAre) {
  auto path = put("a.txt", "\xEF\xBB\xBFone\r\n\ntwo\rthree\nlast");
  LineReader reader(path);
  std::vector<std::string> lines;
  std::vector<std::int64_t> offsets;
  while (reader.next()) {
    lines.emplace_back(reader.line());
    offsets.push_back(reader.offset());
  }
  EXPECT_EQ(lines, (std::vector<std::string>{"one", "", "two\rthree", "last"}));
  EXPECT_EQ(offsets, (std::vector<std::int64_t>{3, 8, 9, 19}));
  EXPECT_EQ(reader.number(), 4);
  EXPECT_EQ(reader.after().offset, 23);
  EXPECT_FALSE(reader.next());
  LineReader resumed(path, {9, 2});
  ASSERT_TRUE(resumed.next());
  EXPECT_EQ(resumed.line(), "two\rthree");
  EXPECT_EQ(resumed.number(), 3);
}

TEST_F(DatasetTest, LinesAcrossBuffersAndGzipMembers) {
  std::string content;
  for (int i = 0; i < 2000; ++i) content += std::string(static_cast<std::size_t>(i), 'x') + "\n";
  auto plain = put("a", content);
  auto packed = put_gzip("b.gz", content);
  auto twice = put("c.gz", get(packed) + get(packed));
  for (const auto& [path, copies] : {std::pair{plain, 1}, {packed, 1}, {twice, 2}}) {
    LineReader reader(path);
    int count = 0;
    for (; reader.next(); ++count)
      ASSERT_EQ(reader.line().size(), static_cast<std::size_t>(count % 2000));
    EXPECT_EQ(count, 2000 * copies);
  }
  LineReader middle(packed, {1000 * 1001 / 2, 1000});  // bytes before the line of 1000
  ASSERT_TRUE(middle.next());
  EXPECT_EQ(middle.line().size(), 1000u);
}

TEST_F(DatasetTest, FilesThatCannotBeRead) {
  expect_fault(Fault::missing_input, "no such file", [&] { LineReader(folder_ / "absent"); });
  expect_fault(Fault::bad_data, "folder", [&] { LineReader reader(folder_); });
  expect_fault(Fault::bad_data, "UTF-16",
               [&] { LineReader(put("u", std::string("\xFF\xFE{\0", 4))); });
  expect_fault(Fault::bad_data, "not gzip", [&] { LineReader(put("p.gz", "plain text\n")); });
  expect_fault(Fault::bad_data, "not gzip", [&] { LineReader(put("e.gz", "")); });
  expect_fault(Fault::bad_data, ":2: the line is longer", [&] {
    LineReader reader(put("long", "ok\n" + std::string(500'000, 'y')), {}, 300'000);
    while (reader.next()) {
    }
  });
  EXPECT_FALSE(LineReader(put("empty", "")).next());
}

// Every prefix and every flipped byte of a gzip file is read whole or refused, never something in
// between.
TEST_F(DatasetTest, DamagedGzip) {
  std::string content;
  for (int i = 0; i < 40; ++i)
    content += fmt::format("{{\"_id\": \"d{}\", \"text\": \"{}\"}}\n", i, i * i * 7919);
  std::string whole = get(put_gzip("corpus.jsonl.gz", content));
  auto read_text = [](const fs::path& path) {
    std::string text;
    for (LineReader reader(path); reader.next();) text.append(reader.line()).push_back('\n');
    return text;
  };
  EXPECT_EQ(read_text(folder_ / "corpus.jsonl.gz"), content);
  for (std::size_t size = 0; size < whole.size(); ++size) {
    auto path = put("cut.jsonl.gz", whole.substr(0, size));
    expect_fault(Fault::bad_data, "cut.jsonl.gz", [&] { read_text(path); });
  }
  int harmless = 0;  // bits that pad the last byte of the stream mean nothing
  for (std::size_t i = 10; i < whole.size();
       ++i) {  // after the header, whose time and system are free
    std::string damaged = whole;
    damaged[i] = static_cast<char>(damaged[i] ^ 0x10);
    auto path = put("flip.jsonl.gz", damaged);
    try {
      EXPECT_EQ(read_text(path), content) << "byte " << i;
      ++harmless;
    } catch (const Error& error) {
      EXPECT_EQ(error.fault(), Fault::bad_data);
    }
  }
  EXPECT_LE(harmless, 1);
}

TEST_F(DatasetTest, Numbers) {
  EXPECT_EQ(parse_integer("-17"), -17);
  EXPECT_EQ(parse_integer("+4"), 4);
  for (const char* text : {"", "+", "+-1", "1.0", "1 ", " 1", "0x10", "99999999999999999999"})
    EXPECT_FALSE(parse_integer(text)) << text;
  EXPECT_EQ(parse_real("1e-3"), 0.001);
  EXPECT_EQ(parse_real("+.5"), 0.5);
  for (const char* text : {"", "1,5", "1.5x", "--1"}) EXPECT_FALSE(parse_real(text)) << text;
}

TEST_F(DatasetTest, Beir) {
  put("set/corpus.jsonl",
      "\xEF\xBB\xBF{\"_id\": 7, \"title\": \"Title\", \"text\": \"body\", \"metadata\": {\"_id\": "
      "\"x\", \"l\": [[1]]}}\r\n"
      "{\"_id\": \"8\", \"title\": \"\", \"text\": \"only text\"}\r\n"
      "\r\n"
      "{\"_id\": \"with space\", \"text\": \"caf\\u00e9\"}\r\n"
      "{\"_id\": 123456789012345678901234567890, \"title\": \"only title\", \"text\": null}\r\n"
      "{\"_id\": \"9\", \"title\": \" \", \"text\": \"\"}");
  put_gzip("set/queries.jsonl.gz",
           "{\"_id\": \"q2\", \"text\": \"two\"}\n{\"_id\": 1, \"text\": \"one\"}\n");
  put("set/qrels/test.tsv",
      "query-id\tcorpus-id\tscore\r\nq2\twith "
      "space\t2\r\n1\t7\t1\r\n1\tgone\t1\r\nlost\t7\t1.0\r\n");
  put("set/qrels/train.tsv", "q2\t8\t1\n");  // no header line
  Collection collection = load_collection(folder_ / "set");
  EXPECT_EQ(collection.layout, "beir");
  EXPECT_EQ(collection.name, "set");
  ASSERT_EQ(collection.documents.size(), 5u);
  EXPECT_EQ(collection.documents[0].full(), "Title body");
  EXPECT_EQ(collection.documents[1].full(), "only text");
  EXPECT_EQ(collection.documents[2].full(), "caf\xC3\xA9");
  EXPECT_EQ(collection.documents[3].full(), "only title");
  EXPECT_EQ(collection.documents[3].id, "123456789012345678901234567890");
  EXPECT_EQ(collection.documents[4].full(), "");
  EXPECT_EQ(collection.document_row("7"), 0);
  EXPECT_EQ(collection.document_row("with space"), 2);
  EXPECT_EQ(collection.document_row("x"), -1);
  EXPECT_EQ(collection.query_row("1"), 1);
  EXPECT_EQ(collection.qrels("test").at("q2").at("with space"), 2);
  EXPECT_EQ(collection.qrels("train").at("q2").at("8"), 1);
  EXPECT_EQ(collection.query_rows("test"), (std::vector<Index>{0, 1}));
  ASSERT_EQ(collection.warnings.size(), 3u);
  EXPECT_NE(
      collection.warnings[0].find("1 documents have neither title nor text, the first at line 6"),
      std::string::npos);
  EXPECT_NE(collection.warnings[1].find("1 judgements of split test name 1 documents"),
            std::string::npos);
  EXPECT_NE(collection.warnings[2].find("'lost'"), std::string::npos);
  EXPECT_NE(collection.summary().find("5 documents (title + text), 2 queries"), std::string::npos);
  expect_fault(Fault::usage, "there is test, train", [&] { collection.qrels("dev"); });
}

TEST_F(DatasetTest, LoadsOnlyWhatIsAsked) {
  put("corpus.jsonl", "this is never read\n");
  put("queries.jsonl", "{\"_id\": \"q\", \"text\": \"t\"}\n");
  put("qrels/test.tsv", "h\th\tscore\nq\td\t1\n");
  put("qrels/dev.tsv", "h\th\tscore\nq\td\t1\n");
  Collection collection = load_collection(folder_, {.documents = false, .splits = {"dev"}});
  EXPECT_TRUE(collection.documents.empty());
  EXPECT_EQ(collection.splits.size(), 1u);
  EXPECT_TRUE(collection.warnings.empty());
  expect_fault(Fault::usage, "no split 'train'",
               [&] { load_collection(folder_, {.documents = false, .splits = {"train"}}); });
  put("corpus.jsonl", "{\"_id\": \"d\", \"title\": \"T\", \"text\": \"x\"}\n");
  EXPECT_EQ(load_collection(folder_, {.titles = false}).documents[0].full(), "x");
}

TEST_F(DatasetTest, BrokenJsonLinesNameFileAndLine) {
  auto expect = [&](const std::string& line, const std::string& part) {
    auto path = put("corpus.jsonl", "{\"_id\": \"1\", \"text\": \"good\"}\n" + line + "\n");
    expect_fault(Fault::bad_data, "corpus.jsonl:2: " + part, [&] { read_all(path); });
  };
  expect("{\"_id\": \"2\", \"text\": \"cut", "not valid JSON at column");
  expect("{\"_id\": \"2\"} trailing", "not valid JSON");
  expect("{\"_id\": \"2\", \"text\": \"\xFF\xFE\"}", "not valid JSON");
  expect("{\"_id\": \"2\", \"text\": \"\\ud800\"}", "not valid JSON");
  expect("[\"2\", \"text\"]", "a JSON object");
  expect("42", "a JSON object");
  expect("{\"text\": \"no id\"}", "no \"_id\"");
  expect("{\"_id\": null, \"text\": \"no id\"}", "no \"_id\"");
  expect("{\"_id\": \"\", \"text\": \"x\"}", "the id is empty");
  expect("{\"_id\": \"a\\tb\", \"text\": \"x\"}", "the id 'a\tb' holds a tab");
  expect("{\"_id\": [\"2\"], \"text\": \"x\"}", "\"_id\" is neither");
  expect("{\"_id\": \"2\", \"text\": {\"a\": \"b\"}}", "\"text\" is neither");
  expect("{\"_id\": \"2\", \"text\": true}", "\"text\" is neither");
  expect("{\"_id\": \"2\", \"body\": \"x\"}", "no \"text\"");
  expect(std::string(200'000, '['), "a JSON object");
  expect("{\"a\": " + std::string(200'000, '['), "not valid JSON");
}

TEST_F(DatasetTest, DuplicateIdsAreRefused) {
  put("corpus.jsonl", "{\"_id\": 1, \"text\": \"a\"}\n\n{\"_id\": \"1\", \"text\": \"b\"}\n");
  put("queries.jsonl", "{\"_id\": \"q\", \"text\": \"a\"}\n{\"_id\": \"q\", \"text\": \"a\"}\n");
  expect_fault(Fault::bad_data, "corpus.jsonl:3: document id '1'",
               [&] { load_collection(folder_); });
  expect_fault(Fault::bad_data, "queries.jsonl:2: query id 'q'",
               [&] { load_collection(folder_, {.documents = false}); });
}

TEST_F(DatasetTest, ManyIdsAreFound) {
  std::vector<Query> rows;
  IdIndex index;
  for (int i = 0; i < 20'000; ++i) {
    rows.push_back({std::to_string(i * 31), ""});
    ASSERT_EQ(index.insert_last(rows), -1);
  }
  for (Index i = 0; i < 20'000; ++i) ASSERT_EQ(index.find(rows, std::to_string(i * 31)), i);
  EXPECT_EQ(index.find(rows, "1"), -1);
  rows.push_back({"62", ""});
  EXPECT_EQ(index.insert_last(rows), 2);
  EXPECT_EQ(IdIndex().find(rows, "62"), -1);
}

TEST_F(DatasetTest, ReadingResumesAtAnyDocument) {
  std::string lines, smart, npl, tsv;
  for (int i = 0; i < 50; ++i) {
    lines +=
        fmt::format("{{\"_id\": \"{}\", \"text\": \"text {}\"}}\r\n{}", i, i, i % 7 ? "" : "\n");
    smart += fmt::format(".I {}\n.T\ntitle\n.W\ntext {}\n", i, i);
    npl += fmt::format("{}\ntext {}\n/\n", i, i);
    tsv += fmt::format("{}\ttext {}\n", i, i);
  }
  for (const auto& path :
       {put("corpus.jsonl", lines), put("cran.all.1400", smart), put("doc-text", npl),
        put("collection.tsv", tsv), put_gzip("z/corpus.jsonl.gz", lines)}) {
    CorpusReader reader(path);
    Document document, again;
    for (int i = 0; i < 50; ++i) {
      CorpusReader resumed(path, reader.position());
      ASSERT_TRUE(reader.next(document));
      ASSERT_TRUE(resumed.next(again));
      EXPECT_EQ(document.id, std::to_string(i));
      EXPECT_EQ(again.id, document.id);
      EXPECT_EQ(again.full(), document.full());
      EXPECT_EQ(resumed.line(), reader.line());
      EXPECT_EQ(resumed.offset(), reader.offset());
    }
    EXPECT_FALSE(reader.next(document));
    expect_fault(Fault::bad_data, "", [&] {
      CorpusReader beyond(path, {1'000'000, 50});
      if (!beyond.next(document)) fail(Fault::bad_data, "plain files end there");
    });
  }
}

TEST_F(DatasetTest, Cranfield) {
  put("cran.all.1400",
      ".I 1\n.T\na title\nof two lines .\n.A\nauthor\n.B\nplace\n.W\nfirst\n  second .\n.5 of "
      "it\n.I 2\n.T\n.A\n.B\n.W\n");
  put("cran.qry", ".I 001\n.W\nwhat is\nit .\n.I 004\n.W\nother .\n");
  put("cranqrel", "1 1 2 \n1 2 -1\n2 2 1\n");
  Collection collection = load_collection(folder_);
  ASSERT_EQ(collection.documents.size(), 2u);
  EXPECT_EQ(collection.documents[0].title, "a title of two lines .");
  EXPECT_EQ(collection.documents[0].text, "first second . .5 of it");
  EXPECT_EQ(collection.queries[1].id, "2");  // by order, not 004
  EXPECT_EQ(collection.queries[0].text, "what is it .");
  EXPECT_EQ(collection.qrels("test"), (Qrels{{"1", {{"1", 3}, {"2", 0}}}, {"2", {{"2", 4}}}}));
  EXPECT_EQ(collection.warnings.size(), 1u);
  put("cranqrel", "1 1 2\n1 2\n");
  expect_fault(Fault::bad_data, "cranqrel:2:", [&] { load_collection(folder_); });
  put("cran.qry", "text first\n");
  expect_fault(Fault::bad_data, "cran.qry:1:", [&] { load_collection(folder_); });
}

TEST_F(DatasetTest, Npl) {
  put("doc-text", "1\ncompact memories\nhave  it\n   /\n2\nother\n   /\n");
  put("query-text", "1\nMEASUREMENT OF\n/\n");
  put("rlv-ass", "1\n 1\n 2\n   /\n");
  Collection collection = load_collection(folder_);
  EXPECT_EQ(collection.documents[0].full(), "compact memories have  it");
  EXPECT_EQ(collection.qrels("test"), (Qrels{{"1", {{"1", 1}, {"2", 1}}}}));
  put("doc-text", "1\ncompact\n/\n2\ncut");
  expect_fault(Fault::bad_data, "doc-text:4: block 2 has no closing line",
               [&] { load_collection(folder_); });
  fs::remove(folder_ / "rlv-ass");
  expect_fault(Fault::missing_input, "rlv-ass",
               [&] { load_collection(folder_, {.documents = false}); });
}

TEST_F(DatasetTest, Squad) {
  auto path =
      put("dev-v2.0.json", R"({"version": "v2.0", "data": [{"title": "Normans", "paragraphs": [
      {"context": "First.", "qas": [{"question": "Who?", "id": "a", "is_impossible": false},
                                    {"question": "Not?", "id": "b", "is_impossible": true}]},
      {"context": "Second.", "qas": [{"question": "What?", "id": "c"}]}]}]})");
  for (const auto& place : {folder_, path}) {
    Collection collection = load_collection(place);
    EXPECT_EQ(collection.documents.size(), 2u);
    EXPECT_EQ(collection.documents[1].full(), "Second.");
    EXPECT_EQ(collection.queries.size(), 2u);
    EXPECT_EQ(collection.qrels("test"),
              (Qrels{{"a", {{"Normans#0", 1}}}, {"c", {{"Normans#1", 1}}}}));
  }
  put("dev-v2.0.json", "{\"data\": [\n{\"title\": \"x\", \"paragraphs\": 3}]}");
  expect_fault(Fault::bad_data, "\"paragraphs\"", [&] { load_collection(folder_); });
  put("dev-v2.0.json", "{\"data\": [\n{\"title\": \"x\",");
  expect_fault(Fault::bad_data, "dev-v2.0.json:2", [&] { load_collection(folder_); });
  put("dev-v2.0.json", std::string(100'000, '['));
  expect_fault(Fault::bad_data, "nested", [&] { load_collection(folder_); });
}

TEST_F(DatasetTest, MsMarco) {
  put("collection.tsv", "0\tThe presence\n1\twith\ttabs\n");
  put("queries.dev.small.tsv", "10\tquestion\n");
  put("qrels.dev.small.tsv", "10\t0\t1\t1\n");
  put("queries.train.tsv", "11\tother\n");
  put("qrels.train.tsv", "11 0 0 1\n");
  Collection collection = load_collection(folder_);
  EXPECT_EQ(collection.layout, "ms-marco");
  EXPECT_EQ(collection.documents[1].text, "with\ttabs");
  EXPECT_EQ(collection.queries.size(), 2u);
  EXPECT_EQ(collection.qrels("dev"), (Qrels{{"10", {{"1", 1}}}}));
  EXPECT_EQ(collection.query_rows("train").size(), 1u);
  put("collection.tsv", "0\tThe presence\n1 no tab\n");
  expect_fault(Fault::bad_data, "collection.tsv:2:", [&] { load_collection(folder_); });
}

TEST_F(DatasetTest, MultiDomain) {
  put("collection.jsonl",
      "{\"id\": 5, \"title\": \"A\", \"text\": \"b\", \"keywords\": [\"x\"]}\n{\"id\": 6, "
      "\"title\": \"C\"}\n");
  put("train/queries.jsonl",
      "{\"id\": 1, \"text\": \"find\", \"rel_doc_ids\": [5, \"6\"], \"user_id\": 3}\n");
  put("val/queries.jsonl", "{\"id\": 2, \"text\": \"look\", \"rel_doc_ids\": [5]}\n");
  put("val/qrels.json", "{\"2\": {\"6\": 2}}");
  Collection collection = load_collection(folder_);
  EXPECT_EQ(collection.documents[0].full(), "A b");
  EXPECT_EQ(collection.qrels("train"), (Qrels{{"1", {{"5", 1}, {"6", 1}}}}));
  EXPECT_EQ(collection.qrels("dev"), (Qrels{{"2", {{"6", 2}}}}));
}

TEST_F(DatasetTest, UnknownLayout) {
  put("readme.txt", "nothing here");
  expect_fault(Fault::missing_input, "no known layout", [&] { load_collection(folder_); });
  expect_fault(Fault::missing_input, "no such file or folder",
               [&] { load_collection(folder_ / "absent"); });
  expect_fault(Fault::usage, "give the folder", [&] { load_collection(folder_ / "readme.txt"); });
}

TEST_F(DatasetTest, Qrels) {
  EXPECT_EQ(read_qrels(put("trec", "q1 0 d1 1\nq1\t0\td2\t-2\n\nq2 0 d1 0\n")),
            (Qrels{{"q1", {{"d1", 1}, {"d2", -2}}}, {"q2", {{"d1", 0}}}}));
  EXPECT_EQ(read_qrels(put("ranx.json", "\n{\"q1\": {\"d1\": 1, \"d2\": 2.0}, \"q2\": {}}")),
            (Qrels{{"q1", {{"d1", 1}, {"d2", 2}}}}));
  auto bad = [&](const std::string& content, const std::string& part) {
    expect_fault(Fault::bad_data, part, [&] { read_qrels(put("bad", content)); });
  };
  bad("q1 0 d1 1\nq1 0 d1 1\n", "bad:2: document 'd1' is judged twice");
  bad("q1 0 d1\n", "bad:1: expected");
  bad("q1 0 d1 one\n", "bad:1: grade 'one'");
  bad("a\tb\tscore\nc\td\tscore\n", "bad:2: grade 'score'");
  bad("q\td\t1.5\nq\te\t1\nq\tf\t0.5\n", "bad:3");
  bad("\td\t1\n", "bad:1: a query or document id is empty");
  bad("q 0 d 99999999999\n", "bad:1: grade");
  bad("{\"q\": {\"d\": 1, \"d\": 2}}", "document 'd' twice");
  bad("{\"q\": {\"d\": 1}, \"q\": {}}", "query 'q' is there twice");
  bad("{\"q\": {\"d\": \"x\"}}", "broken at query 'q'");
  bad("{\"q\": [1]}", "broken at query 'q'");
  bad("{\"q\": {\"d\": 0.5}}", "not an integer");
  bad("{\"q\":\n{\"d\": 1", "bad:2: not valid JSON");
}

TEST_F(DatasetTest, RunsSurviveWritingBitForBit) {
  moe::Run run;
  float value = 0.1f;
  for (int i = 0; i < 300; ++i) {
    run["q"].push_back({"d" + std::to_string(i), value});
    value = std::nextafter(value, 1.0f);  // neighbours: the hardest to keep apart
  }
  run["p"] = {{"tie-a", 1}, {"tie-b", 1}, {"low", -0.25}};
  auto path = folder_ / "run.txt";
  write_trec_run(path, run, "test");
  EXPECT_EQ(get(path).substr(0, 61),
            "p Q0 tie-b 1 1 test\np Q0 tie-a 2 1 test\np Q0 low 3 -0.25 test");
  moe::Run again = read_run(path);
  ASSERT_EQ(again.size(), 2u);
  for (const auto& entry : again["q"]) {
    auto number = static_cast<std::size_t>(std::stoi(entry.document.substr(1)));
    EXPECT_EQ(static_cast<float>(entry.score), static_cast<float>(run["q"][number].score));
  }
  for (std::size_t i = 1; i < again["q"].size(); ++i)
    EXPECT_NE(again["q"][i].score, again["q"][i - 1].score);
  EXPECT_EQ(read_run(put("ranx", "{\"q\": {\"d1\": 0.5, \"d2\": 3}}"))["q"].size(), 2u);
}

TEST_F(DatasetTest, RunsThatAreRefused) {
  auto bad = [&](const std::string& content, const std::string& part) {
    expect_fault(Fault::bad_data, part, [&] { read_run(put("bad", content)); });
  };
  bad("q Q0 d 1 0.5\n", "bad:1: expected");
  bad("q Q0 d 1 0.5 tag\nq Q0 e 2 nan tag\n", "bad:2: score 'nan'");
  bad("q Q0 d 1 0,5 tag\n", "bad:1: score '0,5'");
  bad("q Q0 d 1 5 t\np Q0 d 1 5 t\nq Q0 d 2 4 t\n",
      "bad:3: document 'd' is there twice for query 'q'");
  auto path = folder_ / "out";
  expect_fault(Fault::bad_data, "cannot carry", [&] {
    write_trec_run(path, {{"q", {{"a b", 1}}}});
  });
  expect_fault(Fault::bad_data, "cannot carry", [&] {
    write_trec_run(path, {{"q q", {{"a", 1}}}});
  });
  expect_fault(Fault::bad_data, "cannot carry", [&] {
    write_trec_qrels(path, {{"q", {{"", 1}}}});
  });
  EXPECT_FALSE(fs::exists(path));
}

TEST_F(DatasetTest, QrelsWrittenAndReadAgain) {
  Qrels qrels{{"q1", {{"d1", 1}, {"d2", -1}}}, {"q2", {{"d1", 3}}}};
  write_trec_qrels(folder_ / "a", qrels);
  EXPECT_EQ(read_qrels(folder_ / "a"), qrels);
  qrels["q 3"]["d 4"] = 2;
  write_beir_qrels(folder_ / "b", qrels);
  EXPECT_EQ(read_qrels(folder_ / "b"), qrels);
  expect_fault(Fault::bad_data, "TSV", [&] {
    write_beir_qrels(folder_ / "c", {{"q", {{"a\tb", 1}}}});
  });
}

TEST_F(DatasetTest, TrainingFiles) {
  auto path = put("train.jsonl",
                  "{\"query_id\": 1, \"query_text\": \"a\", \"positive_document_ids\": [4, \"5\"], "
                  "\"negative_document_ids\": []}\n"
                  "{\"query_id\": \"2\", \"query\": \"b\", \"positive_passages\": [{\"docid\": "
                  "\"7\", \"title\": \"T\", \"text\": \"x\"}],"
                  " \"negative_passages\": [{\"docid\": 8, \"text\": \"y\"}]}\n"
                  "{\"anchor\": \"c\", \"positive\": \"p\"}\n"
                  "{\"query\": \"d\", \"pos\": [\"p1\", \"p2\"], \"neg\": [\"n1\"]}\n"
                  "10\t20\t30\n");
  TrainingReader reader(path);
  TrainingExample example;
  ASSERT_TRUE(reader.next(example));
  EXPECT_EQ(example.query.id, "1");
  ASSERT_EQ(example.positives.size(), 2u);
  EXPECT_EQ(example.positives[0].id, "4");
  EXPECT_TRUE(example.negatives.empty());
  ASSERT_TRUE(reader.next(example));
  EXPECT_EQ(example.positives[0].full(), "T x");
  EXPECT_EQ(example.negatives[0].id, "8");
  ASSERT_TRUE(reader.next(example));
  EXPECT_EQ(example.query.text, "c");
  EXPECT_EQ(example.positives[0].text, "p");
  ASSERT_TRUE(reader.next(example));
  EXPECT_EQ(example.positives.size(), 2u);
  EXPECT_EQ(example.negatives[0].text, "n1");
  ASSERT_TRUE(reader.next(example));
  EXPECT_EQ(example.negatives[0].id, "30");
  EXPECT_FALSE(reader.next(example));
  auto bad = [&](const std::string& line, const std::string& part) {
    expect_fault(Fault::bad_data, "bad:1: " + part,
                 [&] { TrainingReader(put("bad", line)).next(example); });
  };
  bad("{\"query\": \"q\"}", "no positive");
  bad("{\"positive\": \"p\"}", "no query");
  bad("{\"query\": \"q\", \"positive\": {\"a\": 1}}", "\"positive\" is neither");
  bad("{\"query\": \"q\", \"positive\": [\"\"]}", "a document without");
  bad("1\t2", "expected a JSON object");
}

}  // namespace
}  // namespace moe
