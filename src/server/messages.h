// The words of /v1/messages, Anthropic's API.
#pragma once

#include "server/answer.h"

namespace baton::server {

extern const Writer kMessagesWriter;

}  // namespace baton::server
