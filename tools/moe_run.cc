// moe-run: the table of commands. The only file that includes CLI11.
#include "runtime/parallel.h"
#include "tools/commands.h"
#include "tools/progress.h"
#include "tools/signals.h"
#include "tools/version.h"

#include <CLI/CLI.hpp>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <system_error>

namespace moe {
namespace {

using Setup = std::function<void(CLI::App&)>;

struct Command {
  const char* name;
  const char* help;
  const char* examples;
  Setup setup;  // binds options
  std::function<int()> run;
  CommonOptions* common;
};

void add_common(CLI::App& app, CommonOptions& o) {
  app.add_option("--device", o.device, "auto, cpu, cuda, reference or simt")
      ->envname("MOE_DEVICE")
      ->capture_default_str();
  app.add_option("-t,--threads", o.threads, "compute threads, 0 = all cores this process may use")
      ->envname("MOE_THREADS")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  app.add_option("--seed", o.seed, "seed of every random draw")->capture_default_str();
  app.add_flag("-q,--quiet", o.quiet, "no progress and no notices on stderr");
  app.add_flag("--json", o.json, "results as JSON on stdout");
}

void add_model(CLI::App& app, ModelOptions& o, bool required) {
  auto* model = app.add_option("-m,--model", o.model,
                               "model folder (Hugging Face or sentence-transformers layout)");
  if (required) model->required();
  app.add_option("--pooling", o.pooling, "mean, cls, max or pooler; default: what the folder says");
  app.add_option("--normalize", o.normalize, "unit-length vectors: auto, on or off")
      ->check(CLI::IsMember({"auto", "on", "off"}))
      ->capture_default_str();
  app.add_option("--max-length", o.max_length, "tokens per text, 0 = what the folder says")
      ->capture_default_str();
  app.add_option("--route", o.route, "SB-MoE evaluation routing: top1, topk, all or random");
  app.add_option("--k", o.k, "SB-MoE experts per text in evaluation, 0 = as stored")
      ->capture_default_str();
}

void add_moe(CLI::App& app, MoeOptions& o) {
  app.add_option("--moe", o.mode, "SB-MoE block: none, faithful or trained-gate")
      ->check(CLI::IsMember({"none", "faithful", "trained-gate"}))
      ->capture_default_str();
  app.add_option("--experts", o.experts, "experts in the block")->capture_default_str();
  app.add_option("--moe-k", o.k, "experts per text (trained-gate)")->capture_default_str();
  app.add_option("--moe-route", o.route, "routing stored with the block: topk, all or random")
      ->capture_default_str();
  app.add_option("--combine", o.combine, "unit-then-weight, weight-then-unit or scaled-sum")
      ->capture_default_str();
  app.add_option("--weights", o.weights,
                 "raw, renorm or straight-through; default raw for k = 1, renorm above");
  app.add_option("--lambda", o.lambda, "weight of the block's output")->capture_default_str();
  app.add_flag("--learn-lambda", o.learn_lambda, "learn that weight");
  app.add_option("--balance", o.balance, "balance loss coefficient")->capture_default_str();
  app.add_option("--z-loss", o.z, "router z-loss coefficient")->capture_default_str();
  app.add_option("--importance", o.importance, "importance (CV^2) loss coefficient")
      ->capture_default_str();
  app.add_flag("--no-noise", o.no_noise, "no noise layer");
  app.add_flag("--selection-bias", o.selection_bias, "loss-free balancing bias");
}

void add_training(CLI::App& app, TrainConfig& c) {
  app.add_option("--split", c.split, "training split")->capture_default_str();
  app.add_option("--dev-split", c.dev_split, "validation split")->capture_default_str();
  app.add_option("-e,--epochs", c.epochs, "passes over the training queries")
      ->capture_default_str();
  app.add_option("-b,--batch", c.batch, "queries per step")
      ->check(CLI::Range(2, 1'000'000))
      ->capture_default_str();
  app.add_option("--batch-tokens", c.batch_tokens, "token budget of a step, 0 = none")
      ->capture_default_str();
  app.add_option("--window", c.window, "batches sorted by length together, 1 = plain shuffle")
      ->capture_default_str();
  app.add_option("--max-steps", c.max_steps, "stop after this many steps, 0 = no limit")
      ->capture_default_str();
  app.add_option("--query-length", c.query_length, "tokens per query, 0 = --max-length")
      ->capture_default_str();
  app.add_option("--document-length", c.document_length, "tokens per document, 0 = --max-length")
      ->capture_default_str();
  app.add_option("--temperature", c.temperature, "divides the scores in the loss")
      ->capture_default_str();
  app.add_flag("--symmetric", c.symmetric, "also classify queries given documents");
  app.add_option("--lr", c.rate, "learning rate of the encoder")->capture_default_str();
  app.add_option("--moe-lr", c.block_rate, "learning rate of the SB-MoE block and Dense modules")
      ->capture_default_str();
  app.add_option("--weight-decay", c.decay, "decoupled weight decay")->capture_default_str();
  app.add_flag("--decay-all", c.decay_all, "decay biases and norms too (released SB-MoE)");
  app.add_option("--warmup", c.warmup, "share of steps with rising rate")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app.add_option("--schedule", c.schedule, "constant, linear, cosine or inverse-sqrt")
      ->capture_default_str();
  app.add_option("--clip", c.clip_norm, "global gradient norm limit, 0 = none")
      ->capture_default_str();
  app.add_option("--optimizer", c.optimizer, "adamw or adafactor")->capture_default_str();
  app.add_flag("--freeze-encoder", c.freeze_encoder, "train only the modules after pooling");
  app.add_option("--metric", c.metric, "validation metric that decides what is best")
      ->capture_default_str();
  app.add_option("--evals-per-epoch", c.evaluations_per_epoch, "validations per epoch")
      ->capture_default_str();
  app.add_option("--patience", c.patience,
                 "validations without improvement before stopping, 0 = never")
      ->capture_default_str();
  app.add_option("--keep", c.keep, "checkpoints kept besides the best")->capture_default_str();
  app.add_option("--max-time", c.max_minutes, "minutes, then save and stop; 0 = no limit")
      ->capture_default_str();
  app.add_flag("--skip-bad-steps", c.skip_bad_steps, "skip steps with a non-finite gradient");
  app.add_option("--noise", c.noise, "router noise schedule: constant, linear or cosine")
      ->capture_default_str();
  app.add_option("--noise-start", c.noise_start, "noise at the first step")->capture_default_str();
  app.add_option("--noise-end", c.noise_end, "noise at the end")->capture_default_str();
  app.add_option("--noise-fraction", c.noise_fraction, "share of steps over which it falls")
      ->capture_default_str();
}

// Levenshtein distance, for "did you mean".
std::size_t distance(const std::string& a, const std::string& b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      std::size_t best = std::min({row[j] + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1])});
      diagonal = row[j];
      row[j] = best;
    }
  }
  return row.back();
}

