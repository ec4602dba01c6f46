// pytorch_model.bin: archives of torch.save are read exactly, hostile ones are errors.
#include "runtime/unpickle.h"
#include "runtime/zip.h"
#include "tests/file_support.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstring>

namespace moe::testing {
namespace {

float fixture_value(std::size_t i) {
  return static_cast<float>(i % 17) / 4 - 2;
}

std::vector<float> floats(const TensorFile& file, const std::string& name) {
  return to_host<float>(to_tensor(name, file.tensors.at(name), DType::f32, Device::cpu));
}
std::vector<float> fixture_values(const std::vector<std::size_t>& indices) {
  std::vector<float> values;
  for (std::size_t i : indices) values.push_back(fixture_value(i));
  return values;
}
std::vector<std::size_t> up_to(std::size_t count) {
  std::vector<std::size_t> indices(count);
  for (std::size_t i = 0; i < count; ++i) indices[i] = i;
  return indices;
}

template <class T>
std::string little(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

struct Packed {
  std::string name, data;
};
// A ZIP of STORED entries with right checksums, so that changes reach the code behind the checksum.
std::string zip_of(const std::vector<Packed>& entries) {
  std::string file, directory;
  for (const Packed& one : entries) {
    std::uint32_t checksum = zip_checksum(std::as_bytes(std::span(one.data)));
    auto size = static_cast<std::uint32_t>(one.data.size());
    std::string middle = little<std::uint16_t>(0) + little<std::uint16_t>(0) +
                         little<std::uint32_t>(0) + little(checksum) + little(size) + little(size) +
                         little(static_cast<std::uint16_t>(one.name.size())) +
                         little<std::uint16_t>(0);
    directory += "PK\1\2" + little<std::uint16_t>(20) + little<std::uint16_t>(20) + middle +
                 std::string(10, '\0') + little(static_cast<std::uint32_t>(file.size())) + one.name;
    file += "PK\3\4" + little<std::uint16_t>(20) + middle + one.name + one.data;
  }
  auto count = static_cast<std::uint16_t>(entries.size());
  return file + directory + "PK\5\6" + std::string(4, '\0') + little(count) + little(count) +
         little(static_cast<std::uint32_t>(directory.size())) +
         little(static_cast<std::uint32_t>(file.size())) + std::string(2, '\0');
}

// Pieces of pickle programs.
std::string text(const std::string& value) {
  return "X" + little(static_cast<std::uint32_t>(value.size())) + value;
}
std::string number(std::int64_t value) {
  return "\x8a\x08" + little(value);
}
std::string storage(const std::string& type, std::int64_t elements, const std::string& key = "0") {
  return "(" + text("storage") + "ctorch\n" + type + "\n" + text(key) + text("cpu") +
         number(elements) + "tQ";
}
std::string tensor(const std::string& of, std::int64_t offset,
                   const std::vector<std::int64_t>& sizes,
                   const std::vector<std::int64_t>& strides) {
  std::string program = "ctorch._utils\n_rebuild_tensor_v2\n(" + of + number(offset) + "(";
  for (std::int64_t size : sizes) program += number(size);
  program += "t(";
  for (std::int64_t stride : strides) program += number(stride);
  return program +
         "t\x89"
         "ccollections\nOrderedDict\n)RtR";
}
std::string dict(const std::string& items) {
  return "\x80\x02}(" + items + "u.";
}

class PytorchBin : public ::testing::Test {
 protected:
  std::string path() const { return folder_ / "x.bin"; }
  TensorFile read(const std::string& bytes) {
    write_raw(path(), bytes);
    return read_pytorch_bin(path());
  }
  std::string refusal(const std::string& bytes) {
    std::string message = error_of([&] { read(bytes); });
    EXPECT_TRUE(mentions(message, "x.bin")) << message;
    return message;
  }
  static std::string archive(const std::string& program,
                             const std::string& data = std::string(16, '\0')) {
    return zip_of({{"x/data.pkl", program}, {"x/data/0", data}});
  }
  std::string program_refusal(const std::string& program) { return refusal(archive(program)); }
  TemporaryFolder folder_;
};

TEST_F(PytorchBin, StateDicts) {
  TensorFile file = read_pytorch_bin(fixture("ordered.bin"));
  EXPECT_EQ(file.tensors.size(), 4u);
  EXPECT_EQ(file.tensors.at("0.weight").shape, (std::vector<Index>{2, 3}));
  EXPECT_EQ(floats(file, "0.weight"), fixture_values(up_to(6)));
  EXPECT_EQ(floats(file, "1.bias"), fixture_values(up_to(2)));
  file = read_pytorch_bin(fixture("parameter.bin"));
  EXPECT_EQ(floats(file, "weight"), fixture_values(up_to(6)));
  EXPECT_EQ(floats(file, "frozen"), fixture_values(up_to(4)));
  file = read_pytorch_bin(fixture("nested.bin"));
  EXPECT_EQ(file.tensors.size(), 1u);
  EXPECT_EQ(floats(file, "a"), fixture_values(up_to(5)));
  EXPECT_EQ(floats(read_pytorch_bin(fixture("zipped_by_python.bin")), "weight"),
            fixture_values(up_to(8)));
}

TEST_F(PytorchBin, Types) {
  TensorFile file = read_pytorch_bin(fixture("types.bin"));
  for (const char* name : {"f32", "f16", "bf16", "f64"})
    EXPECT_EQ(floats(file, name), fixture_values(up_to(5))) << name;
  for (const char* name : {"i64", "i32", "i16", "i8", "u8"})
    EXPECT_EQ(
        to_host<std::int64_t>(to_tensor(name, file.tensors.at(name), DType::i64, Device::cpu)),
        (std::vector<std::int64_t>{0, 1, 2, 3, 4}))
        << name;
  EXPECT_EQ(file.tensors.at("bool").dtype, "BOOL");
  EXPECT_TRUE(file.tensors.at("scalar").shape.empty());
  EXPECT_EQ(floats(file, "scalar"), std::vector<float>{2.5});
  EXPECT_EQ(file.tensors.at("empty").shape, (std::vector<Index>{0, 3}));
}

TEST_F(PytorchBin, ViewsBecomeDense) {
  TensorFile file = read_pytorch_bin(fixture("views.bin"));
  EXPECT_EQ(floats(file, "whole"), fixture_values(up_to(24)));
  EXPECT_EQ(floats(file, "rows"), fixture_values({6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17}));
  EXPECT_EQ(file.tensors.at("rows").data, file.tensors.at("whole").data + 6 * 4);  // no copy
  EXPECT_EQ(file.tensors.at("tied").data, file.tensors.at("whole").data);
  EXPECT_EQ(floats(file, "columns"), fixture_values({2, 3, 4, 8, 9, 10, 14, 15, 16, 20, 21, 22}));
  EXPECT_EQ(floats(file, "every_second"), fixture_values({0, 3, 12, 15}));
  std::vector<std::size_t> transposed, cube;
  for (std::size_t c = 0; c < 6; ++c)
    for (std::size_t r = 0; r < 4; ++r) transposed.push_back(r * 6 + c);
  for (std::size_t k = 0; k < 4; ++k)
    for (std::size_t i = 0; i < 6; ++i) cube.push_back(i * 4 + k);
  EXPECT_EQ(floats(file, "transposed"), fixture_values(transposed));
  EXPECT_EQ(floats(file, "cube"), fixture_values(cube));
  Tensor survivor = to_tensor("cube", file.tensors.at("cube"), DType::f32, Device::cpu);
  file = {};  // the copy belongs to the tensor
  EXPECT_EQ(to_host<float>(survivor), fixture_values(cube));
}

TEST_F(PytorchBin, RefusedByName) {
  struct Case {
    const char *file, *why;
  };
  const Case cases[] = {
      {"bad_command.bin", "system' is not allowed"},
      {"bad_expanded.bin", "expanded view"},
      {"bad_float8.bin", "_rebuild_tensor_v3"},
      {"bad_protocol.bin", "protocol 4"},
      {"bad_legacy.bin", "plain pickle"},
      {"bad_list.bin", "not a dict"},
      {"bad_entry.bin", "'step' is not a tensor"},
      {"bad_compressed.bin", "compressed"},
      {"bad_big_endian.bin", "big-endian"},
  };
  for (const Case& one : cases) {
    std::string message = error_of([&] { read_pytorch_bin(fixture(one.file)); });
    EXPECT_TRUE(mentions(message, one.why)) << message;
    EXPECT_TRUE(mentions(message, one.file)) << message;
  }
  std::string message = error_of([] { read_pytorch_bin(fixture("bad_command.bin")); });
  EXPECT_TRUE(mentions(message, "data.pkl @ byte") && mentions(message, "opcode 0x63")) << message;
}

TEST_F(PytorchBin, HandMade) {
  std::string data = little(1.5f) + little(2.5f) + little(3.5f) + little(4.5f);
  std::string four = storage("FloatStorage", 4);
  TensorFile file = read(archive(dict(text("a") + tensor(four, 1, {3}, {1}) + text("b") +
                                      tensor(four, 3, {1, 1}, {INT64_MAX, INT64_MAX})),
                                 data));
  EXPECT_EQ(floats(file, "a"), (std::vector<float>{2.5, 3.5, 4.5}));
  EXPECT_EQ(floats(file, "b"), std::vector<float>{4.5});
  // A dimension of one may have any stride, beside one that makes a copy necessary.
  file = read(archive(dict(text("a") + tensor(four, 0, {2, 1, 2}, {1, INT64_MAX, 2})), data));
  EXPECT_EQ(floats(file, "a"), (std::vector<float>{1.5, 3.5, 2.5, 4.5}));
  EXPECT_TRUE(read(archive("\x80\x02}.")).tensors.empty());
}

TEST_F(PytorchBin, ViewsOutsideTheStorage) {
  std::string four = storage("FloatStorage", 4);
  auto one = [&](std::int64_t offset, const std::vector<std::int64_t>& sizes,
                 const std::vector<std::int64_t>& strides) {
    return program_refusal(dict(text("a") + tensor(four, offset, sizes, strides)));
  };
  EXPECT_TRUE(mentions(one(1, {4}, {1}), "beyond its storage"));
  EXPECT_TRUE(mentions(one(4, {1}, {1}), "beyond its storage"));
  EXPECT_TRUE(mentions(one(5, {0}, {1}), "beyond its storage"));
  EXPECT_TRUE(mentions(one(0, {2, 2}, {3, 1}), "beyond its storage"));
  EXPECT_TRUE(mentions(one(0, {2}, {INT64_MAX}), "beyond its storage"));
  EXPECT_TRUE(mentions(one(0, {INT64_MAX, INT64_MAX}, {0, 0}), "beyond its storage"));
  EXPECT_TRUE(mentions(one(0, {5}, {0}), "expanded"));
  EXPECT_TRUE(mentions(one(0, {std::int64_t{1} << 40}, {0}), "expanded"));
  EXPECT_TRUE(mentions(one(-1, {1}, {1}), "offset -1"));
  EXPECT_TRUE(mentions(one(0, {-1}, {1}), "negative"));
  EXPECT_TRUE(mentions(one(0, {1}, {-1}), "negative"));
  EXPECT_TRUE(mentions(one(0, {1, 1}, {1}), "ranks"));
  EXPECT_TRUE(mentions(one(0, std::vector<std::int64_t>(17, 1), std::vector<std::int64_t>(17, 1)),
                       "17 dimensions"));
  auto with = [&](const std::string& of) {
    return program_refusal(dict(text("a") + tensor(of, 0, {1}, {1})));
  };
  EXPECT_TRUE(mentions(with(storage("FloatStorage", 5)), "promised"));
  EXPECT_TRUE(mentions(with(storage("DoubleStorage", 4)), "promised"));
  EXPECT_TRUE(mentions(with(storage("DoubleStorage", INT64_MAX)), "promised"));
  EXPECT_TRUE(mentions(with(storage("FloatStorage", -4)), "-4 elements"));
  EXPECT_TRUE(mentions(with(storage("FloatStorage", 4, "1")), "missing"));
  EXPECT_TRUE(mentions(with(storage("FloatStorage", 4, "../0")), "missing"));
  EXPECT_TRUE(mentions(with(storage("ComplexFloatStorage", 2)), "not allowed"));
}

TEST_F(PytorchBin, Programs) {
  std::string good = tensor(storage("FloatStorage", 4), 0, {4}, {1});
  const std::string start = "\x80\x02";
  struct Case {
    std::string program;
    const char* why;
  };
  const Case cases[] = {
      {"", "data ends"},
      {start, "data ends"},
      {start + "}", "data ends"},
      {start + ".", "0 values"},
      {start + "}}.", "2 values"},
      {start + "}(.", "left over"},
      {start + "}.x", "1 bytes follow"},
      {start + "}u.", "no mark"},
      {start + "(" + text("a") + "u.", "stack is empty"},  // no dict under the mark
      {start + "}(" + text("a") + "u.", "key without"},
      {start + "s.", "stack is empty"},
      {start + "h\7.", "memo 7"},
      {start + "q\3.", "stack is empty"},
      {start + "}(q\1.", "stack is empty"},  // below the mark
      {start + "]" + text("a") + number(1) + "s.", "not a dict"},
      {start + "}" + number(1) + "a.", "not a list"},
      {start + "cos\nsystem\n" + text("ls") + "\x85R.", "'os.system' is not allowed"},
      {start + "cbuiltins\neval\n.", "'builtins.eval' is not allowed"},
      {start + "c" + std::string(300, 'a') + "\n\n.", "256 bytes"},
      {start + "ctorch\nFloatStorage\n)R.", "storage type is called"},
      {start + "ccollections\nOrderedDict\n(" + number(1) + "tR.", "with arguments"},
      {start + "ccollections\nOrderedDict\n}R.", "tuple of arguments"},
      {start + "}" + ")R.", "known name"},
      {start + "}" + number(1) + "b.", "dict of attributes"},
      {start + good + "}b.", "OrderedDict"},
      {start + "ctorch._utils\n_rebuild_tensor_v2\n)R.", "0 parts"},
      {start + "ctorch._utils\n_rebuild_parameter\n)R.", "0 parts"},
      {start + "ctorch._utils\n_rebuild_parameter\n(}}}tR.", "a tensor expected"},
      {start + ")Q.", "0 parts"},
      {start + "X" + little<std::uint32_t>(0xFFFFFFFF) + ".", "text of 4294967295"},
      {start + "X" + little<std::uint32_t>(1000) + ".", "data ends"},
      {start + "\x8a\x09" + std::string(9, '\1') + ".", "9 bytes"},
      {start + "(ios\nsystem\n.", "opcode 0x69"},
      {start + "}\x81.", "opcode 0x81"},
      {start + "}\x92.", "opcode 0x92"},
      {start + "\x93.", "opcode 0x93"},
      {start + "\x82\1.", "opcode 0x82"},
      {start + "P0\n.", "opcode 0x50"},
      {start + "}2.", "opcode 0x32"},
      {std::string("\x80\x05\x95", 3), "protocol 5"},
      {dict(number(1) + good), "not a text"},
      {dict(text("a") + good + text("a") + good), "twice"},
      {dict(text(std::string(5000, 'n')) + good), "5000 bytes"},
  };
  for (const Case& one : cases) {
    std::string message = program_refusal(one.program);
    EXPECT_TRUE(mentions(message, one.why)) << one.program << "\n" << message;
  }
}

// Time, memory and stack stay small whatever a program does in its 32 MiB.
TEST_F(PytorchBin, HugePrograms) {
  const std::string start = "\x80\x02";
  EXPECT_TRUE(mentions(program_refusal(start + std::string(33 << 20, 'N')), "limit"));
  EXPECT_TRUE(
      mentions(program_refusal(start + std::string(2'000'000, 'N')), "more than 1000000 values"));
  EXPECT_TRUE(mentions(program_refusal(start + std::string(2'000'000, '(')), "data ends"));
  std::string nested = start + ")" + std::string(900'000, '\x85') + ".";  // ((((...
  EXPECT_TRUE(mentions(program_refusal(nested), "not a dict"));
  std::string memos = start + "N";
  for (std::uint32_t i = 0; i < 1'000'001; ++i) memos += "r" + little(i);
  EXPECT_TRUE(mentions(program_refusal(memos), "memos"));
  std::string wide = start + "(" + std::string(900'000, 'N') +
                     "tq\1"
                     "ctorch._utils\n_rebuild_tensor_v2\nq\2";
  for (int i = 0; i < 1000; ++i) wide += "h\2h\1R";
  EXPECT_TRUE(mentions(program_refusal(wide), "900000 parts"));
  std::string itself = start + "}q\1" + text("a") + "h\1s.";  // a dict inside itself
  EXPECT_TRUE(mentions(program_refusal(itself), "not a tensor"));
}

TEST_F(PytorchBin, Archives) {
  const std::string program = "\x80\x02}.";
  auto with = [&](const std::string& name) {
    return refusal(zip_of({{"x/data.pkl", program}, {name, "1"}}));
  };
  EXPECT_TRUE(mentions(with("x/data.pkl"), "twice"));
  for (const char* name : {"x/../y", "/x", "x//y", "x/", "..", "x\\y", "x/a\nb", ""})
    EXPECT_TRUE(mentions(with(name), "not allowed")) << name;
  EXPECT_TRUE(mentions(with("y/data"), "two folders"));
  EXPECT_TRUE(mentions(with("data"), "outside the archive"));
  EXPECT_TRUE(mentions(with("x/constants.pkl"), "TorchScript"));
  EXPECT_TRUE(mentions(refusal(zip_of({{"x/other", "1"}})), "no data.pkl"));
  EXPECT_TRUE(mentions(refusal(zip_of({})), "not a zip"));
  EXPECT_TRUE(mentions(refusal(""), "not a zip"));
  EXPECT_TRUE(mentions(refusal("PK\3\4"), "too few"));

  const std::string good = archive(program);
  EXPECT_NO_THROW(read(good));
  EXPECT_TRUE(mentions(refusal(good + "x"), "directory here"));
  EXPECT_TRUE(mentions(refusal(good.substr(1)), "not a zip"));
  auto end = good.size() - 22, directory = good.find("PK\1\2");
  auto changed = [&](std::size_t at, const std::string& bytes) {
    std::string copy = good;
    return refusal(copy.replace(at, bytes.size(), bytes));
  };
  EXPECT_TRUE(mentions(changed(end + 4, "\1"), "disks"));
  EXPECT_TRUE(mentions(changed(end + 8, "\7"), "counts"));
  EXPECT_TRUE(mentions(changed(end + 8, "\7" + std::string(1, '\0') + "\7"), "do not fit"));
  EXPECT_TRUE(mentions(changed(end + 12, "\1"), "does not end here"));
  EXPECT_TRUE(mentions(changed(end + 20, "\1"), "comment"));
  EXPECT_TRUE(mentions(changed(directory + 8, "\1"), "encrypted"));
  EXPECT_TRUE(mentions(changed(directory + 10, "\x08"), "compressed"));
  EXPECT_TRUE(mentions(changed(directory + 20, "\1"), "two sizes"));
  EXPECT_TRUE(mentions(changed(directory + 20, std::string(8, '\xff')), "zip64 field is missing"));
  EXPECT_TRUE(mentions(changed(directory + 42, "\1"), "no local header"));
  EXPECT_TRUE(mentions(changed(directory + 30, "\1"), "cut off"));
  EXPECT_TRUE(mentions(changed(18, "\1"), "another size"));
  EXPECT_TRUE(mentions(changed(30, "y"), "differs from the directory"));
  EXPECT_TRUE(mentions(changed(good.find(program) + 2, "]"), "CRC"));
  // Two directory entries of one local header.
  std::string twice = zip_of({{"x/data.pkl", program}, {"x/data.pkm", program}});
  auto second = twice.rfind("PK\1\2");
  twice.replace(second + 42, 4, little<std::uint32_t>(0));
  EXPECT_TRUE(mentions(refusal(twice), "overlaps"));
}

// Reads every tensor, if there is a way to.
void read_all(const std::string& path) {
  try {
    TensorFile file = read_pytorch_bin(path);
    for (const auto& [name, entry] : file.tensors) {
      content_hash({entry.data, entry.bytes});
      to_tensor(name, entry, DType::f64, Device::cpu);
    }
  } catch (const Error& error) {
    EXPECT_TRUE(mentions(error.what(), path)) << error.what();
  }
}

TEST_F(PytorchBin, TruncationAtEveryByte) {
  for (const char* name : {"parameter.bin", "zipped_by_python.bin"}) {
    std::string bytes = read_raw(fixture(name));
    for (std::size_t size = 0; size < bytes.size(); ++size) refusal(bytes.substr(0, size));
  }
}

TEST_F(PytorchBin, BitFlipsAnywhere) {
  std::string bytes = read_raw(fixture("parameter.bin"));
  for (std::size_t i = 0; i < bytes.size() * 8; ++i) {
    std::string copy = bytes;
    copy[i / 8] = static_cast<char>(copy[i / 8] ^ (1 << (i % 8)));
    write_raw(path(), copy);
    read_all(path());
  }
}

// With a right checksum around it, so that the interpreter sees the damage.
TEST_F(PytorchBin, BitFlipsAndCutsInTheProgram) {
  MappedFile source(fixture("parameter.bin"));
  std::vector<Packed> entries;
  for (const ZipEntry& entry : read_stored_zip(source))
    entries.push_back(
        {entry.name, {reinterpret_cast<const char*>(entry.data.data()), entry.data.size()}});
  std::size_t at = 0;
  while (!entries[at].name.ends_with("data.pkl")) ++at;
  const std::string program = entries[at].data;
  write_raw(path(), zip_of(entries));
  EXPECT_EQ(read_pytorch_bin(path()).tensors.size(), 2u);
  for (std::size_t i = 0; i < program.size() * 8; ++i) {
    entries[at].data = program;
    entries[at].data[i / 8] = static_cast<char>(program[i / 8] ^ (1 << (i % 8)));
    write_raw(path(), zip_of(entries));
    read_all(path());
  }
  for (std::size_t size = 0; size < program.size(); ++size) {
    entries[at].data = program.substr(0, size);
    EXPECT_TRUE(mentions(refusal(zip_of(entries)), "data ends"));
  }
  // Every opcode at every place.
  for (std::size_t i = 2; i < program.size(); ++i)
    for (int opcode = 0; opcode < 256; opcode += 3) {
      entries[at].data = program;
      entries[at].data[i] = static_cast<char>(opcode);
      try {
        unpickle(std::as_bytes(std::span(entries[at].data)), "x");
      } catch (const Error&) {
      }
    }
}

TEST(Zip, ChecksumIsStandard) {
  std::string text = "123456789";  // the check value of CRC-32/ISO-HDLC
  EXPECT_EQ(zip_checksum(std::as_bytes(std::span(text))), 0xCBF43926u);
  EXPECT_EQ(zip_checksum({}), 0u);
}

}  // namespace
}  // namespace moe::testing
