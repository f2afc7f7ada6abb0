// Numbers as people read them: on pages and on terminals.
#pragma once

#include <cstdint>
#include <string>

namespace baton {

std::string Bytes(double bytes);    // "22.5 KB", decimal units
std::string Count(int64_t n);       // "8,192"
std::string Percent(double share);  // "10.9 %"
std::string Number(double value);   // three to four significant digits
std::string Duration(double seconds);

}  // namespace baton
