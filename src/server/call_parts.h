// What the parsers of several APIs share.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "server/call.h"
#include "server/fields.h"

namespace baton::server {

// Sampling, stop, stream, plan and the like; refuses what is not supported.
void ReadCommon(Fields& fields, Call& call);
// The turns of a chat that stand in `name`: role, content as a text or as parts that are text, and
// whatever else the template may want.
std::vector<ChatTurn> ReadTurns(Fields& fields, std::string_view name);
// A content's text: itself, or its parts one after the other. False if there is something else.
bool TextOfContent(const Json& content, std::string& text);

// The fields of one API.
void ReadResponses(Fields& fields, Call& call);
void ReadMessages(Fields& fields, Call& call);
std::vector<ChatTurn> ReadMessagesTurns(Fields& fields);  // system and messages

}  // namespace baton::server