std::string nearest(const std::string& word, const std::vector<std::string>& names) {
  std::string best;
  std::size_t least = 4;
  for (const auto& name : names)
    if (std::size_t d = distance(word, name); d < least) {
      least = d;
      best = name;
    }
  return best;
}

std::vector<std::string> option_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* o : app.get_options())
    for (const auto& name : o->get_lnames()) names.push_back("--" + name);
  return names;
}

// What the user typed that no command or option knows, with the nearest name.
int report_usage(const CLI::App& app, const CLI::ParseError& error, int count, char** values) {
  std::string where = "moe-run";
  const CLI::App* used = &app;
  for (const CLI::App* sub : app.get_subcommands()) {
    where += " " + sub->get_name();
    used = sub;
  }
  fmt::print(stderr, "{}: {}\n", where, error.what());
  for (int i = 1; i < count; ++i) {
    std::string word = values[i];
    if (std::size_t equals = word.find('='); equals != std::string::npos) word.resize(equals);
    bool dashed = word.starts_with("--");
    if (!dashed && (used != &app || i > 1)) continue;
    std::vector<std::string> names;
    if (dashed) {
      names = option_names(*used);
    } else {
      for (const CLI::App* sub : app.get_subcommands({})) names.push_back(sub->get_name());
    }
    if (std::find(names.begin(), names.end(), word) != names.end()) continue;
    if (std::string near = nearest(word, names); !near.empty())
      fmt::print(stderr, "did you mean '{}' instead of '{}'?\n", near, word);
  }
  fmt::print(stderr, "See `{} --help`.\n", where);
  return 2;
}

