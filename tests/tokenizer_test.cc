// The BERT tokenizer, rule by rule, with expectations derived by hand from the rules; then the
// golden texts. Parity over every code point and whole collections is
// tests/golden/tokenizer_parity.py.
#include "models/tokenizer.h"

#include "models/unicode.h"
#include "runtime/error.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

namespace moe {
namespace {

using Ids = std::vector<std::int32_t>;
constexpr Index unlimited = Tokenizer::unlimited;

const std::vector<std::string>& small_vocabulary() {
  static const std::vector<std::string> tokens{"[PAD]",
                                               "[UNK]",
                                               "[CLS]",
                                               "[SEP]",
                                               "[MASK]",
                                               "un",
                                               "##aff",
                                               "##able",
                                               "the",
                                               "cafe",
                                               "a",
                                               "b",
                                               "##b",
                                               "\u03c3\u03b1\u03c3",
                                               "\u4e2d",
                                               "\u56fd",
                                               "\ufb01",
                                               "##n",
                                               ",",
                                               "$",
                                               "i",
                                               "\u3042\u3044",
                                               "\u1112\u1161\u11ab",
                                               "##a",
                                               "[",
                                               "mask",
                                               "]",
                                               "`",
                                               "\u2014",
                                               "##\u0307",
                                               "\u00e9",
                                               "Cafe",
                                               "ab"};
  return tokens;
}

// Encodes without specials and names the tokens, blanks between.
std::string pieces(const Tokenizer& tokenizer, std::string_view text, Index limit = unlimited) {
  std::string out;
  for (const std::int32_t id : tokenizer.encode(text, limit, false)) {
    if (!out.empty()) out += ' ';
    out += tokenizer.token(id).value_or("?");
  }
  return out;
}

std::string pieces(std::string_view text, const WordPieceOptions& options = {}) {
  return pieces(*make_wordpiece(small_vocabulary(), options), text);
}

TEST(Tokenizer, LongestMatchFirst) {
  EXPECT_EQ(pieces("unaffable"), "un ##aff ##able");
  EXPECT_EQ(pieces("ab"), "ab");  // not a ##b
  EXPECT_EQ(pieces("abb"), "ab ##b");
  EXPECT_EQ(pieces("unaffablex"), "[UNK]");  // no partial cover
  EXPECT_EQ(pieces("affable"), "[UNK]");     // a continuation cannot begin a word
}

TEST(Tokenizer, SpecialsFrameTheText) {
  const auto tokenizer = make_wordpiece(small_vocabulary());
  EXPECT_EQ(tokenizer->encode("the", unlimited), (Ids{2, 8, 3}));
  EXPECT_EQ(tokenizer->encode("the", unlimited, false), (Ids{8}));
  EXPECT_EQ(tokenizer->special_ids().cls, 2);
  EXPECT_EQ(tokenizer->special_ids().sep, 3);
  EXPECT_EQ(tokenizer->special_ids().pad, 0);
  EXPECT_EQ(tokenizer->special_ids().unk, 1);
  EXPECT_EQ(tokenizer->special_ids().mask, 4);
  EXPECT_EQ(tokenizer->vocab_size(), std::ssize(small_vocabulary()));
  EXPECT_EQ(tokenizer->id("##able"), 7);
  EXPECT_FALSE(tokenizer->id("able"));
  EXPECT_EQ(tokenizer->token(7), "##able");
  EXPECT_FALSE(tokenizer->token(-1));
  EXPECT_FALSE(tokenizer->token(1000));
}

TEST(Tokenizer, TextWithoutTokens) {
  const auto tokenizer = make_wordpiece(small_vocabulary());
  for (const char* text : {"", " \t\n", "\x01\u200b\ufeff", "\ufffd", "\u0301"})
    EXPECT_EQ(tokenizer->encode(text, unlimited), (Ids{2, 3})) << text;
}

// Rule 1: special tokens are found before the text is lower-cased or split.
TEST(Tokenizer, SpecialTokensInText) {
  EXPECT_EQ(pieces("the[MASK]a"), "the [MASK] a");
  EXPECT_EQ(pieces("[MASK][SEP]"), "[MASK] [SEP]");
  EXPECT_EQ(pieces("[mask]"), "[ mask ]");
  EXPECT_EQ(pieces("[MASK"), "[ mask");
  EXPECT_EQ(pieces("[[MASK]]"), "[ [MASK] ]");
}

// Rule 2: controls vanish (they do not separate), white space separates.
TEST(Tokenizer, Cleaning) {
  using std::string_literals::operator""s;
  EXPECT_EQ(pieces("a\0b"s), "ab");
  EXPECT_EQ(pieces("a\x01\x7f\u200b\u00ad\ufffd\ue000\ufeff"
                   "b"),
            "ab");
  EXPECT_EQ(pieces("a\x0b\x0c\u0085"
                   "b"),
            "ab");  // controls, though white space elsewhere
  EXPECT_EQ(pieces("a\tb\nb\rb\u00a0"
                   "b\u3000"
                   "b\u2028"
                   "b"),
            "a b b b b b b");
}

// Assigned after Unicode 8, or never: not control, so an unknown word rather than nothing.
TEST(Tokenizer, NewCharactersAreUnknownNotDropped) {
  EXPECT_EQ(pieces("\U0001fae0"), "[UNK]");
  EXPECT_EQ(pieces("\u0378"), "[UNK]");
  EXPECT_EQ(pieces("\u08e2"), "[UNK]");  // Cf since Unicode 9
}

// Rule 3. Kana and Hangul stay words; U+2B820 is Chinese, but the reference misses it.
TEST(Tokenizer, ChineseCharactersStandAlone) {
  EXPECT_EQ(pieces("a\u4e2d\u56fd"
                   "b"),
            "a \u4e2d \u56fd b");
  EXPECT_EQ(pieces("\u3042\u3044"), "\u3042\u3044");
  EXPECT_EQ(pieces("\ud55c"), "\u1112\u1161\u11ab");  // decomposed by rule 4, one word
  EXPECT_EQ(pieces("a\U0002b820"
                   "b"),
            "[UNK]");
  EXPECT_EQ(pieces("a\U0002b91f"
                   "b"),
            "[UNK]");
  EXPECT_EQ(pieces("a\U0002b81f"
                   "b"),
            "a [UNK] b");
  EXPECT_EQ(pieces("a\U0002b920"
                   "b"),
            "a [UNK] b");
  WordPieceOptions off;
  off.tokenize_chinese_chars = false;
  EXPECT_EQ(pieces("a\u4e2d"
                   "b",
                   off),
            "[UNK]");
}

// Rules 4 and 5.
TEST(Tokenizer, AccentsAndCase) {
  EXPECT_EQ(pieces("CAF\u00c9 cafe\u0301"), "cafe cafe");
  EXPECT_EQ(pieces("\u03a3\u0391\u03a3"), "\u03c3\u03b1\u03c3");  // no final sigma
  EXPECT_EQ(pieces("\ufb01"), "\ufb01");                          // NFD, not NFKD
  EXPECT_EQ(pieces("\u0130"), "i");                               // the dot is an accent
  WordPieceOptions cased;
  cased.lowercase = false;
  EXPECT_EQ(pieces("Cafe CAFE \u00e9", cased), "Cafe [UNK] \u00e9");  // strip_accents follows
  WordPieceOptions accents;
  accents.strip_accents = false;
  EXPECT_EQ(pieces("\u00c9", accents), "\u00e9");
  EXPECT_EQ(pieces("\u0130", accents), "i ##\u0307");
  WordPieceOptions stripped_cased = cased;
  stripped_cased.strip_accents = true;
  EXPECT_EQ(pieces("Caf\u00e9", stripped_cased), "Cafe");
}

// Rule 6.
TEST(Tokenizer, PunctuationStandsAlone) {
  EXPECT_EQ(pieces("a,b$a`b\u2014"
                   "a"),
            "a , b $ a ` b \u2014 a");
  // All of ASCII's punctuation splits, whatever its category; so does P*, but not other symbols.
  const auto tokenizer = make_wordpiece(small_vocabulary());
  for (const char c : std::string("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"))
    EXPECT_EQ(tokenizer->encode(std::string("a") + c + "b", unlimited, false).size(), 3u) << c;
  EXPECT_EQ(pieces("a\u20ac"
                   "b"),
            "[UNK]");  // Sc
  EXPECT_EQ(pieces("a\u00d7"
                   "b"),
            "[UNK]");  // Sm
  EXPECT_EQ(pieces("a\u2e43"
                   "b"),
            "[UNK]");  // Po since Unicode 9
  EXPECT_EQ(pieces("a\u2e42"
                   "b"),
            "a [UNK] b");  // Ps since Unicode 7
}

// Rule 7: the limit counts characters, not bytes, of the normalised word.
TEST(Tokenizer, LongWordsAreUnknown) {
  const std::string hundred = "a" + std::string(99, 'b');
  EXPECT_EQ(pieces(hundred).substr(0, 7), "ab ##b ");
  EXPECT_EQ(pieces(hundred + "b"), "[UNK]");
  EXPECT_EQ(pieces(hundred + "b a"), "[UNK] a");
  std::string accented;
  for (int i = 0; i < 99; ++i) accented += "b\u0301";
  EXPECT_EQ(pieces("a" + accented), pieces(hundred));
  std::string wide;
  for (int i = 0; i < 100; ++i) wide += "\u3042";
  auto tokenizer = make_wordpiece({"[UNK]", "[CLS]", "[SEP]", "\u3042", "##\u3042"});
  EXPECT_EQ(tokenizer->encode(wide, unlimited, false).size(), 100u);
  EXPECT_EQ(tokenizer->encode(wide + "\u3042", unlimited, false), (Ids{0}));
}

TEST(Tokenizer, MalformedUtf8ReadsAsReplacement) {
  EXPECT_EQ(pieces("a\xff\xc3"
                   "b"),
            "ab");
  EXPECT_EQ(pieces("a\xed\xa0\x80\xf4\x90\x80\x80\xc0\x80"
                   "b"),
            "ab");
  EXPECT_EQ(pieces("[MA\xffSK]"), "[ mask ]");
  EXPECT_EQ(pieces("a\xe4\xb8"), "a");
  std::size_t at = 0;
  const std::string cut = "\xf0\x9f\x98x";  // one maximal beginning is one U+FFFD
  EXPECT_EQ(decode_utf8(cut, at), char32_t{0xFFFD});
  EXPECT_EQ(at, 3u);
}

TEST(Tokenizer, Truncation) {
  const auto tokenizer = make_wordpiece(small_vocabulary());
  EXPECT_EQ(tokenizer->encode("a b the a", 4), (Ids{2, 10, 11, 3}));
  EXPECT_EQ(tokenizer->encode("unaffable", 3), (Ids{2, 5, 3}));  // inside a word
  EXPECT_EQ(tokenizer->encode("a", 2), (Ids{2, 3}));
  EXPECT_EQ(tokenizer->encode("a b", 1, false), (Ids{10}));
  EXPECT_THROW(tokenizer->encode("a", 1), Error);
  EXPECT_THROW(tokenizer->encode("a", -1, false), Error);
  std::string text;  // longer than the blocks it is worked off in
  for (int i = 0; i < 5000; ++i) text += i % 3 == 0 ? "a " : "the ";
  EXPECT_EQ(tokenizer->encode(text, unlimited, false).size(), 5000u);
  const Ids cut = tokenizer->encode(text, 4002);
  EXPECT_EQ(cut.size(), 4002u);
  for (std::size_t i = 0; i < 4000; ++i) ASSERT_EQ(cut[i + 1], i % 3 == 0 ? 10 : 8) << i;
}

TEST(Tokenizer, Pairs) {
  const auto tokenizer = make_wordpiece(small_vocabulary());
  const Encoded whole = tokenizer->encode_pair("a b", "the", unlimited);
  EXPECT_EQ(whole.ids, (Ids{2, 10, 11, 3, 8, 3}));
  EXPECT_EQ(whole.types, (Ids{0, 0, 0, 0, 1, 1}));
  auto lengths = [&](int a, int b, Index limit) {
    std::string first, second;
    for (int i = 0; i < a; ++i) first += "a ";
    for (int i = 0; i < b; ++i) second += "b ";
    const Encoded pair = tokenizer->encode_pair(first, second, limit);
    return std::pair(std::count(pair.ids.begin(), pair.ids.end(), 10),
                     std::count(pair.ids.begin(), pair.ids.end(), 11));
  };
  using Lengths = std::pair<std::ptrdiff_t, std::ptrdiff_t>;
  EXPECT_EQ(lengths(2, 10, 3 + 8), Lengths(2, 6));  // only the longer one is cut
  EXPECT_EQ(lengths(10, 2, 3 + 8), Lengths(6, 2));
  EXPECT_EQ(lengths(10, 10, 3 + 8), Lengths(4, 4));
  EXPECT_EQ(lengths(10, 10, 3 + 5), Lengths(2, 3));  // equal: the second gets the odd one
  EXPECT_EQ(lengths(11, 10, 3 + 5), Lengths(3, 2));  // else the longer, though both pass the limit
  EXPECT_EQ(lengths(3, 9, 3 + 5), Lengths(2, 3));
  EXPECT_EQ(lengths(4, 4, 3), Lengths(0, 0));
  EXPECT_THROW(lengths(1, 1, 2), Error);
}

TEST(Tokenizer, Decode) {
  const auto tokenizer = make_wordpiece(small_vocabulary());
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("Unaffable, the a", unlimited), true),
            "unaffable, the a");
  EXPECT_EQ(tokenizer->decode(Ids{2, 8, 3}, false), "[CLS] the [SEP]");
  EXPECT_EQ(tokenizer->decode(Ids{7, 8, 9999, -5}, true), "##able the");  // nothing to glue to
  EXPECT_EQ(tokenizer->decode(Ids{}, true), "");
}

