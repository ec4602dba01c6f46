// torch.save since 1.6: a ZIP of NAME/data.pkl (what the tensors are), NAME/data/KEY (one entry a
// storage) and small records such as NAME/byteorder. Tensors are strided views of storages; dense
// ones stay in the map, others are copied to row-major order.
#include "runtime/bytes.h"
#include "runtime/tensor_file.h"
#include "runtime/unpickle.h"
#include "runtime/zip.h"

#include <optional>
#include <unordered_map>

namespace moe {

namespace {

using Kind = PickleValue::Kind;
using Bytes = std::span<const std::byte>;

constexpr std::size_t largest_pickle = 32 << 20;

class TorchFile {
 public:
  explicit TorchFile(const std::string& path)
      : path_(path), file_(std::make_shared<const MappedFile>(path)) {}

  TensorFile read() {
    open_archive();
    const Bytes* program = entry("data.pkl");
    if (program->size() > largest_pickle)
      reject("data.pkl has {} bytes, the limit is {}", program->size(), largest_pickle);
    pickle_ = unpickle(*program, path_);
    TensorFile result;
    result.source = path_;
    const PickleValue& root = state_dict();
    for (std::size_t i = 0; i < root.items.size(); i += 2) {
      const PickleValue& key = pickle_.at(root.items[i]);
      if (key.kind != Kind::text) reject("the state dict has a key that is not a text");
      if (key.text.size() > longest_tensor_name)
        reject("a tensor name of {} bytes", key.text.size());
      const PickleValue& value = pickle_.at(root.items[i + 1]);
      if (value.kind != Kind::tensor)
        reject("{} is not a tensor; save model.state_dict() instead", in_quotes(key.text));
      const PickledTensor& view = pickle_.tensors[static_cast<std::size_t>(value.number)];
      if (!result.tensors.try_emplace(key.text, entry_of(key.text, view)).second)
        reject("tensor {} is there twice", in_quotes(key.text));
    }
    return result;
  }

 private:
  template <class... Args>
  [[noreturn]] void reject(fmt::format_string<Args...> format, Args&&... args) const {
    fail(Fault::bad_data, "{}: {}.", path_, fmt::format(format, std::forward<Args>(args)...));
  }

  void open_archive() {
    std::string_view start = as_text(file_->data(), std::min<std::size_t>(file_->size(), 4));
    if (start != "PK\x03\x04")
      reject(
          "not a zip file as torch.save has written since version 1.6{}.\n"
          "Load it with a current torch and save it as safetensors",
          !start.empty() && start[0] == '\x80' ? " (a plain pickle)" : "");
    for (ZipEntry& one : read_stored_zip(*file_)) {
      auto slash = one.name.find('/');
      if (slash == std::string::npos)
        reject("zip entry {} stands outside the archive's folder", in_quotes(one.name));
      std::string folder = one.name.substr(0, slash);
      if (entries_.empty()) folder_ = folder;
      if (folder != folder_)
        reject("two folders in one archive: {} and {}", in_quotes(folder_), in_quotes(folder));
      entries_.emplace(one.name.substr(slash + 1), one.data);
    }
    if (entry("constants.pkl") != nullptr)
      reject("a TorchScript program, not weights; save model.state_dict() instead");
    if (entry("data.pkl") == nullptr) reject("no data.pkl inside; not a file of torch.save");
    if (const Bytes* order = entry("byteorder");
        order != nullptr && as_text(order->data(), order->size()) != "little")
      reject("written on a big-endian machine; save it again on a little-endian one");
  }

  const Bytes* entry(const std::string& name) const {
    auto found = entries_.find(name);
    return found == entries_.end() ? nullptr : &found->second;
  }

  // The root itself, or what it has under "state_dict", as trainers save it beside epoch and
  // optimizer.
  const PickleValue& state_dict() const {
    const PickleValue& root = pickle_.at(pickle_.root);
    if (root.kind != Kind::dict)
      reject("the top object is not a dict of tensors; save model.state_dict() instead");
    for (std::size_t i = 0; i < root.items.size(); i += 2) {
      const PickleValue& key = pickle_.at(root.items[i]);
      const PickleValue& value = pickle_.at(root.items[i + 1]);
      if (key.kind == Kind::text && key.text == "state_dict" && value.kind == Kind::dict)
        return value;
    }
    return root;
  }

