// safetensors: what other writers produce is read, what we write is read back, and everything else
// is an error.
#include "runtime/bytes.h"
#include "tests/file_support.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

namespace moe::testing {
namespace {

std::string with_header(std::string_view header, std::size_t data_bytes = 0) {
  std::uint64_t length = header.size();
  std::string file(reinterpret_cast<const char*>(&length), 8);
  file += header;
  return file + std::string(data_bytes, '\1');
}

class Safetensors : public ::testing::Test {
 protected:
  std::string path() const { return folder_ / "x.safetensors"; }
  TensorFile read(const std::string& bytes) {
    write_raw(path(), bytes);
    return read_safetensors(path());
  }
  std::string refusal(const std::string& bytes) {
    std::string message = error_of([&] { read(bytes); });
    EXPECT_TRUE(mentions(message, "x.safetensors")) << message;
    return message;
  }
  std::string refusal_of_header(std::string_view header, std::size_t data_bytes = 0) {
    return refusal(with_header(header, data_bytes));
  }
  TemporaryFolder folder_;
};

// Element i of every fixture tensor (make_files.py).
double fixture_value(std::size_t i) {
  return static_cast<double>(i % 17) / 4 - 2;
}

TEST_F(Safetensors, ReadsTheReferenceWriter) {
  TensorFile file = read_safetensors(fixture("types.safetensors"));
  EXPECT_EQ(file.metadata.at("format"), "pt");
  EXPECT_EQ(file.metadata.at("note"), "\xc3\xa4 \n");
  EXPECT_EQ(file.tensors.size(), 9u);
  for (const char* name : {"weight", "bias", "half", "double"}) {
    Tensor x = to_tensor(name, file.tensors.at(name), DType::f32, Device::cpu);
    auto values = to_host<float>(x);
    for (std::size_t i = 0; i < values.size(); ++i) EXPECT_EQ(values[i], fixture_value(i)) << name;
  }
  EXPECT_EQ(to_tensor("weight", file.tensors.at("weight"), DType::f32, Device::cpu).shape(),
            (Shape{2, 3}));
  EXPECT_EQ(to_tensor("scalar", file.tensors.at("scalar"), DType::f32, Device::cpu).shape(),
            Shape{1});
  EXPECT_EQ(to_tensor("empty", file.tensors.at("empty"), DType::f32, Device::cpu).shape(),
            (Shape{0, 4}));
  EXPECT_EQ(
      to_host<std::int64_t>(to_tensor("count", file.tensors.at("count"), DType::i64, Device::cpu)),
      (std::vector<std::int64_t>{0, 1}));
  EXPECT_EQ(file.tensors.at("eighth").dtype, "F8_E4M3");
  EXPECT_ERROR(to_tensor("eighth", file.tensors.at("eighth"), DType::f32, Device::cpu), "F8_E4M3");
}

TEST_F(Safetensors, MapsWithoutCopyWhereItCan) {
  TensorFile file = read_safetensors(fixture("types.safetensors"));
  const TensorEntry& weight = file.tensors.at("weight");
  for (Device device : {Device::cpu, Device::reference}) {
    Tensor x = to_tensor("weight", weight, DType::f32, device);
    EXPECT_EQ(x.device(), device);
    EXPECT_EQ(static_cast<const void*>(x.data<float>()), weight.data);
    EXPECT_FALSE(x.needs_grad());
    Tensor doubled = to_tensor("weight", weight, DType::f64, device);
    EXPECT_NE(static_cast<const void*>(doubled.data<double>()), weight.data);
    EXPECT_EQ(to_host<double>(doubled)[5], fixture_value(5));
  }
  // The map lives on in the tensor; the first write copies it.
  Tensor x = to_tensor("weight", weight, DType::f32, Device::cpu);
  const float* mapped = x.data<float>();
  file = {};
  EXPECT_EQ(to_host<float>(x)[3], fixture_value(3));
  x.mut<float>()[3] = 9;
  EXPECT_NE(x.data<float>(), mapped);
  EXPECT_EQ(to_host<float>(x)[3], 9);
  EXPECT_EQ(to_host<float>(x)[4], fixture_value(4));
}

TEST_F(Safetensors, UnalignedDataIsCopied) {
  std::string header = R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                       R"("b":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}})";
  std::string bytes = with_header(header, 9);
  float values[2] = {1.5f, -2};
  std::memcpy(bytes.data() + bytes.size() - 8, values, 8);
  TensorFile file = read(bytes);
  ASSERT_NE(reinterpret_cast<std::uintptr_t>(file.tensors.at("b").data) % 4, 0u);
  EXPECT_EQ(to_host<float>(to_tensor("b", file.tensors.at("b"), DType::f32, Device::cpu)),
            (std::vector<float>{1.5f, -2}));
  EXPECT_EQ(to_host<double>(to_tensor("b", file.tensors.at("b"), DType::f64, Device::cpu)),
            (std::vector<double>{1.5, -2}));
}

TEST_F(Safetensors, ConversionsKeepValuesOrFail) {
  TensorFile file = read_safetensors(fixture("types.safetensors"));
  Tensor b = to_tensor("half", file.tensors.at("half"), DType::bf16, Device::cpu);
  EXPECT_EQ(static_cast<float>(b.data<bf16>()[6]), fixture_value(6));
  EXPECT_EQ(
      to_host<std::int32_t>(to_tensor("count", file.tensors.at("count"), DType::i32, Device::cpu)),
      (std::vector<std::int32_t>{0, 1}));
  EXPECT_EQ(to_host<float>(to_tensor("count", file.tensors.at("count"), DType::f32, Device::cpu)),
            (std::vector<float>{0, 1}));
  EXPECT_ERROR(to_tensor("weight", file.tensors.at("weight"), DType::i64, Device::cpu),
               "fractions would be lost");
  EXPECT_ERROR(to_tensor("flag", file.tensors.at("flag"), DType::f32, Device::cpu), "BOOL");

  write_safetensors(
      path(), {{"big", from_host<std::int64_t>({std::int64_t{1} << 40}, {1}, Device::cpu), {}}},
      {});
  file = read_safetensors(path());
  EXPECT_ERROR(to_tensor("big", file.tensors.at("big"), DType::i32, Device::cpu), "out of range");

  std::string header = R"({"deep":{"dtype":"F32","shape":[1,1,1,1,1],"data_offsets":[0,4]}})";
  file = read(with_header(header, 4));
  EXPECT_ERROR(to_tensor("deep", file.tensors.at("deep"), DType::f32, Device::cpu), "5 dimensions");
}

TEST_F(Safetensors, OtherDevicesGetAnUpload) {
  if (simt_backend() == nullptr) GTEST_SKIP() << "no device but host memory";
  TensorFile file = read_safetensors(fixture("types.safetensors"));
  for (const char* name : {"weight", "half"}) {
    Tensor x = to_tensor(name, file.tensors.at(name), DType::f32, Device::simt);
    EXPECT_EQ(x.device(), Device::simt);
    EXPECT_EQ(to_host<float>(x)[5], fixture_value(5));
    write_safetensors(path(), {{"x", x, {}}}, {});
    TensorFile again = read_safetensors(path());
    EXPECT_EQ(to_host<float>(to_tensor("x", again.tensors.at("x"), DType::f32, Device::cpu)),
              to_host<float>(x));
  }
}

TEST_F(Safetensors, WritesAndReadsBack) {
  std::vector<float> floats(12);
  for (std::size_t i = 0; i < floats.size(); ++i) floats[i] = static_cast<float>(i) - 3.5f;
  floats[3] = NAN;
  floats[4] = -INFINITY;
  Tensor x = from_host(floats, {3, 4}, Device::cpu);
  std::string odd_name = "a \"quoted\"\n\x01 name \xc3\xa4";
  write_safetensors(path(),
                    {{"z", x, {}},
                     {"view", x.slice_cols(1, 3), {}},
                     {"reshaped", x, {2, 1, 6}},
                     {odd_name, from_host<double>({1.0, 2.0}, {2}, Device::cpu), {}},
                     {"bytes", from_host<std::uint8_t>({7, 8, 9}, {3}, Device::cpu), {}},
                     {"nothing", empty({0, 5}, DType::f32, Device::cpu), {}}},
                    {{"step", "12"}, {"text", "\"\\\n"}});
  TensorFile file = read_safetensors(path());
  EXPECT_EQ(file.metadata,
            (std::map<std::string, std::string>{{"step", "12"}, {"text", "\"\\\n"}}));
  EXPECT_EQ(file.tensors.at("reshaped").shape, (std::vector<Index>{2, 1, 6}));
  EXPECT_EQ(file.tensors.at("nothing").shape, (std::vector<Index>{0, 5}));
  EXPECT_EQ(to_host<float>(to_tensor("view", file.tensors.at("view"), DType::f32, Device::cpu)),
            to_host<float>(x.slice_cols(1, 3)));
  const TensorEntry& z = file.tensors.at("z");
  EXPECT_EQ(std::memcmp(z.data, floats.data(), z.bytes), 0);
  // Descending alignment, then name: the double first, the bytes last; data aligned to 8.
  const std::byte* first = file.tensors.at(odd_name).data;
  for (const auto& [name, entry] : file.tensors) EXPECT_GE(entry.data, first) << name;
  EXPECT_GT(file.tensors.at("bytes").data, z.data);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(first) % 8, 0u);
  EXPECT_EQ(files_in(folder_.path()), 1u);
}

TEST_F(Safetensors, WriterRefusesNonsense) {
  Tensor x = zeros({2, 2}, DType::f32, Device::cpu);
  EXPECT_ERROR(write_safetensors(path(), {{"a", x, {}}, {"a", x, {}}}, {}),
               "two tensors are called 'a'");
  EXPECT_ERROR(write_safetensors(path(), {{"a", x, {3}}}, {}), "cannot be written with 3 elements");
  EXPECT_ERROR(write_safetensors(path(), {{"a", Tensor{}, {}}}, {}), "absent");
  EXPECT_ERROR(write_safetensors(path(), {{"__metadata__", x, {}}}, {}), "cannot be called");
  EXPECT_ERROR(write_safetensors(path(), {{"\xff", x, {}}}, {}), "UTF-8");
  EXPECT_EQ(files_in(folder_.path()), 0u);
}

TEST_F(Safetensors, FaultsLeaveTheOldFile) {
  Tensor old_tensor = zeros({4}, DType::f32, Device::cpu),
         new_tensor = full({64}, DType::f32, Device::cpu, 1);
  for (FaultKind kind : {FaultKind::disk_full, FaultKind::input_output, FaultKind::short_write}) {
    bool reached = true;
    for (int call = 1; reached; ++call) {
      write_safetensors(path(), {{"x", old_tensor, {}}}, {});
      bool failed = false;
      {
        Faults faults(kind, call);
        try {
          write_safetensors(path(), {{"x", new_tensor, {}}}, {});
        } catch (const Error&) {
          failed = true;
        }
        reached = faults.reached();
      }
      std::size_t bytes = read_safetensors(path()).tensors.at("x").bytes;
      EXPECT_TRUE(bytes == 256 || (failed && bytes == 16)) << call;
      EXPECT_EQ(files_in(folder_.path()), 1u);
    }
  }
}

TEST_F(Safetensors, ValidOddities) {
  EXPECT_TRUE(read(with_header("{}")).tensors.empty());
  EXPECT_TRUE(read(with_header("{}   \n ")).tensors.empty());  // trailing blanks are padding
  EXPECT_TRUE(read(with_header(R"({"__metadata__":{}})")).metadata.empty());
  TensorFile file =
      read(with_header(R"({"s":{"dtype":"F64","shape":[],"data_offsets":[0,8]},)"
                       R"("e":{"dtype":"F32","shape":[2,0],"data_offsets":[8,8]},)"
                       R"("f":{"shape":[2,2],"data_offsets":[8,10],"dtype":"F4"},)"
                       R"("":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[10,13]}})",
                       13));
  EXPECT_EQ(file.tensors.at("s").bytes, 8u);
  EXPECT_EQ(file.tensors.at("").bytes, 3u);
}

TEST_F(Safetensors, AttackList) {
  auto one = [](const char* info) { return fmt::format("{{\"t\":{{{}}}}}", info); };
  EXPECT_TRUE(mentions(refusal(""), "too few"));
  EXPECT_TRUE(mentions(refusal(std::string(7, '\0')), "too few"));
  EXPECT_TRUE(mentions(refusal(std::string(8, '\0')), "does not start with"));
  EXPECT_TRUE(mentions(refusal(std::string(8, '\xff')), "limit of 100000000"));
  EXPECT_TRUE(mentions(refusal(with_header("{}").substr(0, 9)), "cut off"));
  EXPECT_TRUE(mentions(refusal_of_header(" {}"), "does not start with"));      // leading blank
  EXPECT_TRUE(mentions(refusal_of_header("{\"\xff\":1}"), "not valid JSON"));  // not UTF-8
  EXPECT_TRUE(mentions(refusal_of_header(R"({"\ud800":1})"), "not valid JSON"));
  EXPECT_TRUE(mentions(refusal_of_header("{not json}"), "not valid JSON"));
  EXPECT_TRUE(mentions(refusal_of_header("{} x"), "not valid JSON"));
  EXPECT_TRUE(mentions(refusal_of_header(std::string_view("{}\0\0", 4)), "zero byte"));
  EXPECT_TRUE(mentions(refusal_of_header("{"), "not valid JSON"));
  EXPECT_TRUE(mentions(refusal_of_header("{}", 1), "1 bytes behind the last tensor"));
  EXPECT_TRUE(mentions(refusal_of_header(R"({"t":5})"), "a number"));
  EXPECT_TRUE(mentions(refusal_of_header(R"({"t":null})"), "null"));
  EXPECT_TRUE(mentions(refusal_of_header(R"({"t":[]})"), "a list"));
  EXPECT_TRUE(mentions(refusal_of_header(R"({"t":{}})"), "missing"));
  EXPECT_TRUE(mentions(refusal_of_header(R"({"__metadata__":{"a":1}})"), "a number"));
  EXPECT_TRUE(mentions(refusal_of_header(R"({"__metadata__":{"a":{}}})"), "an object"));
  EXPECT_TRUE(mentions(refusal_of_header(R"({"__metadata__":{"a":"1","a":"2"}})"), "twice"));
  EXPECT_TRUE(mentions(refusal_of_header(R"({"__metadata__":{},"__metadata__":{}})"), "twice"));

  const char* good = R"("dtype":"F32","shape":[1],"data_offsets":[0,4])";
  EXPECT_NO_THROW(read(with_header(one(good), 4)));
  EXPECT_TRUE(mentions(refusal_of_header(one(good), 3), "outside"));
  EXPECT_TRUE(mentions(refusal_of_header(one(good), 5), "1 bytes behind"));
  EXPECT_TRUE(
      mentions(refusal_of_header(fmt::format("{{\"t\":{{{}}},\"\\u0074\":{{{}}}}}", good, good), 4),
               "twice"));
  struct Case {
    const char *info, *why;
  };
  const Case cases[] = {
      {R"("dtype":"U8","shape":[3],"data_offsets":[1,4])", "hole"},
      {R"("dtype":"F32","shape":[1],"data_offsets":[4,0])", "outside"},
      {R"("dtype":"F32","shape":[1],"data_offsets":[0,4,4])", "more than two"},
      {R"("dtype":"F32","shape":[1],"data_offsets":[0])", "not two numbers"},
      {R"("dtype":"F32","shape":[1],"data_offsets":[-1,3])", "negative"},
      {R"("dtype":"F32","shape":[1.0],"data_offsets":[0,4])", "no size"},
      {R"("dtype":"F32","shape":[1e0],"data_offsets":[0,4])", "no size"},
      {R"("dtype":"F32","shape":["1"],"data_offsets":[0,4])", "a text"},
      {R"("dtype":"F32","shape":[[1]],"data_offsets":[0,4])", "a list"},
      {R"("dtype":"F32","shape":{},"data_offsets":[0,4])", "an object"},
      {R"("dtype":"F32","shape":[2],"data_offsets":[0,4])", "does not fit"},
      {R"("dtype":"F32","shape":[0],"data_offsets":[0,4])", "does not fit"},
      {R"("dtype":"f32","shape":[1],"data_offsets":[0,4])", "unknown"},
      {R"("dtype":7,"shape":[1],"data_offsets":[0,4])", "a number"},
      {R"("dtype":"F4","shape":[9],"data_offsets":[0,4])", "no valid size"},  // 4.5 bytes
      {R"("dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1)", "unknown key"},
      {R"("dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4])", "twice"},
      {R"("dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,4])", "too large"},
      {R"("dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,4])", "no size"},
      {R"("dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,4])",
       "no valid size"},
      {R"("dtype":"F32","shape":[2147483648,2147483648,0],"data_offsets":[0,0])", "no valid size"},
      {R"("dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0])",
       "no valid size"},  // wraps to 0
  };
  for (const Case& wrong : cases) {
    std::string message = refusal_of_header(one(wrong.info), 4);
    EXPECT_TRUE(mentions(message, wrong.why)) << wrong.info << "\n" << message;
  }
  std::string overlap = R"({"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},)"
                        R"("b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})";
  EXPECT_TRUE(mentions(refusal_of_header(overlap, 4), "overlap"));
}