TEST(Tokenizer, InfoNamesTablesAndChain) {
  const std::string info = make_wordpiece(small_vocabulary())->info();
  for (const char* part : {"Unicode 8.0", "BertNormalizer", "WordPiece", "33 tokens"})
    EXPECT_NE(info.find(part), std::string::npos) << info;
}

// Marks of different classes that survive are put in canonical order; a dropped starter mark still
// divides.
TEST(Unicode, CanonicalOrder) {
  NormalizerSteps steps;
  steps.decompose = true;
  const Normalizer nfd(steps);
  auto apply = [](const Normalizer& normalizer, std::string_view text) {
    std::string out;
    normalizer.append(text, out);
    return out;
  };
  EXPECT_EQ(apply(nfd, "a\u0301\u0323"), "a\u0323\u0301");            // 230, 220
  EXPECT_EQ(apply(nfd, "\u1e69"), "s\u0323\u0307");                   // two levels
  EXPECT_EQ(apply(nfd, "\uac01"), "\u1100\u1161\u11a8");              // Hangul with a final
  EXPECT_EQ(apply(nfd, "\u302e\u094d"), "\u094d\u302e");              // 224, 9: both remain
  EXPECT_EQ(apply(nfd, "\u302e\u0488\u094d"), "\u302e\u0488\u094d");  // U+0488 has class 0
  steps.clean = true;
  EXPECT_EQ(apply(Normalizer(steps), "\u302e\x01\u094d"),
            "\u094d\u302e");  // cleaned before ordering
  EXPECT_EQ(apply(Normalizer(NormalizerSteps{}), "a\x80\u00e9"), "a\ufffd\u00e9");
}

