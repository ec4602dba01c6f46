// .npy: numpy's layout, resumable writing, refusal of everything that is no plain matrix.
#include "tools/npy.h"

#include "tests/file_support.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstring>

namespace moe::testing {
namespace {

std::string npy(const std::string& header, const std::string& data) {
  auto length = static_cast<std::uint16_t>(header.size());
  return std::string("\x93NUMPY\1\0", 8) + std::string(reinterpret_cast<const char*>(&length), 2) +
         header + data;
}
std::vector<float> all_rows(const std::string& path) {
  NpyFile file(path);
  std::vector<float> values(static_cast<std::size_t>(file.rows() * file.cols()));
  file.read_rows(0, file.rows(), values.data());
  return values;
}
std::vector<float> counted(std::size_t count) {
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = static_cast<float>(i) / 2;
  return values;
}

class Npy : public ::testing::Test {
 protected:
  std::string path() const { return folder_ / "x.npy"; }
  std::string refusal(const std::string& bytes) {
    write_raw(path(), bytes);
    std::string message = error_of([&] { NpyFile file(path()); });
    EXPECT_TRUE(mentions(message, "x.npy")) << message;
    return message;
  }
  TemporaryFolder folder_;
};

TEST_F(Npy, WritesAsNumpyDoes) {
  auto values = counted(6);
  write_npy(path(), values.data(), 3, 2);
  std::string bytes = read_raw(path());
  EXPECT_EQ(bytes.size(), 128u + 24u);
  EXPECT_TRUE(mentions(bytes, "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }"));
  EXPECT_EQ(bytes[127], '\n');
  NpyFile file(path());
  EXPECT_EQ(file.rows(), 3);
  EXPECT_EQ(file.cols(), 2);
  auto rows = file.floats();
  ASSERT_TRUE(rows);
  EXPECT_EQ((*rows)[2][1], 2.5f);
  EXPECT_EQ(all_rows(path()), values);
  std::vector<float> middle(2);
  file.read_rows(1, 2, middle.data());
  EXPECT_EQ(middle, (std::vector<float>{1, 1.5}));
  EXPECT_ERROR(file.read_rows(1, 4, middle.data()), "rows 1..4 of 3");
  write_npy(path(), nullptr, 0, 2);
  EXPECT_EQ(NpyFile(path()).rows(), 0);
}

TEST_F(Npy, ReadsOtherTypesAndForms) {
  write_raw(path(), npy("{'descr': '<f2', 'fortran_order': False, 'shape': (2,), }\n",
                        {"\x00\x3c\x00\xc0", 4}));
  EXPECT_EQ(all_rows(path()), (std::vector<float>{1, -2}));
  EXPECT_EQ(NpyFile(path()).cols(), 1);
  EXPECT_FALSE(NpyFile(path()).floats());
  write_raw(path(), npy("{\"shape\":(1,2),\"descr\":\"|i1\",\"fortran_order\":False}", "\xff\x05"));
  EXPECT_EQ(all_rows(path()), (std::vector<float>{-1, 5}));
  write_raw(path(), npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1, 2)}", "\xff\x05"));
  EXPECT_EQ(all_rows(path()), (std::vector<float>{255, 5}));
  // Data that is not aligned is read, but not lent.
  write_raw(path(),
            npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1)}", {"\0\0\x80\x3f", 4}));
  EXPECT_FALSE(NpyFile(path()).floats());
  EXPECT_EQ(all_rows(path()), std::vector<float>{1});
}

