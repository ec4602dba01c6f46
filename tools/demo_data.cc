// The files are linked in as they are; the linker names each by its path.
#include "tools/demo_data.h"

#include "runtime/file.h"

#include <string_view>

#define MOE_EMBEDDED(name)                        \
  extern "C" const char _binary_##name##_start[]; \
  extern "C" const char _binary_##name##_end[];

MOE_EMBEDDED(corpus_jsonl)
MOE_EMBEDDED(queries_jsonl)
MOE_EMBEDDED(qrels_train_tsv)
MOE_EMBEDDED(qrels_dev_tsv)
MOE_EMBEDDED(qrels_test_tsv)
MOE_EMBEDDED(vocab_txt)

namespace moe {

void write_demo_collection(const std::string& directory) {
  make_directories(directory + "/qrels");
  auto put = [&](const char* name, const char* begin, const char* end) {
    write_file_atomically(directory + "/" + name, {begin, static_cast<std::size_t>(end - begin)});
  };
#define MOE_WRITE(file, name) put(file, _binary_##name##_start, _binary_##name##_end)
  MOE_WRITE("corpus.jsonl", corpus_jsonl);
  MOE_WRITE("queries.jsonl", queries_jsonl);
  MOE_WRITE("qrels/train.tsv", qrels_train_tsv);
  MOE_WRITE("qrels/dev.tsv", qrels_dev_tsv);
  MOE_WRITE("qrels/test.tsv", qrels_test_tsv);
  MOE_WRITE("vocab.txt", vocab_txt);
#undef MOE_WRITE
}

}  // namespace moe