// A folder of tokenizer files that is gone with the test.
class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "tokenizer_test_XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder");
    path_ = name;
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  void write(const std::string& name, const std::string& text) const {
    std::ofstream(path_ / name, std::ios::binary) << text;
  }
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

// A whole tokenizer.json; each part may be replaced.
struct Parts {
  std::string normalizer =
      R"({"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,)"
      R"("strip_accents":null,"lowercase":true})";
  std::string pre_tokenizer = R"({"type":"BertPreTokenizer"})";
  std::string post_processor =
      R"({"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"[CLS]","type_id":0}},)"
      R"({"Sequence":{"id":"A","type_id":0}},{"SpecialToken":{"id":"[SEP]","type_id":0}}],)"
      R"("pair":[{"SpecialToken":{"id":"[CLS]","type_id":0}},{"Sequence":{"id":"A","type_id":0}},)"
      R"({"SpecialToken":{"id":"[SEP]","type_id":0}},{"Sequence":{"id":"B","type_id":1}},)"
      R"({"SpecialToken":{"id":"[SEP]","type_id":1}}],"special_tokens":{)"
      R"("[CLS]":{"id":"[CLS]","ids":[2],"tokens":["[CLS]"]},)"
      R"("[SEP]":{"id":"[SEP]","ids":[3],"tokens":["[SEP]"]}}})";
  std::string decoder = R"({"type":"WordPiece","prefix":"##","cleanup":true})";
  std::string model_type = "WordPiece";
  std::string vocabulary =
      R"("[PAD]":0,"[UNK]":1,"[CLS]":2,"[SEP]":3,"[MASK]":4,"a":5,"##b":6,"\u00e9":9)";
  std::string added = R"({"id":4,"content":"[MASK]","special":true,"normalized":false})";

  std::string text() const {
    return R"({"version":"1.0","truncation":{"max_length":2},"padding":{"strategy":{"Fixed":128}},)"
           R"("added_tokens":[)" +
           added + R"(],"normalizer":)" + normalizer + R"(,"pre_tokenizer":)" + pre_tokenizer +
           R"(,"post_processor":)" + post_processor + R"(,"decoder":)" + decoder +
           R"(,"model":{"type":")" + model_type + R"(","unk_token":"[UNK]",)" +
           R"("continuing_subword_prefix":"##","max_input_chars_per_word":100,"vocab":{)" +
           vocabulary + "}}}";
  }
};

