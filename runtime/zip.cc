// Source: PKWARE APPNOTE 6.3.10, sections 4.3.7 (local header), 4.3.12 (central
// directory), 4.3.14-16 (ends). ZIP is read differently by different programs, which is how
// scanners are fooled; so whatever could be read in two ways is refused: both ends must agree, the
// end stands at the last byte, local headers repeat the directory.
#include "runtime/zip.h"

#include "runtime/bytes.h"

#include <algorithm>
#include <array>
#include <set>

namespace moe {

namespace {

constexpr std::uint32_t end_signature = 0x06054b50, end64_signature = 0x06064b50,
                        locator_signature = 0x07064b50, central_signature = 0x02014b50,
                        local_signature = 0x04034b50, sentinel = 0xFFFFFFFF;
constexpr std::size_t end_bytes = 22, end64_bytes = 56, locator_bytes = 20, central_bytes = 46,
                      local_bytes = 30;
// Bit 3: sizes stand behind the data; bit 11: UTF-8 names. torch sets both. Nothing else is
// allowed.
constexpr unsigned sizes_follow = 1u << 3, utf8_names = 1u << 11;

struct Directory {
  std::uint64_t entries, bytes, offset;
};

struct Listed {
  ZipEntry entry;
  std::uint64_t size, local;  // bytes of data; offset of the local header
  std::uint32_t checksum;
  unsigned flags;
};

class ZipReader {
 public:
  explicit ZipReader(const MappedFile& file) : file_(file) {}

  std::vector<ZipEntry> read() {
    Directory directory = find_directory();
    std::vector<Listed> listed = read_directory(directory);
    std::sort(listed.begin(), listed.end(),
              [](const Listed& a, const Listed& b) { return a.local < b.local; });
    std::vector<ZipEntry> entries;
    std::uint64_t free_from = 0;  // no byte may belong to two entries
    for (Listed& one : listed) {
      if (one.local < free_from)
        reject(one.local, "entry {} overlaps another", in_quotes(one.entry.name));
      std::uint64_t start = check_local_header(one, directory.offset);
      one.entry.data = {file_.data() + start, static_cast<std::size_t>(one.size)};
      free_from = start + one.size;
      if (zip_checksum(one.entry.data) != one.checksum)
        reject(start, "entry {} is damaged: its CRC does not match", in_quotes(one.entry.name));
      entries.push_back(std::move(one.entry));
    }
    return entries;
  }

 private:
  template <class... Args>
  [[noreturn]] void reject(std::uint64_t at, fmt::format_string<Args...> format,
                           Args&&... args) const {
    fail(Fault::bad_data,
         "{} @ byte {}: {}.\nThe file is damaged or was not written by torch.save.", file_.path(),
         at, fmt::format(format, std::forward<Args>(args)...));
  }
  template <class T>
  T load(std::uint64_t at) const {  // callers have checked the range
    return load_little<T>(file_.data() + at);
  }

  Directory find_directory() const {
    if (file_.size() < end_bytes) reject(0, "{} bytes are too few for a zip file", file_.size());
    std::uint64_t end = file_.size() - end_bytes;
    if (load<std::uint32_t>(end) != end_signature)
      reject(end, "no end of the zip directory here; the file is cut off or has a comment");
    if (load<std::uint32_t>(end + 4) != 0) reject(end, "a zip over several disks");
    Directory found{load<std::uint16_t>(end + 10), load<std::uint32_t>(end + 12),
                    load<std::uint32_t>(end + 16)};
    if (load<std::uint16_t>(end + 8) != found.entries) reject(end, "two counts of entries differ");
    if (load<std::uint16_t>(end + 20) != 0) reject(end, "the zip has a comment");
    if (end >= locator_bytes && load<std::uint32_t>(end - locator_bytes) == locator_signature)
      found = find_directory64(found, &end);
    if (found.offset > end || found.bytes != end - found.offset)
      reject(end, "the zip directory ({} bytes at {}) does not end here", found.bytes,
             found.offset);
    if (found.entries > found.bytes / central_bytes)
      reject(end, "{} entries do not fit the directory", found.entries);
    return found;
  }

