// Checkpoints: whatever fails and whenever the process dies, the newest visible one is complete.
#include "tests/file_support.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

namespace moe::testing {
namespace {

void write_checkpoint(const std::string& run, Index step, float value) {
  CheckpointWriter writer(run, step);
  writer.tensors("model.safetensors", {{"w", full({32}, DType::f32, Device::cpu, value), {}}}, {});
  writer.text("state.json", fmt::format("{{\"value\": {}}}", value));
  writer.commit();
}

// The value that a checkpoint was written with; both files must agree.
float value_of(const CheckpointInfo& info) {
  TensorFile file = read_safetensors(info.directory + "/model.safetensors");
  float value = to_host<float>(to_tensor("w", file.tensors.at("w"), DType::f32, Device::cpu))[7];
  EXPECT_EQ(read_raw(info.directory + "/state.json"), fmt::format("{{\"value\": {}}}", value));
  return value;
}

std::vector<Index> steps(const std::string& run) {
  std::vector<Index> found;
  for (const auto& info : list_checkpoints(run)) found.push_back(info.step);
  return found;
}

TEST(Checkpoint, RoundTrip) {
  TemporaryFolder folder;
  std::string run = folder / "runs/first";
  EXPECT_FALSE(latest_checkpoint(run));
  for (Index step : {9, 10, 100}) write_checkpoint(run, step, static_cast<float>(step));
  EXPECT_EQ(steps(run), (std::vector<Index>{9, 10, 100}));  // by number, not by name
  auto latest = latest_checkpoint(run);
  ASSERT_TRUE(latest);
  EXPECT_EQ(latest->step, 100);
  EXPECT_EQ(latest->directory, run + "/checkpoint-100");
  EXPECT_EQ(value_of(*latest), 100);
  verify_checkpoint(latest->directory);
  std::string manifest = read_raw(latest->directory + "/manifest.json");
  for (const char* part :
       {"\"version\": 1", "\"step\": 100", "\"bytes\":", "\"xxh3\":", "state.json"})
    EXPECT_TRUE(mentions(manifest, part)) << manifest;
}

TEST(Checkpoint, UncommittedIsInvisible) {
  TemporaryFolder folder;
  {
    CheckpointWriter writer(folder.path(), 1);
    writer.text("state.json", "{}");
    EXPECT_FALSE(latest_checkpoint(folder.path()));
    EXPECT_ERROR(writer.text("state.json", "{}"), "twice");
    EXPECT_ERROR(writer.text("manifest.json", "{}"), "cannot hold");
    EXPECT_ERROR(writer.text("../x", "{}"), "cannot hold");
  }
  EXPECT_EQ(files_in(folder.path()), 0u);
  CheckpointWriter writer(folder.path(), 1);
  writer.commit();
  EXPECT_ERROR(writer.commit(), "already committed");
  EXPECT_ERROR(writer.text("x", ""), "already committed");
}

TEST(Checkpoint, DamageIsSkippedAndNamed) {
  TemporaryFolder folder;
  auto damage = [&](const std::function<void(const std::string&)>& action, const std::string& why) {
    std::filesystem::remove_all(folder / "checkpoint-2");
    write_checkpoint(folder.path(), 2, 2);
    action(folder / "checkpoint-2/");
    std::vector<std::string> problems;
    auto latest = latest_checkpoint(folder.path(), &problems);
    ASSERT_TRUE(latest) << why;
    EXPECT_EQ(latest->step, 1) << why;
    ASSERT_EQ(problems.size(), 1u) << why;
    EXPECT_TRUE(mentions(problems[0], "checkpoint-2") && mentions(problems[0], why)) << problems[0];
    EXPECT_EQ(steps(folder.path()), std::vector<Index>{1});
  };
  write_checkpoint(folder.path(), 1, 1);
  auto edit = [](const std::string& path, const std::string& from, const std::string& to) {
    std::string text = read_raw(path);
    auto at = text.find(from);
    ASSERT_NE(at, std::string::npos) << text;
    write_raw(path, text.replace(at, from.size(), to));
  };
  damage([](const std::string& d) { std::filesystem::remove(d + "manifest.json"); },
         "manifest.json");
  damage([](const std::string& d) { std::filesystem::remove(d + "state.json"); }, "state.json");
  damage([](const std::string& d) { std::filesystem::resize_file(d + "model.safetensors", 0); },
         "0 bytes");
  damage([&](const std::string& d) { edit(d + "state.json", "2", "3"); }, "hash");
  damage([](const std::string& d) { write_raw(d + "manifest.json", ""); }, "not valid JSON");
  damage([](const std::string& d) { write_raw(d + "manifest.json", "{}"); }, "not the manifest");
  damage([](const std::string& d) { write_raw(d + "manifest.json", "[]"); }, "not the manifest");
  damage([&](const std::string& d) { edit(d + "manifest.json", "\"step\": 2", "\"step\": 3"); },
         "of step 3");
  damage([&](const std::string& d) { edit(d + "manifest.json", "\"step\": 2", "\"step\": 1e300"); },
         "whole number");
  damage(
      [&](const std::string& d) { edit(d + "manifest.json", "\"version\": 1", "\"version\": 9"); },
      "version 9");
  damage([&](const std::string& d) { edit(d + "manifest.json", "state.json", "../state.json"); },
         "plain file name");
  damage(
      [&](const std::string& d) {
        edit(d + "manifest.json", "\"step\": 2", "\"step\": 2, \"step\": 2");
      },
      "twice");
  damage(
      [](const std::string& d) {
        std::filesystem::remove(d + "state.json");
        std::filesystem::create_directory(d + "state.json");
      },
      "not a regular file");
}

TEST(Checkpoint, OtherNamesAreIgnored) {
  TemporaryFolder folder;
  write_checkpoint(folder.path(), 5, 5);
  for (const char* name : {"checkpoint-007", "checkpoint-", "checkpoint-8x", "checkpoint--9",
                           "checkpoint-9.partial", "checkpoint-99999999999999999999", "other"})
    std::filesystem::copy(folder / "checkpoint-5", folder / name);
  write_raw(folder / "checkpoint-11", "a file");
  std::vector<std::string> problems;
  EXPECT_EQ(latest_checkpoint(folder.path(), &problems)->step, 5);
  EXPECT_TRUE(problems.empty());
}

TEST(Checkpoint, ReplacesTheSameStep) {
  TemporaryFolder folder;
  write_checkpoint(folder.path(), 1, 1);
  write_checkpoint(folder.path(), 1, 2);
  EXPECT_EQ(value_of(*latest_checkpoint(folder.path())), 2);
  EXPECT_EQ(files_in(folder.path()), 1u);
}

TEST(Checkpoint, Prune) {
  TemporaryFolder folder;
  for (Index step = 1; step <= 6; ++step)
    write_checkpoint(folder.path(), step, static_cast<float>(step));
  std::filesystem::copy(folder / "checkpoint-2", folder / "checkpoint-2.partial");
  write_raw(folder / "checkpoint-6/state.json", "damaged");
  prune_checkpoints(folder.path(), 2, {1, 3});
  EXPECT_EQ(steps(folder.path()), (std::vector<Index>{1, 3, 4, 5}));
  EXPECT_FALSE(directory_exists(folder / "checkpoint-2"));
  EXPECT_FALSE(directory_exists(folder / "checkpoint-2.partial"));
  EXPECT_ERROR(prune_checkpoints(folder.path(), 0, {}), "at least one");
}

class CheckpointFaults : public ::testing::TestWithParam<FaultKind> {};

// An error at any call: the checkpoint before stays readable, and the next attempt succeeds.
TEST_P(CheckpointFaults, ErrorsLeaveCompleteCheckpoints) {
  bool harmless = GetParam() == FaultKind::interrupt || GetParam() == FaultKind::short_write;
  for (bool replace : {false, true}) {
    Index step = replace ? 1 : 2;
    bool reached = true;
    for (int call = 1; reached; ++call) {
      TemporaryFolder folder;
      write_checkpoint(folder.path(), 1, 1);
      bool failed = false;
      {
        Faults faults(GetParam(), call);
        try {
          write_checkpoint(folder.path(), step, 2);
        } catch (const Error& error) {
          failed = true;
          EXPECT_EQ(error.fault(), Fault::io) << error.what();
        }
        reached = faults.reached();
      }
      EXPECT_EQ(failed, reached && !harmless) << call;
      auto latest = latest_checkpoint(folder.path());
      ASSERT_TRUE(latest) << call;
      float value = value_of(*latest);
      EXPECT_TRUE(value == 2 || (failed && value == 1)) << call;
      write_checkpoint(folder.path(), step, 3);
      EXPECT_EQ(value_of(*latest_checkpoint(folder.path())), 3) << call;
      EXPECT_EQ(files_in(folder.path()), replace ? 1u : 2u) << call;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, CheckpointFaults,
                         ::testing::Values(FaultKind::short_write, FaultKind::interrupt,
                                           FaultKind::input_output, FaultKind::disk_full));

// The process dies before, within or after any call: afterwards there is a complete checkpoint, the
// old or the new.
TEST(Checkpoint, DeathAtEveryCall) {
  for (bool replace : {false, true}) {
    Index step = replace ? 1 : 2;
    for (FaultKind kind : {FaultKind::exit_before, FaultKind::exit_half, FaultKind::exit_after}) {
      bool finished = false;
      bool seen_old = false, seen_new = false;
      for (int call = 1; !finished; ++call) {
        TemporaryFolder folder;
        write_checkpoint(folder.path(), 1, 1);
        pid_t child = fork();
        ASSERT_GE(child, 0);
        if (child == 0) {
          Faults faults(kind, call);
          try {
            write_checkpoint(folder.path(), step, 2);
          } catch (...) {
            _exit(2);
          }
          _exit(faults.reached() ? 0 : 1);
        }
        int status = 0;
        ASSERT_EQ(waitpid(child, &status, 0), child);
        ASSERT_TRUE(WIFEXITED(status));
        ASSERT_LE(WEXITSTATUS(status), 1);
        finished = WEXITSTATUS(status) == 1;
        std::vector<std::string> problems;
        auto latest = latest_checkpoint(folder.path(), &problems);
        ASSERT_TRUE(latest) << call;
        EXPECT_TRUE(problems.empty()) << problems[0];  // nothing half-made is visible
        float value = value_of(*latest);
        EXPECT_TRUE(value == 2 || value == 1) << call;
        (value == 1 ? seen_old : seen_new) = true;
        EXPECT_TRUE(!finished || value == 2);
        write_checkpoint(folder.path(), step, 3);
        EXPECT_EQ(value_of(*latest_checkpoint(folder.path())), 3) << call;
        EXPECT_EQ(files_in(folder.path()), replace ? 1u : 2u) << call;
      }
      EXPECT_TRUE(seen_old && seen_new);
    }
  }
}

// The same for pruning, whose only step that is not atomic is hidden behind a rename.
TEST(Checkpoint, DeathWhilePruning) {
  for (int call = 1; call <= 8; ++call) {
    TemporaryFolder folder;
    for (Index step = 1; step <= 3; ++step)
      write_checkpoint(folder.path(), step, static_cast<float>(step));
    pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      Faults faults(FaultKind::exit_after, call);
      prune_checkpoints(folder.path(), 1, {});
      _exit(0);
    }
    ASSERT_EQ(waitpid(child, nullptr, 0), child);
    std::vector<std::string> problems;
    list_checkpoints(folder.path(), &problems);
    EXPECT_TRUE(problems.empty());
    prune_checkpoints(folder.path(), 1, {});
    EXPECT_EQ(steps(folder.path()), std::vector<Index>{3});
    EXPECT_EQ(files_in(folder.path()), 1u);
  }
}

}  // namespace
}  // namespace moe::testing