std::unique_ptr<Tokenizer> load(const Parts& parts) {
  const Folder folder;
  folder.write("tokenizer.json", parts.text());
  return load_wordpiece(folder.path());
}

// The message of the error that loading `text` raises.
std::string load_error(const std::string& text) {
  const Folder folder;
  folder.write("tokenizer.json", text);
  try {
    load_wordpiece(folder.path());
  } catch (const Error& error) {
    EXPECT_EQ(error.fault(), Fault::bad_data);
    EXPECT_NE(std::string(error.what()).find("tokenizer.json"), std::string::npos) << error.what();
    return error.what();
  }
  return "loaded";
}

void expect_has(const std::string& text, std::string_view part) {
  EXPECT_NE(text.find(part), std::string::npos) << text << " lacks " << part;
}

TEST(TokenizerFile, StoredTruncationAndPaddingAreIgnored) {
  const auto tokenizer = load({});
  EXPECT_EQ(tokenizer->encode("a ab A[MASK]", unlimited), (Ids{2, 5, 5, 6, 5, 4, 3}));
  EXPECT_EQ(tokenizer->encode_pair("a", "ab", unlimited).types, (Ids{0, 0, 0, 1, 1, 1}));
  EXPECT_EQ(tokenizer->vocab_size(), 10);  // ids 7 and 8 are gaps
  EXPECT_FALSE(tokenizer->token(7));
}

