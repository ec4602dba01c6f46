#include "tools/embedding.h"

#include "runtime/parallel.h"
#include "runtime/profile.h"
#include "tools/batch.h"
#include "tools/signals.h"

#include <algorithm>

namespace moe {

std::vector<std::vector<std::int32_t>> tokenize_all(const TextEncoder& encoder,
                                                    std::span<const std::string> texts,
                                                    Index max_length) {
  std::vector<std::vector<std::int32_t>> tokens(texts.size());
  Index limit = max_length > 0 ? std::min(max_length, encoder.config().max_length)
                               : encoder.config().max_length;
  parallel_for(static_cast<Index>(texts.size()), 16, [&](Index begin, Index end) {
    for (auto i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(end); ++i)
      tokens[i] = encoder.tokenizer().encode(texts[i], limit);
  });
  return tokens;
}

std::vector<float> embed_tokens(const TextEncoder& encoder,
                                std::span<const std::vector<std::int32_t>> tokens,
                                const EmbedOptions& options, ExpertLoad* load) {
  std::size_t size = static_cast<std::size_t>(encoder.size());
  std::vector<float> vectors(tokens.size() * size);
  std::vector<std::int32_t> lengths;
  for (const auto& t : tokens) lengths.push_back(static_cast<std::int32_t>(t.size()));
  if (load != nullptr) {
    load->counts.assign(encoder.moe() ? static_cast<std::size_t>(encoder.moe()->config.experts) : 0,
                        0);
    load->first.assign(encoder.moe() ? tokens.size() : 0, -1);
  }
  Index done = 0;
  for (const auto& batch :
       plan_by_length(lengths, {.rows = 1024, .tokens = options.batch_tokens})) {
    throw_if_stopped();
    Zone zone("embed batch");
    std::vector<std::vector<std::int32_t>> texts;
    for (Index i : batch) texts.push_back(tokens[static_cast<std::size_t>(i)]);
    Routes routes;
    Pass pass;
    // Random routing draws by the text's row: number batches by their first text, so a run repeats.
    pass.draw = {.seed = options.seed, .step = 0, .side = 0, .row0 = done, .train = false};
    pass.routes = &routes;
    Tensor y = encoder(make_batch(texts, encoder.device()), pass);
    std::vector<float> rows;
    if (y.dtype() == DType::f64) {
      auto wide = to_host<double>(y);
      rows.assign(wide.begin(), wide.end());
    } else {
      rows = to_host<float>(y);
    }
    for (std::size_t b = 0; b < batch.size(); ++b)
      std::copy_n(rows.data() + b * size, size,
                  vectors.data() + static_cast<std::size_t>(batch[b]) * size);
    if (load != nullptr)
      for (const RouteOut& route : routes.seen) {
        auto choice = to_host<std::int32_t>(route.routing.expert);
        std::size_t k = static_cast<std::size_t>(route.routing.expert.cols());
        for (std::int32_t e : choice)
          if (e >= 0) ++load->counts[static_cast<std::size_t>(e)];
        for (std::size_t b = 0; b < batch.size(); ++b)
          load->first[static_cast<std::size_t>(batch[b])] = choice[b * k];
      }
    done += static_cast<Index>(batch.size());
    if (options.progress) options.progress(done);
  }
  return vectors;
}

std::vector<float> embed_texts(const TextEncoder& encoder, std::span<const std::string> texts,
                               const EmbedOptions& options, ExpertLoad* load) {
  auto tokens = tokenize_all(encoder, texts, options.max_length);
  return embed_tokens(encoder, tokens, options, load);
}

}  // namespace moe
