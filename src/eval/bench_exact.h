// Exact answers beside dense ones on a text, and what the acceptance seen there promises at the
// depths whose passes were timed.
#pragma once

#include <vector>

#include "baton/eval.h"
#include "eval/steps.h"

namespace baton {

// `options.exact` and `options.text` are given; `rows` have their `verify` times.
Result<ExactBench> BenchExact(Engine& engine, const BenchOptions& options,
                              const std::vector<BenchRow>& rows, Steps& steps);

}  // namespace baton
