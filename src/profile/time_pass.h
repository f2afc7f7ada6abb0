// The time of a decode pass as the engine runs it.
#pragma once

#include "engine/session.h"

namespace baton {

// Seconds of one decode pass, dense or under `plan`, over so many rows behind the session's tokens,
// which are then cut off. Several rows: as a verification attends. Tokens are picked.
Result<double> TimePass(Engine& engine, Session& session, const ResolvedPlan* plan, int64_t rows);

}  // namespace baton
