// Opcodes: Python's Lib/pickletools.py (protocol 2), of which torch.save uses the 31 below. Why a
// whitelist: the general format is a program (GLOBAL names any function, REDUCE calls it), filters
// of known-bad names were bypassed again and again, and torch's own "weights only" mode too
// (CVE-2025-32434). Here REDUCE is a switch over five cases.
#include "runtime/unpickle.h"

#include "runtime/bytes.h"
#include "runtime/error.h"

#include <array>
#include <bit>
#include <map>
#include <optional>

namespace moe {

namespace {

using Kind = PickleValue::Kind;

// A state dict needs about 20 values a tensor; memory stays below 500 bytes a value.
constexpr std::size_t most_values = 1'000'000, longest_text = 1 << 20, longest_global = 256,
                      most_dimensions = 16;

constexpr std::array<StorageType, 10> storage_types{{
    {"torch.FloatStorage", "F32", 4},
    {"torch.HalfStorage", "F16", 2},
    {"torch.BFloat16Storage", "BF16", 2},
    {"torch.DoubleStorage", "F64", 8},
    {"torch.LongStorage", "I64", 8},
    {"torch.IntStorage", "I32", 4},
    {"torch.ShortStorage", "I16", 2},
    {"torch.CharStorage", "I8", 1},
    {"torch.ByteStorage", "U8", 1},
    {"torch.BoolStorage", "BOOL", 1},
}};
// Indices of globals: the storage types first, then the three that REDUCE knows.
constexpr std::int64_t ordered_dict = storage_types.size(), rebuild_tensor = ordered_dict + 1,
                       rebuild_parameter = ordered_dict + 2;

std::optional<std::int64_t> global_index(std::string_view name) {
  for (std::size_t i = 0; i < storage_types.size(); ++i)
    if (storage_types[i].global == name) return static_cast<std::int64_t>(i);
  if (name == "collections.OrderedDict") return ordered_dict;
  if (name == "torch._utils._rebuild_tensor_v2") return rebuild_tensor;
  if (name == "torch._utils._rebuild_parameter") return rebuild_parameter;
  return std::nullopt;
}

class Interpreter {
 public:
  Interpreter(std::span<const std::byte> bytes, const std::string& source)
      : bytes_(bytes), source_(source) {}

  Unpickled run() {
    do {
      opcode_at_ = position_;
      opcode_ = load<std::uint8_t>();
    } while (step());
    if (stack_.size() != 1 || !marks_.empty()) reject("{} values are left over", stack_.size());
    if (position_ != bytes_.size()) reject("{} bytes follow the end", bytes_.size() - position_);
    result_.root = stack_[0];
    return std::move(result_);
  }

 private:
  template <class... Args>
  [[noreturn]] void reject(fmt::format_string<Args...> format, Args&&... args) const {
    fail(Fault::bad_data,
         "{}: data.pkl @ byte {}, opcode {:#04x}: {}.\nOnly plain state dicts are read; "
         "save the model as safetensors instead.",
         source_, opcode_at_, opcode_, fmt::format(format, std::forward<Args>(args)...));
  }

  // One opcode; false at STOP.
  bool step() {
    // clang-format off
    switch (opcode_) {
      case 0x80: protocol(load<std::uint8_t>()); break;            // PROTO
      case '.': return false;                                      // STOP
      case '(': marks_.push_back(stack_.size()); break;            // MARK
      case 'q': remember(load<std::uint8_t>()); break;             // BINPUT
      case 'r': remember(load<std::uint32_t>()); break;            // LONG_BINPUT
      case 'h': recall(load<std::uint8_t>()); break;               // BINGET
      case 'j': recall(load<std::uint32_t>()); break;              // LONG_BINGET
      case 'N': push({Kind::none, 0, {}, {}}); break;              // NONE
      case 0x88: push({Kind::boolean, 1, {}, {}}); break;          // NEWTRUE
      case 0x89: push({Kind::boolean, 0, {}, {}}); break;          // NEWFALSE
      case 'K': push_integer(load<std::uint8_t>()); break;         // BININT1
      case 'M': push_integer(load<std::uint16_t>()); break;        // BININT2
      case 'J': push_integer(load<std::int32_t>()); break;         // BININT
      case 0x8a: push_integer(load_long()); break;                 // LONG1
      case 'G': take(8); push({Kind::real, 0, {}, {}}); break;     // BINFLOAT: its value is never needed
      case 'X': push({Kind::text, 0, load_text(), {}}); break;     // BINUNICODE
      case '}': push({Kind::dict, 0, {}, {}}); break;              // EMPTY_DICT
      case ']': push({Kind::list, 0, {}, {}}); break;              // EMPTY_LIST
      case ')': push({Kind::tuple, 0, {}, {}}); break;             // EMPTY_TUPLE
      case 't': push({Kind::tuple, 0, {}, pop_to_mark()}); break;  // TUPLE
      case 0x85: push({Kind::tuple, 0, {}, pop_last(1)}); break;   // TUPLE1
      case 0x86: push({Kind::tuple, 0, {}, pop_last(2)}); break;   // TUPLE2
      case 0x87: push({Kind::tuple, 0, {}, pop_last(3)}); break;   // TUPLE3
      case 'a': extend(Kind::list, pop_last(1)); break;            // APPEND
      case 'e': extend(Kind::list, pop_to_mark()); break;          // APPENDS
      case 's': extend(Kind::dict, pop_last(2)); break;            // SETITEM
      case 'u': extend(Kind::dict, pop_to_mark()); break;          // SETITEMS
      case 'c': global(); break;                                   // GLOBAL
      case 'Q': storage(); break;                                  // BINPERSID
      case 'R': reduce(); break;                                   // REDUCE
      case 'b': build(); break;                                    // BUILD
      default: reject("this opcode is not allowed: it could create or call other objects");
    }
    // clang-format on
    return true;
  }