  // torch always adds the 64-bit end. Both ends must say the same, where the small one can say it.
  Directory find_directory64(const Directory& small, std::uint64_t* end) const {
    std::uint64_t locator = *end - locator_bytes;
    if (locator < end64_bytes || load<std::uint64_t>(locator + 8) != locator - end64_bytes ||
        load<std::uint32_t>(locator + 4) != 0 || load<std::uint32_t>(locator + 16) != 1)
      reject(locator, "the zip64 end is not where it must be");
    std::uint64_t at = locator - end64_bytes;
    if (load<std::uint32_t>(at) != end64_signature ||
        load<std::uint64_t>(at + 4) != end64_bytes - 12 || load<std::uint64_t>(at + 16) != 0)
      reject(at, "the zip64 end is malformed");
    Directory large{load<std::uint64_t>(at + 32), load<std::uint64_t>(at + 40),
                    load<std::uint64_t>(at + 48)};
    if (load<std::uint64_t>(at + 24) != large.entries) reject(at, "two counts of entries differ");
    if ((small.entries != 0xFFFF && small.entries != large.entries) ||
        (small.bytes != sentinel && small.bytes != large.bytes) ||
        (small.offset != sentinel && small.offset != large.offset))
      reject(at, "the zip and zip64 ends disagree");
    *end = at;
    return large;
  }

  std::vector<Listed> read_directory(const Directory& directory) const {
    std::vector<Listed> listed;
    std::set<std::string> names;
    std::uint64_t at = directory.offset, end = directory.offset + directory.bytes;
    for (std::uint64_t i = 0; i < directory.entries; ++i) {
      if (end - at < central_bytes || load<std::uint32_t>(at) != central_signature)
        reject(at, "no directory entry here");
      std::uint64_t name = load<std::uint16_t>(at + 28), extra = load<std::uint16_t>(at + 30),
                    comment = load<std::uint16_t>(at + 32);
      if (end - at - central_bytes < name + extra + comment)
        reject(at, "a directory entry is cut off");
      Listed one = read_listed(at, name, extra);
      if (!names.insert(one.entry.name).second)
        reject(at, "entry {} is there twice", in_quotes(one.entry.name));
      listed.push_back(std::move(one));
      at += central_bytes + name + extra + comment;
    }
    if (at != end) reject(at, "bytes behind the last directory entry");
    return listed;
  }

  Listed read_listed(std::uint64_t at, std::uint64_t name, std::uint64_t extra) const {
    Listed one{};
    one.entry.name = as_text(file_.data() + at + central_bytes, static_cast<std::size_t>(name));
    check_name(at, one.entry.name);
    one.flags = load<std::uint16_t>(at + 8);
    if ((one.flags & ~(sizes_follow | utf8_names)) != 0)
      reject(at, "entry {} is encrypted or uses zip flags {:#x}", in_quotes(one.entry.name),
             one.flags);
    if (load<std::uint16_t>(at + 10) != 0)
      reject(at, "entry {} is compressed; torch never does that", in_quotes(one.entry.name));
    if (load<std::uint16_t>(at + 34) != 0) reject(at, "a zip over several disks");
    one.checksum = load<std::uint32_t>(at + 16);
    std::uint64_t packed = load<std::uint32_t>(at + 20);
    one.size = load<std::uint32_t>(at + 24);
    one.local = load<std::uint32_t>(at + 42);
    read_extra64(at + central_bytes + name, extra, one, packed);
    if (packed != one.size) reject(at, "entry {} has two sizes", in_quotes(one.entry.name));
    return one;
  }

  // The zip64 field (id 1) holds, in this order, exactly those of the three values that are
  // sentinels.
  void read_extra64(std::uint64_t at, std::uint64_t bytes, Listed& one,
                    std::uint64_t& packed) const {
    std::array<std::uint64_t*, 3> values{&one.size, &packed, &one.local};
    std::uint64_t wanted = 0;
    for (const std::uint64_t* value : values) wanted += *value == sentinel ? 8 : 0;
    bool found = false;
    for (std::uint64_t end = at + bytes; at < end;) {
      if (end - at < 4) reject(at, "a zip extra field is cut off");
      std::uint64_t id = load<std::uint16_t>(at), size = load<std::uint16_t>(at + 2);
      at += 4;
      if (size > end - at) reject(at, "a zip extra field is cut off");
      if (id == 1) {
        if (found || size != wanted || wanted == 0) reject(at, "an unexpected zip64 field");
        found = true;
        std::uint64_t from = at;
        for (std::uint64_t* value : values)
          if (*value == sentinel) {
            *value = load<std::uint64_t>(from);
            from += 8;
          }
      }
      at += size;
    }
    if (wanted != 0 && !found) reject(at, "the zip64 field is missing");
  }

