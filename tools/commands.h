// One plain struct and one function per command. moe_run.cc fills the structs from flags,
// environment and configuration file; a command returns the exit code and writes results to stdout,
// everything else to stderr.
#pragma once

#include "tools/trainer.h"

#include <string>
#include <vector>

namespace moe {

struct CommonOptions {
  std::string device = "auto";
  int threads = 0;  // 0: all cores this process may use
  bool quiet = false;
  bool json = false;  // results as JSON lines on stdout
  std::uint64_t seed = 42;
};

// How a model folder is opened, shared by every command that embeds.
struct ModelOptions {
  std::string model;               // folder
  std::string pooling;             // mean, cls, max, pooler; empty: the folder's
  std::string normalize = "auto";  // auto: as the folder says; on, off
  Index max_length = 0;            // 0: the folder's
  std::string route;  // SB-MoE evaluation routing: top1, topk, all, random; empty: as stored
  Index k = 0;        // SB-MoE experts per text in evaluation; 0: as stored
};
TextEncoder::Options encoder_options(const ModelOptions& model, const CommonOptions& common);

struct MoeOptions {
  std::string mode = "none";  // none, faithful, trained-gate
  Index experts = 6, k = 1;
  std::string route = "topk", combine = "unit-then-weight",
              weights;  // weights empty: raw for k = 1, else renorm
  double lambda = 1, balance = 0.01, z = 1e-3, importance = 0;
  bool learn_lambda = false, no_noise = false, selection_bias = false;
};

struct TrainCommand {
  CommonOptions common;
  ModelOptions model;
  MoeOptions moe;
  TrainConfig config;
  std::string data, out, resume = "auto";  // auto, never
  std::string scratch;  // a shape "layers,hidden,heads,ffn": random weights, tokenizer from --model
  std::string false_negatives = "auto";  // auto: keep in faithful mode, mask otherwise; mask, keep
  std::string test_split = "test";  // evaluated at the end with the best weights, when it is there
  std::string metrics = "nDCG@10,MRR@10,Recall@100,MAP@100";
  double dropout = -1;  // below 0: the model's own
  bool dry_run = false;
  std::string resolved;  // the resolved configuration, written into the run folder
};
int run_train(const TrainCommand& command);

struct EmbedCommand {
  CommonOptions common;
  ModelOptions model;
  std::string input;  // BEIR folder, corpus file or queries file; "-" for lines on stdin
  std::string out;    // folder: embeddings.npy, ids.txt, manifest.json
  std::string kind = "document";              // document or query: which prompt, which length
  Index batch_tokens = 8192, chunk = 20'000;  // texts per durable step
  bool no_resume = false;
};
int run_embed(const EmbedCommand& command);

struct SearchCommand {
  CommonOptions common;
  ModelOptions model;             // may be empty when --query-embeddings is given
  std::string index;              // folder written by embed
  std::string queries;            // BEIR folder or queries file, or empty
  std::string split;              // of a BEIR folder: only its queries
  std::string query_embeddings;   // folder written by embed --kind query
  std::vector<std::string> text;  // queries on the command line: results in words
  std::string data;               // BEIR folder for the words of results
  std::string out = "-", tag = "moe-run";
  Index k = 100, block = 4096;
};
int run_search(const SearchCommand& command);

struct EvalCommand {
  CommonOptions common;
  ModelOptions model;  // with --data: embed, search and evaluate in one go
  std::string data, split = "test";
  std::string qrels, run;            // or a run file against a qrels file
  std::vector<std::string> compare;  // further run files, tested against the first
  std::string metrics = "nDCG@10,MRR@10,Recall@100,MAP@100,P@10,Success@10";
  std::string save_run, bm25;  // bm25: "on" evaluates the lexical baseline instead of a model
  Index k = 1000;
  int relevance_level = 1;
  bool exponential_gain = false, float32 = false, drop_same_id = false, strict = false,
       per_query = false;
  Index query_length = 0, document_length = 0, batch_tokens = 8192;
};
int run_eval(const EvalCommand& command);

struct InspectCommand {
  CommonOptions common;
  std::string path;  // model folder, safetensors, bin, npy or run folder
  bool tensors = false, hash = false;
};
int run_inspect(const InspectCommand& command);

struct TokenizeCommand {
  CommonOptions common;
  std::string model;
  std::vector<std::string> text;  // none: lines from stdin (JSON strings with --json-input)
  bool ids = false, info = false, json_input = false, no_special = false;
  Index max_length = 0;  // 0: no truncation
};
int run_tokenize(const TokenizeCommand& command);

struct ConvertCommand {
  CommonOptions common;
  std::string from, to;        // model folder or tensor file -> the same with safetensors
  std::string dtype = "keep";  // keep, f32, bf16
};
int run_convert(const ConvertCommand& command);

struct BenchCommand {
  CommonOptions common;
  std::string what = "all";                   // gemm, attention, forward, train, search, all
  std::string shape = "6,384,12,1536";        // layers, hidden, heads, ffn
  std::string batches = "1x16,1x128,32x128";  // texts x tokens
  int repetitions = 5;
};
int run_bench(const BenchCommand& command);

struct DoctorCommand {
  CommonOptions common;
};
int run_doctor(const DoctorCommand& command);

struct DemoCommand {
  CommonOptions common;
  std::string out = "demo-run";
  std::string query = "why does the sea rise and fall twice a day";
  Index epochs = 0;  // 0: the tuned default
};
int run_demo(const DemoCommand& command);

}  // namespace moe