TEST_F(Safetensors, HugeThingsAreBounded) {
  std::string deep = "{\"a\":" + std::string(1'000'000, '[');
  EXPECT_TRUE(mentions(refusal_of_header(deep), "a list"));
  std::string ranks = R"({"t":{"dtype":"F32","shape":[1)";
  for (int i = 0; i < 1000; ++i) ranks += ",1";
  EXPECT_TRUE(mentions(refusal_of_header(ranks + R"(],"data_offsets":[0,4]}})", 4), "dimensions"));
  std::string long_name = fmt::format("{{\"{}\":1}}", std::string(1 << 20, 'n'));
  std::string message = refusal_of_header(long_name);
  EXPECT_TRUE(mentions(message, "over 4096 bytes"));
  EXPECT_LT(message.size(), 500u);
  EXPECT_FALSE(mentions(refusal_of_header(R"({"\u001b[2J":{}})"),
                        "\x1b"));  // no terminal escapes in messages

  std::string many = "{";
  for (int i = 0; i < 100'000; ++i)
    many += fmt::format("{}\"{}\":{{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}",
                        i ? "," : "", i);
  EXPECT_EQ(read(with_header(many + "}")).tensors.size(), 100'000u);

  // A sparse file that claims a 100 MB header of zero bytes.
  std::uint64_t length = 100'000'000;
  write_raw(path(), {reinterpret_cast<const char*>(&length), 8});
  std::filesystem::resize_file(path(), 200'000'000);
  EXPECT_ERROR(read_safetensors(path()), "does not start with");
}

// Every damaged copy is an error of ours or still a valid file. In the second case every tensor is
// read.
void read_all(const std::string& path) {
  try {
    TensorFile file = read_safetensors(path);
    for (const auto& [name, entry] : file.tensors) {
      content_hash({entry.data, entry.bytes});
      to_tensor(name, entry, DType::f64, Device::cpu);
    }
  } catch (const Error& error) {
    EXPECT_TRUE(mentions(error.what(), path)) << error.what();
  }
}

TEST_F(Safetensors, TruncationAtEveryByte) {
  std::string bytes = read_raw(fixture("types.safetensors"));
  for (std::size_t size = 0; size < bytes.size(); ++size) refusal(bytes.substr(0, size));
}

TEST_F(Safetensors, BitFlipsInTheHeader) {
  std::string bytes = read_raw(fixture("types.safetensors"));
  std::size_t header =
      8 + load_little<std::uint64_t>(reinterpret_cast<const std::byte*>(bytes.data()));
  for (std::size_t i = 0; i < header * 8; ++i) {
    bytes[i / 8] = static_cast<char>(bytes[i / 8] ^ (1 << (i % 8)));
    write_raw(path(), bytes);
    read_all(path());
    bytes[i / 8] = static_cast<char>(bytes[i / 8] ^ (1 << (i % 8)));
  }
}

class ModelFolder : public Safetensors {
 protected:
  void copy(const std::string& from, const std::string& to) {
    std::filesystem::copy_file(fixture(from), folder_ / to);
  }
  void copy_shards() {
    for (const char* name :
         {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"})
      copy(std::string("sharded/") + name, name);
  }
  void index(const std::string& text) { write_raw(folder_ / "model.safetensors.index.json", text); }
  std::string index_refusal(const std::string& text) {
    index(text);
    return error_of([&] { read_model_weights(folder_.path()); });
  }
};

TEST_F(ModelFolder, Preference) {
  std::string chosen;
  EXPECT_ERROR(read_model_weights(folder_.path()), "no weights there");
  copy("ordered.bin", "pytorch_model.bin");
  EXPECT_EQ(read_model_weights(folder_.path(), &chosen).tensors.count("0.weight"), 1u);
  EXPECT_EQ(chosen, folder_ / "pytorch_model.bin");
  copy("types.safetensors", "model.safetensors");
  EXPECT_EQ(read_model_weights(folder_.path(), &chosen).tensors.count("weight"), 1u);
  EXPECT_EQ(chosen, folder_ / "model.safetensors (preferred to pytorch_model.bin)");
}

TEST_F(ModelFolder, Shards) {
  std::string chosen;
  TensorFile file = read_model_weights(fixture("sharded"), &chosen);
  EXPECT_EQ(file.tensors.size(), 3u);
  EXPECT_TRUE(mentions(chosen, "index.json"));
  EXPECT_TRUE(mentions(file.tensors.at("b").file, "00002"));

  copy_shards();
  const std::string one = "model-00001-of-00002.safetensors",
                    two = "model-00002-of-00002.safetensors";
  auto map = [](const std::string& inside) { return "{\"weight_map\":{" + inside + "}}"; };
  std::string good = fmt::format(R"("a":"{}","b":"{}","c":"{}")", one, two, two);
  index(map(good));
  EXPECT_NO_THROW(read_model_weights(folder_.path()));
  EXPECT_TRUE(
      mentions(index_refusal(map(good + fmt::format(R"(,"d":"{}")", two))), "'d' is not in"));
  EXPECT_TRUE(mentions(index_refusal(map(good + fmt::format(R"(,"a":"{}")", one))), "twice"));
  EXPECT_TRUE(mentions(index_refusal(map(fmt::format(R"("a":"{}","b":"{}")", two, two))), "'a' "));
  EXPECT_TRUE(mentions(index_refusal(map(R"("a":"absent.safetensors")")), "is not there"));
  for (const char* name : {"../x", "/etc/passwd", "a/b", "..", ""})
    EXPECT_TRUE(mentions(index_refusal(map(fmt::format(R"("a":"{}")", name))), "plain file name"))
        << name;
  EXPECT_TRUE(mentions(index_refusal(map(R"("a":5)")), "plain file name"));
  EXPECT_TRUE(mentions(index_refusal("{}"), "weight_map"));
  EXPECT_TRUE(mentions(index_refusal("[]"), "weight_map"));
  EXPECT_TRUE(mentions(index_refusal("{\n\n\"weight_map\""), ":3: not valid JSON"));
  EXPECT_TRUE(mentions(index_refusal(std::string(100, '[')), "deep"));
  EXPECT_TRUE(mentions(index_refusal("{\"a\":1e999}"), "index.json"));
  EXPECT_TRUE(mentions(index_refusal(std::string("{}\0", 3)), "zero byte"));
  write_safetensors(folder_ / one, {{"b", zeros({3}, DType::f32, Device::cpu), {}}},
                    {});  // b is in both now
  EXPECT_TRUE(mentions(index_refusal(map(good)), "'b'"));
}

}  // namespace
}  // namespace moe::testing