  std::size_t take(std::size_t count) {
    if (count > bytes_.size() - position_) reject("the data ends inside this opcode");
    std::size_t at = position_;
    position_ += count;
    return at;
  }
  template <class T>
  T load() {
    return load_little<T>(bytes_.data() + take(sizeof(T)));
  }
  std::string load_text() {
    auto length = load<std::uint32_t>();
    if (length > longest_text) reject("a text of {} bytes", length);
    std::size_t at = take(length);
    return std::string(as_text(bytes_.data() + at, length));
  }
  // Little-endian two's complement of 0 to 8 bytes.
  std::int64_t load_long() {
    std::size_t count = load<std::uint8_t>();
    if (count > 8) reject("an integer of {} bytes", count);
    std::size_t at = take(count);
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < count; ++i)
      value |= std::to_integer<std::uint64_t>(bytes_[at + i]) << (8 * i);
    if (count == 0 || count == 8) return static_cast<std::int64_t>(value);
    std::size_t unused = 64 - 8 * count;
    return static_cast<std::int64_t>(value << unused) >> unused;
  }
  std::string load_line() {
    std::string line;
    for (char c; (c = load<char>()) != '\n';) {
      if (line.size() == longest_global) reject("a name of over {} bytes", longest_global);
      line += c;
    }
    return line;
  }

  std::size_t floor() const { return marks_.empty() ? 0 : marks_.back(); }
  void push(PickleValue value) {
    if (result_.values.size() == most_values) reject("more than {} values", most_values);
    stack_.push_back(static_cast<std::uint32_t>(result_.values.size()));
    result_.values.push_back(std::move(value));
  }
  void push_integer(std::int64_t number) { push({Kind::integer, number, {}, {}}); }
  std::uint32_t top() const {
    if (stack_.size() <= floor()) reject("the stack is empty");
    return stack_.back();
  }
  std::uint32_t pop() {
    std::uint32_t index = top();
    stack_.pop_back();
    return index;
  }
  std::vector<std::uint32_t> pop_last(std::size_t count) {
    if (stack_.size() - floor() < count) reject("the stack is empty");
    std::vector<std::uint32_t> items(stack_.end() - static_cast<std::ptrdiff_t>(count),
                                     stack_.end());
    stack_.resize(stack_.size() - count);
    return items;
  }
  std::vector<std::uint32_t> pop_to_mark() {
    if (marks_.empty()) reject("there is no mark");
    auto items = pop_last(stack_.size() - marks_.back());
    marks_.pop_back();
    return items;
  }
  void protocol(unsigned number) const {
    if (number != 2) reject("pickle protocol {} instead of 2", number);
  }
  void remember(std::uint32_t name) {
    if (memo_.size() == most_values) reject("more than {} memos", most_values);
    memo_[name] = top();
  }
  // The stack may grow without new values (BINGET), one byte of file each.
  void recall(std::uint32_t name) {
    auto found = memo_.find(name);
    if (found == memo_.end()) reject("memo {} was never stored", name);
    stack_.push_back(found->second);
  }

  void extend(Kind kind, const std::vector<std::uint32_t>& items) {
    PickleValue& target = result_.values[top()];
    if (target.kind != kind) reject("the target is not a {}", kind == Kind::dict ? "dict" : "list");
    if (kind == Kind::dict && items.size() % 2 != 0) reject("a key without a value");
    target.items.insert(target.items.end(), items.begin(), items.end());
  }

