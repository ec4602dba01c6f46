#include "models/bert.h"

#include <cmath>

namespace moe {

// Weights start from N(0, init_deviation), biases from zero, as BERT does.
BertLayer::BertLayer(const Scope& s, const BertConfig& c) : config(&c) {
  Index h = c.hidden, f = c.feed_forward;
  Init init = Init::normal(c.init_deviation);
  Scope self = s / "attention" / "self";
  qkv = self.stack({"query.weight", "key.weight", "value.weight"}, {h, h}, init);
  qkv_bias = self.stack_vectors({"query.bias", "key.bias", "value.bias"}, h, Init::zeros());
  attention_output = Linear(s / "attention" / "output" / "dense", h, h, init);
  attention_norm = LayerNorm(s / "attention" / "output" / "LayerNorm", h, c.eps);
  intermediate = Linear(s / "intermediate" / "dense", h, f, init);
  output = Linear(s / "output" / "dense", f, h, init);
  output_norm = LayerNorm(s / "output" / "LayerNorm", h, c.eps);
  stream = stream_hash("dropout:" + s.name("layer"));
}

namespace {

// x + dropout(W y + b); the residual rides in the product's epilogue when nothing is dropped.
Tensor residual_linear(const Linear& dense, const Tensor& y, const Tensor& x, const Pass& pass,
                       std::uint64_t stream, double rate) {
  if (!pass.draw.train || rate == 0)
    return dense(y, {.activation = Activation::none, .residual = x});
  return add(dropout(dense(y), pass.draw, stream, rate), x);
}

}  // namespace

Tensor BertLayer::operator()(const Tensor& x, const Pass& pass) const {
  Index h = config->hidden;
  Tensor all = linear(x, qkv, qkv_bias);  // (T,3H)
  AttentionOptions options{.heads = config->heads,
                           .scale = 1 / std::sqrt(static_cast<double>(h / config->heads)),
                           .causal = false,
                           .dropout = config->attention_dropout,
                           .draw = pass.draw,
                           .stream = stream + 1};
  Tensor context = attention(all.slice_cols(0, h), all.slice_cols(h, 2 * h),
                             all.slice_cols(2 * h, 3 * h), pass.rows, pass.rows, options);
  Tensor attended = attention_norm(
      residual_linear(attention_output, context, x, pass, stream + 2, config->dropout));
  Tensor middle = intermediate(attended, {.activation = config->activation, .residual = {}});
  return output_norm(residual_linear(output, middle, attended, pass, stream + 3, config->dropout));
}

Bert::Bert(const Scope& s, const BertConfig& c) : config(c) {
  check(c.hidden > 0 && c.heads > 0 && c.hidden % c.heads == 0,
        "BERT: hidden size {} does not split into {} heads", c.hidden, c.heads);
  Init init = Init::normal(c.init_deviation);
  Scope e = s / "embeddings";
  word = (e / "word_embeddings").matrix("weight", {c.vocabulary, c.hidden}, init);
  position = (e / "position_embeddings").matrix("weight", {c.positions, c.hidden}, init);
  type = (e / "token_type_embeddings").matrix("weight", {c.types, c.hidden}, init);
  norm = LayerNorm(e / "LayerNorm", c.hidden, c.eps);
  layers.reserve(static_cast<std::size_t>(c.layers));
  for (Index i = 0; i < c.layers; ++i) layers.emplace_back(s / "encoder" / "layer" / i, config);
  if (c.pooler) pooler = Linear(s / "pooler" / "dense", c.hidden, c.hidden, init);
}

Tensor Bert::operator()(const TokenBatch& batch, const Pass& pass) const {
  check(pass.rows.longest <= config.positions,
        "BERT: a text of {} tokens, the model has {} positions", pass.rows.longest,
        config.positions);
  Tensor x = add(add(lookup(word, batch.ids), lookup(type, batch.types)),
                 lookup(position, batch.positions));
  x = dropout(norm(x), pass.draw, stream_hash("dropout:embeddings"), config.dropout);
  for (const BertLayer& layer : layers) x = layer(x, pass);
  return x;
}

Tensor Bert::pool(const Tensor& hidden, const Segments& segments) const {
  check(bool(pooler.weight), "this BERT has no pooler: choose --pooling mean, cls or max");
  return pooler(segment_first(hidden, segments), {.activation = Activation::tanh, .residual = {}});
}

BertMlmHead::BertMlmHead(const Scope& s, const BertConfig& c) : activation(c.activation) {
  Scope predictions = s / "cls" / "predictions";
  transform = Linear(predictions / "transform" / "dense", c.hidden, c.hidden,
                     Init::normal(c.init_deviation));
  norm = LayerNorm(predictions / "transform" / "LayerNorm", c.hidden, c.eps);
  bias = predictions.vector("bias", c.vocabulary, Init::zeros());
}

Tensor BertMlmHead::operator()(const Tensor& hidden, const Tensor& word_embeddings) const {
  Tensor h = norm(transform(hidden, {.activation = activation, .residual = {}}));
  return linear(h, word_embeddings, bias);
}

TensorFile normalise_bert_names(TensorFile file, const std::string& prefix) {
  auto ends_with = [](const std::string& s, std::string_view tail) {
    return s.size() >= tail.size() && s.compare(s.size() - tail.size(), tail.size(), tail) == 0;
  };
  std::map<std::string, TensorEntry> renamed;
  for (auto& [name, entry] : file.tensors) {
    std::string to = name.starts_with("bert.") ? name.substr(5) : name;
    if (to == "embeddings.position_ids") continue;  // an integer buffer 0..P-1
    if (ends_with(to, "LayerNorm.gamma")) to.replace(to.size() - 5, 5, "weight");
    if (ends_with(to, "LayerNorm.beta")) to.replace(to.size() - 4, 4, "bias");
    bool head = to.starts_with("cls.");
    auto [at, fresh] = renamed.emplace(head ? to : prefix + to, std::move(entry));
    if (!fresh)
      fail(Fault::bad_data, "{}: two tensors mean '{}' (with and without the prefix 'bert.')",
           file.source, at->first);
  }
  file.tensors = std::move(renamed);
  return file;
}

}  // namespace moe
