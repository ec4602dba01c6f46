// JSON documents from untrusted files as a DOM: duplicate keys, deep nesting and zero bytes are
// errors. (nlohmann keeps the last of two equal keys silently and takes a zero byte for the end.)
// Callers bound the text's size.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include <string>
#include <string_view>

namespace moe {

// `source` is the file's name for messages.
nlohmann::json parse_json(std::string_view text, const std::string& source, int deepest = 32);

}  // namespace moe
