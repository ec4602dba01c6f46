#include "runtime/strict_json.h"

#include "runtime/bytes.h"
#include "runtime/error.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <set>
#include <vector>

namespace moe {

nlohmann::json parse_json(std::string_view text, const std::string& source, int deepest) {
  using Json = nlohmann::json;
  auto line_of = [&](std::size_t position) {
    return 1 +
           std::count(text.begin(),
                      text.begin() + static_cast<std::ptrdiff_t>(std::min(position, text.size())),
                      '\n');
  };
  if (auto zero = text.find('\0'); zero != std::string_view::npos)
    fail(Fault::bad_data, "{}:{}: a zero byte; this is not JSON.", source, line_of(zero));

  std::vector<std::set<std::string>> keys;  // of the objects around the current place
  auto watch = [&](int depth, Json::parse_event_t event, Json& value) {
    if (depth > deepest) fail(Fault::bad_data, "{}: JSON nested over {} deep.", source, deepest);
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key) {
      const auto& key = value.get_ref<const std::string&>();
      if (!keys.back().insert(key).second)
        fail(Fault::bad_data, "{}: key {} is there twice; delete one.", source, in_quotes(key));
    }
    return true;
  };
  try {
    return Json::parse(text.begin(), text.end(), watch);
  } catch (const Json::parse_error& error) {
    std::string_view reason = error.what();
    if (auto colon = reason.find("column "); colon != std::string_view::npos)
      reason.remove_prefix(colon);
    fail(Fault::bad_data, "{}:{}: not valid JSON: {}", source, line_of(error.byte),
         in_quotes(reason));
  } catch (const Json::exception& error) {  // a number out of range
    fail(Fault::bad_data, "{}: {}", source, in_quotes(error.what()));
  }
}

}  // namespace moe