TEST(TokenizerFile, OtherComponents) {
  Parts parts;
  parts.post_processor = R"({"type":"BertProcessing","sep":["[SEP]",3],"cls":["[CLS]",2]})";
  EXPECT_EQ(load(parts)->encode_pair("a", "a", unlimited).ids, (Ids{2, 5, 3, 5, 3}));
  parts.post_processor = "null";
  EXPECT_EQ(load(parts)->encode("a", unlimited), (Ids{5}));
  parts.normalizer = R"({"type":"Sequence","normalizers":[{"type":"NFD"},{"type":"StripAccents"},)"
                     R"({"type":"Lowercase"}]})";
  EXPECT_EQ(load(parts)->encode("\u00c1", unlimited), (Ids{5}));
  parts.normalizer = "null";
  EXPECT_EQ(load(parts)->encode("A a \u00e9", unlimited), (Ids{1, 5, 9}));
  parts.pre_tokenizer = R"({"type":"WhitespaceSplit"})";
  EXPECT_EQ(load(parts)->encode("a,a a", unlimited), (Ids{1, 5}));
  parts.decoder = "null";
  EXPECT_EQ(load(parts)->decode(Ids{5, 6}, true), "a ##b");
}

TEST(TokenizerFile, AddedTokenFlags) {
  Parts parts;
  parts.added = R"({"id":4,"content":"[MASK]","special":true,"lstrip":true,"rstrip":true},)"
                R"({"id":10,"content":"xy","normalized":false,"single_word":true},)"
                R"({"id":11,"content":"xyz","normalized":false},)"
                R"({"id":12,"content":"Q\u00c9 a","normalized":true})";
  const auto tokenizer = load(parts);
  EXPECT_EQ(tokenizer->vocab_size(), 13);
  EXPECT_EQ(tokenizer->encode("xy", unlimited, false), (Ids{10}));
  EXPECT_EQ(tokenizer->encode("a xy,xy a", unlimited, false), (Ids{5, 10, 1, 10, 5}));
  EXPECT_EQ(tokenizer->encode("axy", unlimited, false), (Ids{1}));  // not a word of its own
  EXPECT_EQ(tokenizer->encode("xy\u00e9", unlimited, false), (Ids{1}));
  EXPECT_EQ(tokenizer->encode("axyzab", unlimited, false), (Ids{5, 11, 5, 6}));  // the longer wins
  EXPECT_EQ(tokenizer->encode("XYZ", unlimited, false), (Ids{1}));  // before lower-casing
  EXPECT_EQ(tokenizer->encode("aqe\u0301\ta qe A", unlimited, false), (Ids{5, 12, 12}));
  EXPECT_EQ(tokenizer->decode(Ids{5, 12, 10}, true), "a qe a xy");
  EXPECT_EQ(tokenizer->id("Q\u00c9 a"), 12);
  EXPECT_EQ(tokenizer->token(12), "Q\u00c9 a");
}