TEST_F(Npy, Refusals) {
  auto header = [&](const std::string& text, const std::string& data = std::string(4, '\0')) {
    return refusal(npy(text, data));
  };
  auto with = [&](const std::string& descr, const std::string& order, const std::string& shape) {
    return header(
        fmt::format("{{'descr': {}, 'fortran_order': {}, 'shape': {}, }}\n", descr, order, shape));
  };
  EXPECT_TRUE(mentions(with("'|O'", "False", "(1,)"), "pickle"));
  EXPECT_TRUE(mentions(with("[('a', '<f4')]", "False", "(1,)"), "records"));
  EXPECT_TRUE(mentions(with("'>f4'", "False", "(1,)"), "element type '>f4'"));
  EXPECT_TRUE(mentions(with("'<f8'", "False", "(1,)"), "element type '<f8'"));
  EXPECT_TRUE(mentions(with("'<f4'", "True", "(1,)"), "Fortran"));
  EXPECT_TRUE(mentions(with("'<f4'", "0", "(1,)"), "'False' expected"));
  EXPECT_TRUE(mentions(with("'<f4'", "False", "(1, 1, 1)"), "two dimensions"));
  EXPECT_TRUE(mentions(with("'<f4'", "False", "()"), "no dimension"));
  EXPECT_TRUE(mentions(with("'<f4'", "False", "(-1,)"), "a size expected"));
  EXPECT_TRUE(mentions(with("'<f4'", "False", "(2,)"), "does not fit"));
  EXPECT_TRUE(mentions(with("'<f4'", "False", "(0,)"), "does not fit"));
  EXPECT_TRUE(mentions(with("'<f4'", "False", "(4294967296, 4294967296)"), "does not fit"));
  EXPECT_TRUE(mentions(with("'<f4'", "False", "(4611686018427387905,)"), "a size expected"));
  EXPECT_TRUE(mentions(with("'<f4'", "False", "(99999999999999999999,)"), "a size expected"));
  EXPECT_TRUE(mentions(with("'<f4'", "False", "(1"), "expected"));
  EXPECT_TRUE(mentions(header("{}"), "missing"));
  EXPECT_TRUE(mentions(header(""), "expected"));
  EXPECT_TRUE(mentions(header("{'descr': '<f4', 'descr': '<f4'}"), "unexpected key"));
  EXPECT_TRUE(mentions(header("{'x': 1}"), "unexpected key"));
  EXPECT_TRUE(mentions(header("{'descr"), "a text expected"));
  EXPECT_TRUE(
      mentions(header("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)} x"), "follows"));
  EXPECT_TRUE(mentions(refusal("PK\3\4......"), "not an npy file"));
  EXPECT_TRUE(mentions(refusal(std::string("\x93NUMPY\2\0\0\0\0\0", 12)), "version 2.0"));
  EXPECT_ERROR(NpyWriter(folder_ / "x", 0), "columns");
  EXPECT_ERROR(NpyWriter("/dev/null", 1), "not a regular file");
}

TEST_F(Npy, DamageIsAnError) {
  auto values = counted(6);
  write_npy(path(), values.data(), 3, 2);
  std::string bytes = read_raw(path());
  for (std::size_t size = 0; size < bytes.size(); ++size) refusal(bytes.substr(0, size));
  for (std::size_t i = 0; i < 128 * 8; ++i) {
    std::string copy = bytes;
    copy[i / 8] = static_cast<char>(copy[i / 8] ^ (1 << (i % 8)));
    write_raw(path(), copy);
    try {
      all_rows(path());
    } catch (const Error&) {
    }
  }
}

TEST_F(Npy, StreamsAndResumes) {
  auto values = counted(20);
  {
    NpyWriter writer(path(), 4, true);  // nothing there yet
    EXPECT_EQ(writer.rows(), 0);
    writer.append(values.data(), 2);
    writer.save();
    writer.append(values.data() + 8, 2);  // lost: never saved
    EXPECT_FALSE(file_exists(path()));
  }
  EXPECT_ERROR(NpyWriter(path(), 5, true), "5 columns");
  {
    NpyWriter writer(path(), 4, true);
    EXPECT_EQ(writer.rows(), 2);
    writer.append(values.data() + 8, 3);
    writer.finish();
    EXPECT_ERROR(writer.append(values.data(), 1), "already finished");
  }
  EXPECT_EQ(all_rows(path()), values);
  EXPECT_EQ(files_in(folder_.path()), 1u);
  // Not resuming starts again, and fewer rows than before leave no tail.
  NpyWriter writer(path(), 4);
  writer.append(values.data(), 1);
  writer.finish();
  EXPECT_EQ(NpyFile(path()).rows(), 1);

  write_raw(path() + ".partial", "garbage");
  EXPECT_ERROR(NpyWriter(path(), 4, true), "Delete it");
  std::string saved = read_raw(path());
  write_raw(path() + ".partial", saved.substr(0, saved.size() - 1));
  EXPECT_ERROR(NpyWriter(path(), 4, true), "shorter");
}

TEST_F(Npy, FaultsLoseNothingSaved) {
  auto values = counted(12);
  for (FaultKind kind : {FaultKind::short_write, FaultKind::interrupt, FaultKind::input_output,
                         FaultKind::disk_full}) {
    bool reached = true;
    for (int call = 1; reached; ++call) {
      TemporaryFolder folder;
      std::string target = folder / "x.npy";
      {
        Faults faults(kind, call);
        try {
          NpyWriter writer(target, 4);
          writer.append(values.data(), 1);
          writer.save();
          writer.append(values.data() + 4, 2);
          writer.finish();
        } catch (const Error& error) {
          EXPECT_EQ(error.fault(), Fault::io);
        }
        reached = faults.reached();
      }
      if (!file_exists(target)) {
        NpyWriter writer(target, 4, true);
        writer.append(values.data() + 4 * writer.rows(), 3 - writer.rows());
        writer.finish();
      }
      EXPECT_EQ(all_rows(target), values) << call;
    }
  }
}

}  // namespace
}  // namespace moe::testing
