// The part of ZIP that torch writes: STORED entries, found through the central directory.
// Everything else is refused: compression, encryption, several disks, overlaps, duplicate or
// travelling names, comments.
#pragma once

#include "runtime/file.h"

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace moe {

struct ZipEntry {
  std::string name;
  std::span<const std::byte> data;  // in the mapped file; its CRC was checked
};

std::vector<ZipEntry> read_stored_zip(const MappedFile& file);

// CRC-32 of ISO 3309 (polynomial 0xEDB88320, reflected).
std::uint32_t zip_checksum(std::span<const std::byte> data);

}  // namespace moe
