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
// whatever else the template may want. The arguments of calls, which are JSON in a text, become the
// objects that templates write.
std::vector<ChatTurn> ReadTurns(Fields& fields, std::string_view name);
// The same of `messages`.
std::vector<ChatTurn> TurnsOf(Fields& fields, std::string_view name, const Json& messages);
// What the answer must be: {"type": "text"}, "json_object", or "json_schema" with {"schema",
// "strict"} in a member of that name, or beside the type.
void ReadResponseFormat(Fields& fields, std::string_view name, Call& call);
void SetResponseFormat(Fields& fields, std::string_view name, const Json& format, Call& call);
// A content's text: itself, or its parts one after the other. False if there is something else.
bool TextOfContent(const Json& content, std::string& text);

// The fields of one API.
void ReadResponses(Fields& fields, Call& call);
void ReadMessages(Fields& fields, Call& call);
std::vector<ChatTurn> ReadMessagesTurns(Fields& fields);  // system and messages
void ReadMessagesTools(Fields& fields, Tools& tools, std::string& described);

}  // namespace baton::server