int exit_code(Fault fault) {
  switch (fault) {
    case Fault::usage:
      return 2;
    case Fault::bad_data:
      return 65;
    case Fault::missing_input:
      return 66;
    case Fault::unavailable:
      return 69;
    case Fault::io:
      return 74;
    case Fault::failure:
      break;
  }
  return 1;
}

constexpr const char* exit_codes =
    "Exit codes: 0 ok, 1 failure, 2 usage, 65 bad data file, 66 input missing, 69 device "
    "unavailable,\n"
    "70 internal error, 74 read/write error, 130 interrupted, 143 terminated.\n"
    "Options may also stand in a TOML file (--config FILE, one [command] section); the command "
    "line wins\n"
    "over environment variables, they over the file.";

int run(int count, char** values) {
  TrainCommand train;
  EmbedCommand embed;
  SearchCommand search;
  EvalCommand eval;
  InspectCommand inspect;
  TokenizeCommand tokenize;
  ConvertCommand convert;
  BenchCommand bench;
  DoctorCommand doctor;
  DemoCommand demo;

  std::vector<Command> commands{
      {"demo", "train, evaluate and search on the embedded collection (two minutes)",
       "moe-run demo\n  moe-run demo --query \"how do plants make sugar\" --out my-demo",
       [&](CLI::App& a) {
         a.add_option("-o,--out", demo.out, "folder for models and run files")
             ->capture_default_str();
         a.add_option("--query", demo.query, "the search shown at the end")->capture_default_str();
         a.add_option("-e,--epochs", demo.epochs,
                      "passes over the training queries, 0 = the tuned default")
             ->capture_default_str();
       },
       [&] { return run_demo(demo); }, &demo.common},
      {"train", "fine-tune a bi-encoder on a retrieval folder, with or without an SB-MoE block",
       "moe-run train -m all-MiniLM-L6-v2 --data nfcorpus --out runs/plain\n"
       "  moe-run train -m all-MiniLM-L6-v2 --data nfcorpus --moe trained-gate --experts 6 --out "
       "runs/moe",
       [&](CLI::App& a) {
         add_model(a, train.model, true);
         a.add_option("-d,--data", train.data, "BEIR folder")->required();
         a.add_option("-o,--out", train.out, "run folder: log, checkpoints, best/ and last/ models")
             ->required();
         a.add_option("--resume", train.resume,
                      "auto: continue from the newest complete checkpoint; never")
             ->check(CLI::IsMember({"auto", "never"}))
             ->capture_default_str();
         a.add_option("--scratch", train.scratch,
                      "random weights of the shape layers,hidden,heads,ffn; --model gives only the "
                      "tokenizer");
         a.add_option(
              "--false-negatives", train.false_negatives,
              "known positives in the batch: mask, keep; auto keeps them in faithful mode only")
             ->check(CLI::IsMember({"auto", "mask", "keep"}))
             ->capture_default_str();
         a.add_option("--test-split", train.test_split,
                      "evaluated with the best weights at the end")
             ->capture_default_str();
         a.add_option("--metrics", train.metrics, "metrics of that evaluation")
             ->capture_default_str();
         a.add_option("--dropout", train.dropout, "dropout rate, below 0 = the model's own")
             ->capture_default_str();
         a.add_flag("--dry-run", train.dry_run,
                    "print shapes, parameters and steps; train nothing");
         add_training(a, train.config);
         add_moe(a, train.moe);
       },
       [&] {
         train.config.seed = train.common.seed;
         return run_train(train);
       },
       &train.common},
      {"embed",
       "texts to vectors: embeddings.npy, ids.txt and a manifest, in bounded memory, resumable",
       "moe-run embed -m runs/moe/best -i nfcorpus --out index/nfcorpus\n"
       "  moe-run embed -m runs/moe/best -i nfcorpus/queries.jsonl --kind query --out "
       "index/queries",
       [&](CLI::App& a) {
         add_model(a, embed.model, true);
         a.add_option("-i,--input", embed.input,
                      "retrieval folder, corpus or queries file, - for lines on stdin")
             ->required();
         a.add_option("-o,--out", embed.out, "folder to write")->required();
         a.add_option("--kind", embed.kind, "document or query (which prompt)")
             ->check(CLI::IsMember({"document", "query"}))
             ->capture_default_str();
         a.add_option("--batch-tokens", embed.batch_tokens, "tokens per batch")
             ->capture_default_str();
         a.add_option("--chunk", embed.chunk, "texts per durable step")
             ->check(CLI::Range(1, 100'000'000))
             ->capture_default_str();
         a.add_flag("--no-resume", embed.no_resume,
                    "start over when the folder holds an unfinished run");
       },
       [&] { return run_embed(embed); }, &embed.common},
      {"search", "exact top-k over an embedded corpus, as a TREC run or in words",
       "moe-run search -m runs/moe/best --index index/nfcorpus --queries nfcorpus --split test -o "
       "run.trec\n"
       "  moe-run search -m runs/moe/best --index index/nfcorpus --data nfcorpus --text \"vitamin "
       "d\" -k 5",
       [&](CLI::App& a) {
         add_model(a, search.model, false);
         a.remove_option(a.get_option("--k"));  // -k is the number of results here
         a.add_option("--index", search.index, "folder written by embed")->required();
         a.add_option("--queries", search.queries, "retrieval folder or queries file");
         a.add_option("--split", search.split,
                      "only the queries judged in this split of the folder");
         a.add_option("--query-embeddings", search.query_embeddings,
                      "folder written by embed --kind query");
         a.add_option("--text", search.text, "a query; may be repeated");
         a.add_option("-d,--data", search.data, "retrieval folder whose texts are shown");
         a.add_option("-o,--out", search.out, "TREC run file, - for stdout")->capture_default_str();
         a.add_option("--tag", search.tag, "name of the run")->capture_default_str();
         a.add_option("-k,--top", search.k, "documents per query")
             ->check(CLI::Range(1, 100'000'000))
             ->capture_default_str();
         a.add_option("--block", search.block, "documents per product; no effect on results")
             ->check(CLI::Range(1, 100'000'000))
             ->capture_default_str();
       },
       [&] { return run_search(search); }, &search.common},
      {"eval", "retrieval metrics of a run, of a model or of BM25, with significance between runs",
       "moe-run eval --qrels nfcorpus/qrels/test.tsv --run a.trec --compare b.trec\n"
       "  moe-run eval -m runs/moe/best --data nfcorpus --split test\n"
       "  moe-run eval --bm25 on --data nfcorpus",
       [&](CLI::App& a) {
         add_model(a, eval.model, false);
         a.add_option("-d,--data", eval.data,
                      "retrieval folder (BEIR, cranfield, npl, SQuAD, MS MARCO)");
         a.add_option("--split", eval.split, "split of the folder")->capture_default_str();
         a.add_option("--qrels", eval.qrels, "judgements: BEIR .tsv, TREC or ranx JSON");
         a.add_option("--run", eval.run, "run file: TREC or ranx JSON");
         a.add_option("--compare", eval.compare, "more run files, tested against --run");
         a.add_option("--metrics", eval.metrics, "nDCG@k MAP@k MRR@k Recall@k P@k Success@k")
             ->capture_default_str();
         a.add_option("--save-run", eval.save_run, "write the run that was evaluated");
         a.add_option("--bm25", eval.bm25, "on: evaluate the lexical baseline")
             ->check(CLI::IsMember({"on", "off"}));
         a.add_option("--depth", eval.k, "documents retrieved per query")
             ->check(CLI::Range(1, 100'000'000))
             ->capture_default_str();
         a.add_option("--relevance-level", eval.relevance_level, "lowest relevant grade")
             ->capture_default_str();
         a.add_flag("--exponential-gain", eval.exponential_gain, "nDCG gain 2^grade - 1");
         a.add_flag("--float32", eval.float32, "scores in float32, as trec_eval up to 9.0.8");
         a.add_flag("--drop-same-id", eval.drop_same_id,
                    "leave out the document whose id is the query's");
         a.add_flag("--strict", eval.strict, "fail when run and judgements have different queries");
         a.add_flag("--per-query", eval.per_query, "also one value per query");
         a.add_option("--query-length", eval.query_length, "tokens per query, 0 = the model's")
             ->capture_default_str();
         a.add_option("--document-length", eval.document_length,
                      "tokens per document, 0 = the model's")
             ->capture_default_str();
       },
       [&] { return run_eval(eval); }, &eval.common},
      {"inspect", "what a model folder or tensor file holds",
       "moe-run inspect all-MiniLM-L6-v2 --tensors",
       [&](CLI::App& a) {
         a.add_option("path", inspect.path, "model folder, .safetensors, .bin or .npy")->required();
         a.add_flag("--tensors", inspect.tensors, "list every tensor");
         a.add_flag("--hash", inspect.hash, "content hash of every tensor");
       },
       [&] { return run_inspect(inspect); }, &inspect.common},
      {"tokenize", "token ids and pieces of texts",
       "moe-run tokenize -m all-MiniLM-L6-v2 \"What is Deep Learning?\"\n"
       "  moe-run tokenize -m all-MiniLM-L6-v2 --info",
       [&](CLI::App& a) {
         a.add_option("-m,--model", tokenize.model, "model folder")->required();
         a.add_option("text", tokenize.text, "texts; none: one per line on stdin");
         a.add_flag("--ids", tokenize.ids, "only ids, one line per text");
         a.add_flag("--info", tokenize.info, "the tokenizer chain and its Unicode tables");
         a.add_flag("--json-input", tokenize.json_input, "stdin lines are JSON strings");
         a.add_flag("--no-special", tokenize.no_special, "no [CLS] and [SEP]");
         a.add_option("--max-length", tokenize.max_length,
                      "truncate to this many tokens, 0 = do not")
             ->capture_default_str();
       },
       [&] { return run_tokenize(tokenize); }, &tokenize.common},
      {"convert", "a model folder or tensor file to safetensors (pickles are read without Python)",
       "moe-run convert --from old-model --to new-model\n  moe-run convert --from "
       "pytorch_model.bin --to model.safetensors",
       [&](CLI::App& a) {
         a.add_option("--from", convert.from, "folder, .bin or .safetensors")->required();
         a.add_option("--to", convert.to, "folder or .safetensors to write")->required();
         a.add_option("--dtype", convert.dtype, "keep, f32 or bf16")
             ->check(CLI::IsMember({"keep", "f32", "bf16"}))
             ->capture_default_str();
       },
       [&] { return run_convert(convert); }, &convert.common},
      {"bench", "speed of kernels and models on this machine",
       "moe-run bench --what forward --shape 12,768,12,3072",
       [&](CLI::App& a) {
         a.add_option("--what", bench.what, "gemm, attention, forward, train, search or all")
             ->check(CLI::IsMember({"gemm", "attention", "forward", "train", "search", "all"}))
             ->capture_default_str();
         a.add_option("--shape", bench.shape, "layers,hidden,heads,ffn")->capture_default_str();
         a.add_option("--batches", bench.batches, "texts x tokens, several with commas")
             ->capture_default_str();
         a.add_option("-r,--repetitions", bench.repetitions, "runs per row; the median is shown")
             ->check(CLI::Range(1, 10'000))
             ->capture_default_str();
       },
       [&] { return run_bench(bench); }, &bench.common},
      {"doctor", "what this machine and this build offer", "moe-run doctor", [](CLI::App&) {},
       [&] { return run_doctor(doctor); }, &doctor.common},
  };

  CLI::App app{"moe-run " MOE_VERSION
               ": trains, evaluates and serves dense retrievers with mixture-of-experts blocks"};
  app.footer(exit_codes);
  app.require_subcommand(0, 1);
  app.fallthrough();
  app.allow_config_extras(CLI::config_extras_mode::error);
  app.set_config("--config", "", "TOML file with options, one [command] section");
  app.set_version_flag("-V,--version", std::string("moe-run ") + MOE_VERSION);
  for (Command& c : commands) {
    CLI::App* sub = app.add_subcommand(c.name, c.help);
    sub->footer(std::string("Examples:\n  ") + c.examples);
    add_common(*sub, *c.common);
    c.setup(*sub);
  }
  CLI::App* version = app.add_subcommand("version", "the version of this program");
  std::string about;
  CLI::App* help = app.add_subcommand("help", "help on a command");
  help->add_option("command", about, "the command");

  try {
    app.parse(count, values);
  } catch (const CLI::Success& success) {  // --help, --version
    return app.exit(success);
  } catch (const CLI::ParseError& error) {
    return report_usage(app, error, count, values);
  }
  if (version->parsed()) {
    fmt::print("moe-run {}\n", MOE_VERSION);
    return 0;
  }
  if (help->parsed() && !about.empty()) {
    for (Command& c : commands)
      if (about == c.name) {
        std::cout << app.get_subcommand(about)->help();
        return 0;
      }
    fmt::print(stderr, "moe-run help: there is no command '{}'\n", about);
    return 2;
  }
  for (Command& c : commands) {
    CLI::App* sub = app.get_subcommand(c.name);
    if (!sub->parsed()) continue;
    if (c.common->threads > 0) set_threads(c.common->threads);
    set_quiet(c.common->quiet);
    if (sub->get_name() == "train") train.resolved = "[train]\n" + sub->config_to_str(true, false);
    return c.run();
  }
  std::cout << app.help();
  return 0;
}

}  // namespace
}  // namespace moe

