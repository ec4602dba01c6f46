// BERT encoder (Devlin, Chang, Lee, Toutanova 2019) and the family with its shape: TinyBERT,
// MiniLM, Contriever,
// ... Names equal the Hugging Face checkpoint's, without the optional "bert." prefix.
#pragma once

#include "models/layers.h"

namespace moe {

struct BertConfig {
  Index vocabulary = 30522, hidden = 768, layers = 12, heads = 12, feed_forward = 3072;
  Index positions = 512, types = 2;
  Activation activation = Activation::gelu;
  double eps = 1e-12;
  double dropout = 0.1, attention_dropout = 0.1;  // in training
  double init_deviation = 0.02;
  bool pooler = true;
};

// h = norm(x + attend(x))   y = norm(h + W2 gelu(W1 h))                 x, y (T,H)
struct BertLayer {
  Tensor qkv, qkv_bias;  // (3H,H), (3H): query, key and value, three names over one storage
  Linear attention_output, intermediate, output;
  LayerNorm attention_norm, output_norm;
  const BertConfig* config = nullptr;
  std::uint64_t stream = 0;  // dropout site of this layer

  BertLayer(const Scope& s, const BertConfig& c);
  Tensor operator()(const Tensor& x, const Pass& pass) const;
};

struct Bert {
  BertConfig config;
  Tensor word, position, type;  // (V,H), (P,H), (types,H)
  LayerNorm norm;
  std::vector<BertLayer> layers;
  Linear pooler;  // absent when config.pooler is off

  Bert(const Scope& s, const BertConfig& c);
  Bert(const Bert&) = delete;  // layers point at config
  Bert& operator=(const Bert&) = delete;

  // Last hidden states (T,H) of the packed batch.
  Tensor operator()(const TokenBatch& batch, const Pass& pass) const;
  // tanh(W h_first + b) of each text: (B,H)
  Tensor pool(const Tensor& hidden, const Segments& segments) const;
};

// Masked-language-model head: logits = (norm(gelu(W h + b))) E^T + c, E the word embeddings.    h
// (M,H) -> (M,V)
struct BertMlmHead {
  Linear transform;
  LayerNorm norm;
  Tensor bias;  // (V)
  Activation activation;
  BertMlmHead(const Scope& s, const BertConfig& c);
  Tensor operator()(const Tensor& hidden, const Tensor& word_embeddings) const;
};

// Renames a checkpoint's tensors to ours: strips "bert.", gamma/beta -> weight/bias, drops
// position_ids; adds `prefix`. Head tensors (cls.*) are kept under their names.
TensorFile normalise_bert_names(TensorFile file, const std::string& prefix);

}  // namespace moe
