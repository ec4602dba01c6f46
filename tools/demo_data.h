// The embedded retrieval collection (tools/demo_data/README.md): written for this project, in BEIR
// layout.
#pragma once

#include <string>

namespace moe {

// Writes the collection and its vocabulary as a BEIR folder: corpus.jsonl, queries.jsonl, qrels/,
// vocab.txt.
void write_demo_collection(const std::string& directory);

}  // namespace moe
