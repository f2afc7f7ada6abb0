// The words of /v1/responses. Nothing is stored: each request brings its whole conversation.
#pragma once

#include "server/answer.h"

namespace baton::server {

extern const Writer kResponsesWriter;

}  // namespace baton::server