TEST(TokenizerFile, RefusesByName) {
  Parts parts;
  parts.normalizer = R"({"type":"NFKC"})";
  expect_has(load_error(parts.text()), "normalizer \"NFKC\"");
  parts.normalizer = R"({"type":"Sequence","normalizers":[{"type":"NFD"},{"type":"Precompiled"}]})";
  expect_has(load_error(parts.text()), "\"Precompiled\"");
  parts = {};
  parts.pre_tokenizer = R"({"type":"ByteLevel"})";
  expect_has(load_error(parts.text()), "pre_tokenizer \"ByteLevel\"");
  parts.pre_tokenizer = "null";
  expect_has(load_error(parts.text()), "pre_tokenizer \"null\"");
  parts = {};
  parts.post_processor = R"({"type":"RobertaProcessing"})";
  expect_has(load_error(parts.text()), "post_processor \"RobertaProcessing\"");
  parts = {};
  parts.decoder = R"({"type":"BPEDecoder"})";
  expect_has(load_error(parts.text()), "decoder \"BPEDecoder\"");
  parts = {};
  parts.model_type = "BPE";
  expect_has(load_error(parts.text()), "model \"BPE\"");
}

TEST(TokenizerFile, MalformedFiles) {
  expect_has(load_error(""), "parse error");
  expect_has(load_error("[1]"), "not a JSON object");
  expect_has(load_error("{}"), "pre_tokenizer \"null\"");
  expect_has(load_error(std::string(100000, '[')), "nested");
  expect_has(load_error("{\"a\":\"\xff\"}"), "UTF-8");
  auto with_vocabulary = [](const char* vocabulary) {
    Parts parts;
    parts.vocabulary = vocabulary;
    return load_error(parts.text());
  };
  expect_has(with_vocabulary(R"("a":0)"), "[UNK]");
  expect_has(with_vocabulary(R"("[UNK]":0,"a":0)"), "same id");
  expect_has(with_vocabulary(R"("[UNK]":-1)"), "-1 is not a token id");
  expect_has(with_vocabulary(R"("[UNK]":4294967296)"), "4294967296");
  expect_has(with_vocabulary(R"("[UNK]":1.5)"), "1.5");
  expect_has(with_vocabulary(R"("[UNK]":"0")"), "not a token id");
  expect_has(with_vocabulary(R"("[UNK]":1,"[CLS]":2,"[MASK]":4)"), "adds id 3");
  Parts parts;
  parts.added = R"({"id":5,"content":"[MASK]"})";
  expect_has(load_error(parts.text()), "the vocabulary gives it 4");
  parts.added = R"({"id":5,"content":"new"})";
  expect_has(load_error(parts.text()), "belongs to \"a\"");
  parts.added =
      R"({"id":20,"content":"New","normalized":true},{"id":21,"content":"new","normalized":true})";
  expect_has(load_error(parts.text()), "same text");
  parts.added = R"({"id":20})";
  expect_has(load_error(parts.text()), "content");
  parts.added = "";
  parts.vocabulary += ",\"" + std::string(70000, 'x') + "\":20";
  expect_has(load_error(parts.text()), "70000 bytes");
}

