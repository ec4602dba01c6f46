// The house rules, read off the source tree: who may include whom, where OpenMP and assembly stand,
// what headers must not do, no paths of somebody's machine. Prints line counts; does not police
// them.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;

struct Source {
  std::string path;  // from the root: "ops/linear.cc"
  std::vector<std::string> lines;
  std::string folder() const { return path.substr(0, path.find('/')); }
  bool is_header() const { return path.ends_with(".h") || path.ends_with(".cuh"); }
};

const std::vector<std::string> folders = {"runtime", "cpu",   "cuda",  "ops",
                                          "models",  "tools", "tests", "bench"};

bool is_source(const fs::path& path) {
  static const std::set<std::string> endings = {".h", ".cc", ".cu", ".cuh"};
  return endings.contains(path.extension().string());
}

const std::vector<Source>& sources() {
  static const std::vector<Source> all = [] {
    std::vector<Source> list;
    fs::path root = MOE_SOURCE_DIR;
    for (const auto& folder : folders) {
      if (!fs::exists(root / folder)) continue;
      for (const auto& entry : fs::recursive_directory_iterator(root / folder)) {
        if (!entry.is_regular_file() || !is_source(entry.path())) continue;
        Source source{fs::relative(entry.path(), root).generic_string(), {}};
        std::ifstream file(entry.path());
        for (std::string line; std::getline(file, line);) source.lines.push_back(line);
        list.push_back(std::move(source));
      }
    }
    std::sort(list.begin(), list.end(),
              [](const Source& a, const Source& b) { return a.path < b.path; });
    return list;
  }();
  return all;
}

std::string at(const Source& source, std::size_t line) {
  return source.path + ":" + std::to_string(line + 1);
}

// Code only: comments and the inside of string literals are cut. Good enough for one line at a
// time.
std::string code_of(const std::string& line) {
  std::string code;
  bool in_string = false;
  for (std::size_t i = 0; i < line.size(); ++i) {
    if (in_string && line[i] == '\\') {
      ++i;
    } else if (line[i] == '"' && !(i > 0 && line[i - 1] == '\'')) {
      in_string = !in_string;
      code += '"';
    } else if (!in_string) {
      if (line.compare(i, 2, "//") == 0) break;
      code += line[i];
    }
  }
  return code;
}

// Every quoted or angled name in an include line of the file, with its line number.
struct Include {
  std::string name;
  bool quoted = false;
  std::size_t line = 0;
};
std::vector<Include> includes_of(const Source& source) {
  static const std::regex pattern(R"(^\s*#\s*include\s*([<"])([^>"]+)[>"].*)");
  std::vector<Include> list;
  std::smatch match;
  for (std::size_t i = 0; i < source.lines.size(); ++i)
    if (std::regex_match(source.lines[i], match, pattern))
      list.push_back({match[2], match[1] == "\"", i});
  return list;
}

// Folders of the project that a folder may include besides itself.
const std::map<std::string, std::set<std::string>> floors = {
    {"runtime", {}},      {"cpu", {"runtime"}},           {"cuda", {"runtime"}},
    {"ops", {"runtime"}}, {"models", {"ops", "runtime"}}, {"tools", {"models", "ops", "runtime"}},
};
// What the kernels may know of runtime: the contract, never a tensor or a tape.
const std::set<std::string> contract = {"kernels.h", "dtype.h",  "shape.h",   "backend.h",
                                        "error.h",   "random.h", "parallel.h"};
// Third-party headers by their first path component (or whole name).
const std::map<std::string, std::set<std::string>> libraries = {
    {"runtime", {"fmt", "nlohmann", "xxhash.h", "zlib.h"}},
    {"cpu", {"hwy"}},
    {"cuda", {}},
    {"ops", {}},
    {"models", {"fmt", "nlohmann"}},
    {"tools", {"fmt", "nlohmann", "CLI", "zlib.h", "microhttpd.h", "curl"}},
};
const std::set<std::string> third_party = {"fmt",    "nlohmann",  "xxhash.h",       "zlib.h",
                                           "hwy",    "CLI",       "microhttpd.h",   "curl",
                                           "gtest",  "benchmark", "omp.h",          "mpi.h",
                                           "nccl.h", "cuda.h",    "cuda_runtime.h", "rapidcheck.h"};

TEST(House, FilesAreFound) {
  EXPECT_GT(sources().size(), 60u) << "under " << MOE_SOURCE_DIR;
}

TEST(House, IncludesPointDown) {
  for (const Source& source : sources()) {
    auto floor = floors.find(source.folder());
    if (floor == floors.end()) continue;  // tests and bench may see all
    for (const Include& include : includes_of(source)) {
      if (!include.quoted) continue;
      std::string to = include.name.substr(0, include.name.find('/'));
      EXPECT_NE(include.name.find('/'), std::string::npos)
          << at(source, include.line) << ": write \"" << include.name
          << "\" from the root of the tree";
      if (to == source.folder()) continue;
      EXPECT_TRUE(floor->second.contains(to)) << at(source, include.line) << ": " << source.folder()
                                              << " must not include " << include.name;
      bool kernels = source.folder() == "cpu" || source.folder() == "cuda";
      if (kernels && to == "runtime") {
        EXPECT_TRUE(contract.contains(include.name.substr(to.size() + 1)))
            << at(source, include.line) << ": kernels know the contract only, not " << include.name;
      }
    }
  }
}

TEST(House, LibrariesStayOnTheirFloor) {
  for (const Source& source : sources()) {
    auto allowed = libraries.find(source.folder());
    if (allowed == libraries.end()) continue;
    for (const Include& include : includes_of(source)) {
      std::string library = include.name.substr(0, include.name.find('/'));
      if (include.quoted || !third_party.contains(library) || allowed->second.contains(library))
        continue;
      bool openmp = source.path == "runtime/parallel.h" && library == "omp.h";
      EXPECT_TRUE(openmp) << at(source, include.line) << ": " << source.folder()
                          << " does not use <" << include.name << ">";
    }
  }
}