  Bytes storage_bytes(const std::string& name, const PickledStorage& storage) const {
    const Bytes* data = entry("data/" + storage.key);
    if (data == nullptr)
      reject("tensor {}: its storage {} is missing", in_quotes(name), in_quotes(storage.key));
    std::uint64_t bytes = 0;
    if (!product_fits(storage.elements, storage.type->bytes, &bytes) || bytes != data->size())
      reject("tensor {}: storage {} has {} bytes, {} elements of {} were promised", in_quotes(name),
             in_quotes(storage.key), data->size(), storage.elements, storage.type->dtype);
    return *data;
  }

  // Elements of the view; fails when the farthest one is outside the storage.
  std::uint64_t checked_elements(const std::string& name, const PickledTensor& view,
                                 std::uint64_t available) const {
    std::uint64_t count = 1, last = view.offset;
    bool fits = true, empty = false;
    for (std::size_t i = 0; i < view.sizes.size(); ++i) {
      auto size = static_cast<std::uint64_t>(view.sizes[i]),
           stride = static_cast<std::uint64_t>(view.strides[i]);
      std::uint64_t reach = 0;
      if (size == 0) {
        empty = true;
        continue;
      }
      fits = fits && product_fits(count, size, &count) && product_fits(size - 1, stride, &reach) &&
             sum_fits(last, reach, &last);
    }
    if (!fits || (empty ? view.offset > available : last >= available))
      reject("tensor {} ({} from element {}) reaches beyond its storage of {} elements",
             in_quotes(name), fmt::join(view.sizes, "x"), view.offset, available);
    return empty ? 0 : count;
  }

  static bool dense(const PickledTensor& view) {
    std::int64_t expected = 1;  // cannot overflow: checked_elements has multiplied the same sizes
    for (std::size_t i = view.sizes.size(); i-- > 0;) {
      if (view.sizes[i] != 1 && view.strides[i] != expected) return false;
      expected *= view.sizes[i];
    }
    return true;
  }

  TensorEntry entry_of(const std::string& name, const PickledTensor& view) {
    const PickledStorage& storage = pickle_.storages[view.storage];
    Bytes data = storage_bytes(name, storage);
    std::size_t element = storage.type->bytes;
    auto count = static_cast<std::size_t>(checked_elements(name, view, storage.elements));
    TensorEntry result{std::string(storage.type->dtype),
                       {view.sizes.begin(), view.sizes.end()},
                       data.data() + view.offset * element,
                       count * element,
                       file_,
                       path_};
    if (count == 0 || dense(view)) return result;
    // Stride 0 lets a few bytes claim any size, and many views may share a storage: bound what is
    // copied.
    copied_ += result.bytes;
    if (count > storage.elements || copied_ > 4 * file_->size())
      reject("tensor {}: an expanded view of {} elements; save it with .contiguous()",
             in_quotes(name), count);
    auto copy = std::make_shared<std::vector<std::byte>>(result.bytes);
    gather(view, data.data(), element, *copy);
    result.data = copy->data();
    result.owner = std::move(copy);
    return result;
  }

  // Row-major copy: an odometer over the indices, the last one fastest.
  static void gather(const PickledTensor& view, const std::byte* storage, std::size_t element,
                     std::vector<std::byte>& to) {
    std::vector<std::int64_t> index(view.sizes.size(), 0);
    auto from = static_cast<std::int64_t>(view.offset);
    for (std::size_t at = 0; at < to.size(); at += element) {
      std::memcpy(to.data() + at, storage + static_cast<std::size_t>(from) * element, element);
      for (std::size_t i = index.size(); i-- > 0;) {
        if (view.sizes[i] == 1) continue;  // its stride may be any number
        from += view.strides[i];
        if (++index[i] < view.sizes[i]) break;
        from -= view.strides[i] * view.sizes[i];
        index[i] = 0;
      }
    }
  }

  std::string path_, folder_;
  std::shared_ptr<const MappedFile> file_;
  std::unordered_map<std::string, Bytes> entries_;
  Unpickled pickle_;
  std::uint64_t copied_ = 0;
};

}  // namespace

TensorFile read_pytorch_bin(const std::string& path) {
  return TorchFile(path).read();
}

}  // namespace moe
