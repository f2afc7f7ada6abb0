// The web page at `/`: files of src/server/page, in the program.
#pragma once

#include <string_view>

#include "server/http.h"

namespace baton::server {

// Written by CMake (cmake/BatonPage.cmake).
extern const std::string_view kPageHtml, kPageCss, kPageJs;

// A file of the page. It may load its own files and ask this server, nothing else.
HttpReply PageReply(std::string_view body, std::string_view type);

}  // namespace baton::server