TEST(TokenizerFile, NothingThere) {
  const Folder folder;
  try {
    load_wordpiece(folder.path());
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.fault(), Fault::missing_input);
    expect_has(error.what(), "vocab.txt");
  }
}

TEST(TokenizerFile, VocabularyLines) {
  const Folder folder;
  folder.write("vocab.txt", "<pad>\n[UNK]\n<s>\r\n</s> \nCafe\n\u00e9\n\u4e2d\ncafe\ne\n<x>");
  folder.write("special_tokens_map.json",
               R"({"cls_token":"<s>","sep_token":{"content":"</s>"},)"
               R"("pad_token":"<pad>","additional_special_tokens":["<x>"]})");
  auto tokenizer = load_wordpiece(folder.path());
  EXPECT_EQ(tokenizer->encode("CAF\u00c9 \u00e9<x>", unlimited), (Ids{2, 7, 8, 9, 3}));
  EXPECT_EQ(tokenizer->special_ids().pad, 0);
  EXPECT_FALSE(tokenizer->special_ids().mask);
  EXPECT_EQ(tokenizer->decode(Ids{2, 7, 9, 3}, true), "cafe");
  folder.write("tokenizer_config.json",
               R"({"do_lower_case":false,"strip_accents":null,"model_max_length":1e30})");
  EXPECT_EQ(load_wordpiece(folder.path())->encode("Cafe \u00e9", unlimited, false), (Ids{4, 5}));
  folder.write("tokenizer_config.json", R"({"do_lower_case":true,"strip_accents":false})");
  EXPECT_EQ(load_wordpiece(folder.path())->encode("Cafe \u00e9", unlimited, false), (Ids{7, 5}));
  folder.write("tokenizer_config.json", R"({"tokenize_chinese_chars":false})");
  EXPECT_EQ(load_wordpiece(folder.path())->encode("cafe\u4e2d", unlimited, false), (Ids{1}));
  folder.write("tokenizer_config.json", R"({"tokenizer_class":"MPNetTokenizer"})");
  EXPECT_THROW(load_wordpiece(folder.path()), Error);
  folder.write("tokenizer_config.json", "{}");
  folder.write("vocab.txt", "[UNK]\n\xff\n");
  EXPECT_THROW(load_wordpiece(folder.path()), Error);
}

std::string read_all(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

TEST(TokenizerGolden, WordPieceTexts) {
  const char* data = std::getenv("MOE_DATA");
  const std::filesystem::path model =
      std::filesystem::path(data != nullptr ? data : "(MOE_DATA is not set)") / "minilm-l6";
  const auto texts_path = model / "golden/wordpiece.inp", ids_path = model / "golden/wordpiece.out";
  if (!std::filesystem::exists(texts_path)) GTEST_SKIP() << "not there: " << texts_path;
  const auto tokenizer = load_wordpiece(model.string());
  const Folder lines_only;  // the same vocabulary by the other way
  lines_only.write("vocab.txt", read_all(model / "vocab.txt"));
  const auto from_lines = load_wordpiece(lines_only.path());

  const std::string texts = read_all(texts_path), separator = "\n__ggml_vocab_test__\n";
  std::istringstream ids(read_all(ids_path));
  std::size_t begin = 0;
  int rows = 0;
  for (std::string line; std::getline(ids, line); ++rows) {
    const std::size_t end = std::min(texts.find(separator, begin), texts.size());
    const std::string text = texts.substr(begin, end - begin);
    begin = end + separator.size();
    Ids expected;
    std::istringstream numbers(line);
    for (std::int32_t id = 0; numbers >> id;) expected.push_back(id);
    EXPECT_EQ(tokenizer->encode(text, unlimited, false), expected) << text;
    EXPECT_EQ(from_lines->encode(text, unlimited, false), expected) << text;
    const Ids framed = tokenizer->encode(text, unlimited);
    EXPECT_EQ(framed.front(), 101);
    EXPECT_EQ(framed.back(), 102);
    EXPECT_EQ(framed.size(), expected.size() + 2);
  }
  EXPECT_EQ(rows, 46);
}

}  // namespace
}  // namespace moe