  void global() {
    std::string name = load_line();
    name += '.';
    name += load_line();
    auto index = global_index(name);
    if (!index)
      reject("the name {} is not allowed; a pickle that uses it may run code", in_quotes(name));
    push({Kind::global, *index, {}, {}});
  }

  const PickleValue& expect(std::uint32_t index, Kind kind, const char* what) const {
    const PickleValue& value = result_.values[index];
    if (value.kind != kind) reject("{} expected", what);
    return value;
  }

  // ('storage', torch.FloatStorage, key, location, elements); the location (a device) does not
  // matter.
  void storage() {
    const auto& parts = expect(pop(), Kind::tuple, "a tuple").items;
    if (parts.size() != 5) reject("a storage of {} parts instead of 5", parts.size());
    if (expect(parts[0], Kind::text, "a text").text != "storage") reject("not a storage");
    std::int64_t type = expect(parts[1], Kind::global, "a storage type").number;
    if (type >= ordered_dict) reject("a storage type expected");
    const std::string& key = expect(parts[2], Kind::text, "a storage key").text;
    std::int64_t elements = expect(parts[4], Kind::integer, "a storage size").number;
    if (elements < 0) reject("a storage of {} elements", elements);
    result_.storages.push_back({&storage_types[static_cast<std::size_t>(type)], key,
                                static_cast<std::uint64_t>(elements)});
    push({Kind::storage, static_cast<std::int64_t>(result_.storages.size()) - 1, {}, {}});
  }

  void reduce() {
    std::uint32_t arguments = pop();
    std::int64_t callee = expect(pop(), Kind::global, "a known name").number;
    const auto& parts = expect(arguments, Kind::tuple, "a tuple of arguments").items;
    if (callee == ordered_dict) {
      if (!parts.empty()) reject("OrderedDict with arguments");
      push({Kind::dict, 0, {}, {}});
    } else if (callee == rebuild_tensor) {
      tensor(parts);
    } else if (callee == rebuild_parameter) {  // (tensor, requires_grad, hooks): the tensor itself
      if (parts.size() != 3) reject("a parameter of {} parts instead of 3", parts.size());
      expect(parts[0], Kind::tensor, "a tensor");
      stack_.push_back(parts[0]);
    } else {
      reject("a storage type is called");
    }
  }

  // (storage, offset, sizes, strides, requires_grad, hooks[, metadata])
  void tensor(const std::vector<std::uint32_t>& parts) {
    if (parts.size() != 6 && parts.size() != 7) reject("a tensor of {} parts", parts.size());
    PickledTensor view;
    view.storage = static_cast<std::uint32_t>(expect(parts[0], Kind::storage, "a storage").number);
    std::int64_t offset = expect(parts[1], Kind::integer, "a storage offset").number;
    if (offset < 0) reject("the storage offset {}", offset);
    view.offset = static_cast<std::uint64_t>(offset);
    view.sizes = numbers(parts[2]);
    view.strides = numbers(parts[3]);
    if (view.sizes.size() != view.strides.size()) reject("sizes and strides of different ranks");
    result_.tensors.push_back(std::move(view));
    push({Kind::tensor, static_cast<std::int64_t>(result_.tensors.size()) - 1, {}, {}});
  }
  std::vector<std::int64_t> numbers(std::uint32_t index) const {
    const auto& items = expect(index, Kind::tuple, "a tuple of sizes").items;
    if (items.size() > most_dimensions) reject("{} dimensions", items.size());
    std::vector<std::int64_t> values;
    for (std::uint32_t item : items) {
      values.push_back(expect(item, Kind::integer, "an integer").number);
      if (values.back() < 0) reject("the negative size {}", values.back());
    }
    return values;
  }

  // An OrderedDict's attributes (_metadata: versions of modules) do not concern the weights.
  void build() {
    expect(pop(), Kind::dict, "a dict of attributes");
    expect(top(), Kind::dict, "only dicts have attributes here: an OrderedDict");
  }

  std::span<const std::byte> bytes_;
  const std::string& source_;
  std::size_t position_ = 0, opcode_at_ = 0;
  unsigned opcode_ = 0;
  Unpickled result_;
  std::vector<std::uint32_t> stack_;  // indices of values
  std::vector<std::size_t> marks_;    // heights of stack_
  std::map<std::uint32_t, std::uint32_t> memo_;
};

}  // namespace

Unpickled unpickle(std::span<const std::byte> bytes, const std::string& source) {
  return Interpreter(bytes, source).run();
}

}  // namespace moe