  void check_name(std::uint64_t at, const std::string& name) const {
    bool good = !name.empty() && name.size() <= 1024;
    for (std::size_t begin = 0; good && begin <= name.size();) {
      std::size_t slash = std::min(name.find('/', begin), name.size());
      good = plain_file_name(std::string_view(name).substr(begin, slash - begin));
      begin = slash + 1;
    }
    if (!good) reject(at, "entry name {} is not allowed", in_quotes(name));
  }

  // Returns where the data starts.
  std::uint64_t check_local_header(const Listed& one, std::uint64_t limit) const {
    std::uint64_t at = one.local;
    const std::string& name = one.entry.name;
    if (limit < local_bytes || at > limit - local_bytes ||
        load<std::uint32_t>(at) != local_signature)
      reject(at, "entry {} has no local header here", in_quotes(name));
    std::uint64_t start =
        at + local_bytes + load<std::uint16_t>(at + 26) + load<std::uint16_t>(at + 28);
    if (start > limit || one.size > limit - start)
      reject(at, "entry {} of {} bytes is cut off", in_quotes(name), one.size);
    if (load<std::uint16_t>(at + 26) != name.size() ||
        as_text(file_.data() + at + local_bytes, name.size()) != name ||
        load<std::uint16_t>(at + 6) != one.flags || load<std::uint16_t>(at + 8) != 0)
      reject(at, "the local header of {} differs from the directory", in_quotes(name));
    // With bit 3 the values may be left out here.
    bool open = (one.flags & sizes_follow) != 0;
    auto agrees = [open](std::uint64_t here, std::uint64_t listed) {
      return here == listed || here == sentinel || (open && here == 0);
    };
    if (!agrees(load<std::uint32_t>(at + 18), one.size) ||
        !agrees(load<std::uint32_t>(at + 22), one.size) ||
        !agrees(load<std::uint32_t>(at + 14), one.checksum))
      reject(at, "the local header of {} has another size or CRC", in_quotes(name));
    return start;
  }

  const MappedFile& file_;
};

// Eight bytes at a time: tables[k][b] is the CRC of byte b followed by k zero bytes.
// Source: Kounavis and Berry, "A Systematic Approach to Building High Performance Software-Based
// CRC Generators", ISCC 2005.
constexpr auto checksum_tables = [] {
  std::array<std::array<std::uint32_t, 256>, 8> tables{};
  for (std::uint32_t b = 0; b < 256; ++b) {
    std::uint32_t c = b;
    for (int bit = 0; bit < 8; ++bit) c = (c & 1) != 0 ? (c >> 1) ^ 0xEDB88320u : c >> 1;
    tables[0][b] = c;
  }
  for (std::size_t k = 1; k < 8; ++k)
    for (std::size_t b = 0; b < 256; ++b)
      tables[k][b] = (tables[k - 1][b] >> 8) ^ tables[0][tables[k - 1][b] & 255];
  return tables;
}();

}  // namespace

std::uint32_t zip_checksum(std::span<const std::byte> data) {
  const auto& t = checksum_tables;
  std::uint32_t c = 0xFFFFFFFFu;
  const std::byte* at = data.data();
  std::size_t left = data.size();
  for (; left >= 8; left -= 8, at += 8) {
    std::uint64_t v = load_little<std::uint64_t>(at) ^ c;
    c = t[7][v & 255] ^ t[6][(v >> 8) & 255] ^ t[5][(v >> 16) & 255] ^ t[4][(v >> 24) & 255] ^
        t[3][(v >> 32) & 255] ^ t[2][(v >> 40) & 255] ^ t[1][(v >> 48) & 255] ^ t[0][v >> 56];
  }
  for (; left > 0; --left, ++at)
    c = (c >> 8) ^ t[0][(c ^ std::to_integer<std::uint32_t>(*at)) & 255];
  return ~c;
}

std::vector<ZipEntry> read_stored_zip(const MappedFile& file) {
  return ZipReader(file).read();
}

}  // namespace moe