// With clang a pragma inside a per-target namespace yields functions without the target: slow,
// without a word.
TEST(House, OpenMpStandsInOneFile) {
  for (const Source& source : sources())
    for (std::size_t i = 0; i < source.lines.size(); ++i) {
      std::string code = code_of(source.lines[i]);
      bool pragma = std::regex_search(code, std::regex(R"(^\s*#\s*pragma\s+omp\b|_Pragma\s*\()"));
      EXPECT_TRUE(!pragma || source.path == "runtime/parallel.h")
          << at(source, i) << ": OpenMP pragmas stand in runtime/parallel.h alone";
    }
}

TEST(House, AssemblyStandsInTwoFolders) {
  static const std::regex word(R"(\b(asm|__asm__|__asm)\b)");
  for (const Source& source : sources())
    for (std::size_t i = 0; i < source.lines.size(); ++i) {
      bool home =
          source.path.starts_with("cuda/arch/") || source.path.starts_with("cuda/emulator/");
      EXPECT_TRUE(home || !std::regex_search(code_of(source.lines[i]), word))
          << at(source, i) << ": assembly stands in cuda/arch and cuda/emulator";
    }
}

TEST(House, HeadersOpenNoNamespaces) {
  static const std::regex directive(R"(\busing\s+namespace\b)");
  for (const Source& source : sources()) {
    if (!source.is_header()) continue;
    for (std::size_t i = 0; i < source.lines.size(); ++i)
      EXPECT_FALSE(std::regex_search(code_of(source.lines[i]), directive))
          << at(source, i) << ": `using namespace` in a header";
  }
}

// Per-target headers (-inl.h) are included once for each instruction set: they toggle a guard
// instead.
TEST(House, HeadersAreGuarded) {
  for (const Source& source : sources()) {
    if (!source.is_header()) continue;
    bool once =
        std::find(source.lines.begin(), source.lines.end(), "#pragma once") != source.lines.end();
    bool toggles =
        std::any_of(source.lines.begin(), source.lines.end(), [](const std::string& line) {
          return line.find("HWY_TARGET_TOGGLE") != std::string::npos;
        });
    EXPECT_TRUE(source.path.ends_with("-inl.h") ? toggles : once)
        << source.path << " has no #pragma once";
  }
}

// A header of std or fmt seen for the first time inside the target loop would be compiled for one
// instruction set only, and slow in silence.
TEST(House, OrdinaryIncludesComeBeforeTheTargetLoop) {
  for (const Source& source : sources()) {
    auto includes = includes_of(source);
    auto loop = std::find_if(includes.begin(), includes.end(),
                             [](const Include& i) { return i.name == "hwy/foreach_target.h"; });
    for (auto i = loop; i != includes.end(); ++i) {
      bool per_target = i->name.starts_with("hwy/") || i->name.ends_with("-inl.h");
      EXPECT_TRUE(per_target) << at(source, i->line) << ": include " << i->name
                              << " before hwy/foreach_target.h";
    }
  }
}

TEST(House, NoPathsOfAMachine) {
  // Put together at run time, so that this file passes its own test.
  std::vector<std::string> starts;
  for (const char* folder : {"work", "home", "root", "Users", "mnt"})
    starts.push_back("/" + std::string(folder) + "/");
  for (const Source& source : sources())
    for (std::size_t i = 0; i < source.lines.size(); ++i)
      for (const std::string& start : starts) {
        std::size_t found = source.lines[i].find(start);
        // A folder of that name inside a longer relative path is nobody's machine.
        bool absolute =
            found != std::string::npos &&
            (found == 0 ||
             (std::isalnum(static_cast<unsigned char>(source.lines[i][found - 1])) == 0 &&
              source.lines[i][found - 1] != '.' && source.lines[i][found - 1] != '_'));
        EXPECT_FALSE(absolute) << at(source, i) << ": a path of somebody's machine";
      }
}

TEST(House, NothingIsLeftForLater) {
  // Put together, as above.
  std::vector<std::string> words = {std::string("TO") + "DO", std::string("FIX") + "ME",
                                    std::string("XX") + "X"};
  for (const Source& source : sources())
    for (std::size_t i = 0; i < source.lines.size(); ++i)
      for (const std::string& word : words)
        EXPECT_FALSE(std::regex_search(source.lines[i], std::regex("\\b" + word + "\\b")))
            << at(source, i);
}

TEST(House, CountsLines) {
  struct Count {
    std::size_t files = 0, lines = 0, comments = 0, longest = 0;
    std::string longest_file;
  };
  std::map<std::string, Count> counts;
  for (const Source& source : sources()) {
    for (const std::string& folder : {source.folder(), std::string("total")}) {
      Count& count = counts[folder];
      ++count.files;
      count.lines += source.lines.size();
      for (const std::string& line : source.lines)
        if (line.find("//") != std::string::npos &&
            code_of(line).find_first_not_of(' ') == std::string::npos)
          ++count.comments;
      if (source.lines.size() > count.longest) {
        count.longest = source.lines.size();
        count.longest_file = source.path;
      }
    }
  }
  std::ostringstream table;
  for (const auto& [folder, count] : counts)
    table << folder << ": " << count.files << " files, " << count.lines << " lines, "
          << 100 * count.comments / std::max<std::size_t>(count.lines, 1)
          << " % comment lines, longest " << count.longest_file << " (" << count.longest << ")\n";
  std::cout << table.str();
}

}  // namespace
