// Texts to vectors: tokenise in parallel, batch by length within a token budget, one vector per
// text in its own row. A text's vector does not depend on the batch it met (bit for bit on the
// CPU).
#pragma once

#include "models/text_encoder.h"

#include <functional>
#include <span>
#include <string>
#include <vector>

namespace moe {

struct EmbedOptions {
  Index batch_tokens = 8192;
  Index max_length = 0;                      // 0: the encoder's own
  std::uint64_t seed = 42;                   // of `random` routing
  std::function<void(Index done)> progress;  // texts finished
};

struct ExpertLoad {
  std::vector<std::int64_t> counts;  // texts (choices) per expert
  std::vector<std::int32_t> first;   // the first choice of every text, in the order of the texts
};

std::vector<std::vector<std::int32_t>> tokenize_all(const TextEncoder& encoder,
                                                    std::span<const std::string> texts,
                                                    Index max_length = 0);

// (n,size) f32 rows on the host, in the order of the texts. `load` collects what an SB-MoE block
// chose.
std::vector<float> embed_texts(const TextEncoder& encoder, std::span<const std::string> texts,
                               const EmbedOptions& options = {}, ExpertLoad* load = nullptr);
std::vector<float> embed_tokens(const TextEncoder& encoder,
                                std::span<const std::vector<std::int32_t>> tokens,
                                const EmbedOptions& options = {}, ExpertLoad* load = nullptr);

}  // namespace moe