// libgomp's threads spin for milliseconds at every barrier; when another process takes a core that
// costs a factor. It reads its settings when it is loaded, so a short spin needs a fresh start of
// the program.
static void shorten_spinning(char** values) {
  if (std::getenv("GOMP_SPINCOUNT") != nullptr || std::getenv("OMP_WAIT_POLICY") != nullptr) return;
  setenv("GOMP_SPINCOUNT", "20000", 1);
  execv("/proc/self/exe", values);  // where it fails, all works as before, only with longer spins
}

int main(int count, char** values) {
  shorten_spinning(values);
  moe::install_signal_handlers();
  try {
    int code = moe::run(count, values);
    std::cout.flush();
    if (!std::cout || std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
      fmt::print(stderr, "moe-run: writing to standard output failed\n");
      return 74;
    }
    return code;
  } catch (const moe::Interrupted& interrupted) {
    return 128 + interrupted.signal;
  } catch (const moe::Error& error) {
    fmt::print(stderr, "moe-run: {}\n", error.what());
    return moe::exit_code(error.fault());
  } catch (
      const std::system_error& error) {  // fmt::print and std::filesystem: full disk, closed pipe
    fmt::print(stderr, "moe-run: {}\n", error.what());
    return 74;
  } catch (const std::bad_alloc&) {
    fmt::print(stderr, "moe-run: out of memory. Use a smaller batch or a shorter --max-length.\n");
    return 1;
  } catch (const std::exception& error) {
    fmt::print(stderr, "moe-run: internal error: {}\n", error.what());
    return 70;
  }
}
