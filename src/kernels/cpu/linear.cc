// Linear and Glu: preparation of x, division of the work, scratch memory. Any division gives the
// same bits (see linear_kernels.h), so units are sized for speed alone.
#include <algorithm>
#include <vector>

#include "base/buffer.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/linear_kernels.h"
#include "kernels/cpu/pack.h"

namespace baton::cpu {
namespace {

// Up to this many tokens every thread prepares x for itself, which is cheaper than a barrier.
constexpr int64_t kRedundantTokens = 2;

// One panel of a matrix times some tokens.
struct Unit {
  const PackedMatrix* w;
  int out;
  int64_t group;
  int groups;
  int64_t token, tokens;
};

const PackedMatrix& Packed(const Matrix* m) {
  const auto* p = dynamic_cast<const PackedMatrix*>(m);
  BATON_CHECK(p != nullptr);
  return *p;
}

void Reserve(Buffer& b, int64_t bytes) {
  if (b.size() < bytes) b = Buffer::AllocateOrDie(bytes);
}

// Prepared x: the tiles of one form (bytes or plain) follow each other.
struct Prepared {
  Buffer quant, plain;
};

struct Job {
  const LinearKernels* kernels = nullptr;
  View<const float> x;
  const float* norm_weight = nullptr;
  float norm_eps = 0;
  bool fine = false;  // the quantised form has 16 bits
  bool want_quant = false, want_plain = false;

  int64_t tokens() const { return x.dim(0); }
  int64_t tiles() const { return (tokens() + kernels->tile_tokens - 1) / kernels->tile_tokens; }
  int64_t blocks() const { return (x.dim(1) + kBlockColumns - 1) / kBlockColumns; }
  int64_t quant_tile_bytes() const {
    return blocks() * kernels->tile_tokens *
           static_cast<int64_t>(fine ? sizeof(FineBlock) : sizeof(QuantBlock));
  }
  int64_t plain_tile_bytes() const { return blocks() * kernels->plain_tile_bytes_per_block; }
  bool UsesQuant(const PackedMatrix& m) const {
    return kernels->quantises_x && m.layout != PackLayout::kBf16;
  }
  void Want(const PackedMatrix& m) { (UsesQuant(m) ? want_quant : want_plain) = true; }
};

}  // namespace

struct CpuOps::LinearState {
  LinearKernels decode, prompt;
  Prepared shared;            // x of a call with many tokens
  std::vector<Prepared> own;  // per thread
  // Per thread: `own` holds this call's x. On lines of their own, since every thread writes its
  // flag.
  struct alignas(64) Flag {
    bool set = false;
  };
  std::vector<Flag> ready;
  std::vector<Buffer> acc;      // per thread: two of [token_block, kPanelRows]
  std::vector<Buffer> scratch;  // per thread
  std::vector<Unit> units;

  LinearState(CpuIsa isa, int threads)
      : decode(isa >= CpuIsa::kAvx512 ? avx512::GetLinearKernels()
               : isa == CpuIsa::kAvx2 ? avx2::GetLinearKernels()
                                      : portable::GetLinearKernels()),
        prompt(isa == CpuIsa::kAmx ? amx::GetPromptLinearKernels() : decode),
        own(static_cast<size_t>(threads)),
        ready(static_cast<size_t>(threads)),
        acc(static_cast<size_t>(threads)),
        scratch(static_cast<size_t>(threads)) {
    const int64_t tokens = std::max(decode.token_block, prompt.token_block);
    for (Buffer& b : acc) b = Buffer::AllocateOrDie(2 * tokens * kPanelRows * 4);
    if (prompt.scratch_bytes > 0) {
      for (Buffer& b : scratch) b = Buffer::AllocateOrDie(prompt.scratch_bytes);
    }
  }
  float* Acc(int rank) const { return acc[static_cast<size_t>(rank)].as<float>(); }

  void ReserveTiles(Prepared& p, const Job& j) const {
    if (j.want_quant) Reserve(p.quant, j.tiles() * j.quant_tile_bytes());
    if (j.want_plain) Reserve(p.plain, j.tiles() * j.plain_tile_bytes());
  }

  void PrepareTile(Prepared& p, const Job& j, int64_t tile) const {
    const int64_t most = j.kernels->tile_tokens, first = tile * most;
    std::byte* quant = j.want_quant ? p.quant.data() + tile * j.quant_tile_bytes() : nullptr;
    j.kernels->prepare(
        {.x = j.x.row(first),
         .x_stride = j.x.stride(0),
         .count = static_cast<int>(std::min(most, j.tokens() - first)),
         .cols = j.x.dim(1),
         .blocks = j.blocks(),
         .norm_weight = j.norm_weight,
         .norm_eps = j.norm_eps,
         .quant = j.fine ? nullptr : reinterpret_cast<QuantBlock*>(quant),
         .fine = j.fine ? reinterpret_cast<FineBlock*>(quant) : nullptr,
         .plain = j.want_plain ? p.plain.data() + tile * j.plain_tile_bytes() : nullptr});
  }

  // Prepares x for all threads, or marks it for preparation by each thread.
  void Begin(const Job& j, ThreadPool& pool) {
    std::fill(ready.begin(), ready.end(), Flag{});
    if (j.tokens() <= kRedundantTokens) return;
    ReserveTiles(shared, j);
    pool.For(j.tiles(), [&](int64_t tile, int) { PrepareTile(shared, j, tile); });
  }

  const Prepared& Of(const Job& j, int rank) {
    if (j.tokens() > kRedundantTokens) return shared;
    const auto r = static_cast<size_t>(rank);
    if (!ready[r].set) {
      ReserveTiles(own[r], j);
      for (int64_t tile = 0; tile < j.tiles(); ++tile) PrepareTile(own[r], j, tile);
      ready[r].set = true;
    }
    return own[r];
  }

  // A unit is one panel, or half of one in narrow matrices, which have few. Token blocks are the
  // outermost loop, so that a thread's next unit uses the same tokens.
  static int64_t UnitGroups(const PackedMatrix& w) {
    constexpr int64_t kNarrowGroups = 64;
    return w.groups < kNarrowGroups ? kPanelGroups / 2 : kPanelGroups;
  }
  void AddUnits(const PackedMatrix& w, int out, int64_t token, int64_t tokens) {
    const int64_t size = UnitGroups(w);
    for (int64_t g = 0; g < w.groups; g += size) {
      units.push_back({&w, out, g, static_cast<int>(std::min(size, w.groups - g)), token, tokens});
    }
  }

  // What a thread reads after a unit: the next unit's weights, or, at the end of its share, the
  // weights at the start of its share of the next product.
  const std::byte* After(int64_t unit, int rank, const ThreadPool& pool,
                         std::span<const Matrix* const> then) const {
    const auto count = static_cast<int64_t>(units.size());
    if (unit + 1 != pool.ShareBegin(count, rank + 1)) {
      if (unit + 1 >= count) return nullptr;
      const Unit& u = units[static_cast<size_t>(unit + 1)];
      return u.w->group(u.group);
    }
    const auto units_of = [](const PackedMatrix& w) {
      return (w.groups + UnitGroups(w) - 1) / UnitGroups(w);
    };
    int64_t total = 0;
    for (const Matrix* m : then) total += units_of(Packed(m));
    int64_t first = pool.ShareBegin(total, rank);
    for (const Matrix* m : then) {
      const PackedMatrix& w = Packed(m);
      if (first < units_of(w)) return w.group(first * UnitGroups(w));
      first -= units_of(w);
    }
    return nullptr;
  }

  void Multiply(const PackedMatrix& w, const Job& j, const Prepared& p, const Unit& u,
                const std::byte* next, int rank, float* out) const {
    const bool quant = j.UsesQuant(w);
    const int64_t tile_bytes = quant ? j.quant_tile_bytes() : j.plain_tile_bytes();
    const int64_t tile = u.token / j.kernels->tile_tokens;
    j.kernels->multiply({.w = &w,
                         .group = u.group,
                         .groups = u.groups,
                         .next = next,
                         .x = (quant ? p.quant : p.plain).data() + tile * tile_bytes,
                         .fine = quant && j.fine,
                         .tile_bytes = tile_bytes,
                         .tokens = u.tokens,
                         .out = out,
                         .scratch = scratch[static_cast<size_t>(rank)].data()});
  }
};

Result<std::unique_ptr<Matrix>> CpuOps::Pack(const RawMatrix& raw) {
  BATON_ASSIGN(auto packed, PackMatrix(raw, weights_, threads_));
  std::unique_ptr<Matrix> m = std::move(packed);
  return m;
}

void CpuOps::DoLinear(const LinearParams& p) {
  if (!linear_) linear_ = std::make_shared<LinearState>(isa_, threads_.threads());
  LinearState& s = *linear_;
  Job job{.kernels = p.fine ? &s.decode : &s.prompt,
          .x = p.x,
          .norm_weight = p.norm_weight,
          .norm_eps = p.norm_eps,
          .fine = p.fine};
  for (const auto& o : p.outs) {
    const PackedMatrix& w = Packed(o.w);
    BATON_CHECK_EQ(w.cols, p.x.dim(1));
    job.Want(w);
  }
  if (job.tokens() == 0 || p.outs.empty()) return;
  s.Begin(job, threads_);

  s.units.clear();
  const int64_t block = job.kernels->token_block;
  for (int64_t t = 0; t < job.tokens(); t += block) {
    const int64_t tokens = std::min(block, job.tokens() - t);
    for (size_t i = 0; i < p.outs.size(); ++i) {
      s.AddUnits(Packed(p.outs[i].w), static_cast<int>(i), t, tokens);
    }
  }
  threads_.For(static_cast<int64_t>(s.units.size()), [&](int64_t index, int rank) {
    const Unit& u = s.units[static_cast<size_t>(index)];
    const LinearParams::Out& o = p.outs[static_cast<size_t>(u.out)];
    float* acc = s.Acc(rank);
    s.Multiply(*u.w, job, s.Of(job, rank), u, s.After(index, rank, threads_, p.then), rank, acc);
    const int64_t first = u.group * kGroupRows;
    job.kernels->finish_linear(
        {.acc = acc,
         .tokens = u.tokens,
         .rows = static_cast<int>(std::min<int64_t>(u.groups * kGroupRows, u.w->rows - first)),
         .bias = o.bias ? o.bias + first : nullptr,
         .accumulate = p.accumulate,
         .y = o.y.row(u.token) + first,
         .y_stride = o.y.stride(0)});
  });
}

void CpuOps::DoGlu(const GluParams& p) {
  if (!linear_) linear_ = std::make_shared<LinearState>(isa_, threads_.threads());
  LinearState& s = *linear_;
  const PackedMatrix& gate = Packed(p.gate);
  const PackedMatrix& up = Packed(p.up);
  BATON_CHECK_EQ(gate.cols, p.x.dim(1));
  BATON_CHECK_EQ(up.cols, p.x.dim(1));
  BATON_CHECK_EQ(gate.rows, up.rows);
  Job job{.kernels = p.fine ? &s.decode : &s.prompt,
          .x = p.x,
          .norm_weight = p.norm_weight,
          .norm_eps = p.norm_eps,
          .fine = p.fine};
  job.Want(gate);
  job.Want(up);
  if (job.tokens() == 0) return;
  s.Begin(job, threads_);

  s.units.clear();
  const int64_t block = job.kernels->token_block;
  for (int64_t t = 0; t < job.tokens(); t += block) {
    s.AddUnits(gate, 0, t, std::min(block, job.tokens() - t));
  }
  threads_.For(static_cast<int64_t>(s.units.size()), [&](int64_t index, int rank) {
    const Unit& u = s.units[static_cast<size_t>(index)];
    const Prepared& x = s.Of(job, rank);
    float* acc = s.Acc(rank);
    float* acc_up = acc + block * kPanelRows;
    s.Multiply(gate, job, x, u, up.group(u.group), rank, acc);
    s.Multiply(up, job, x, u, s.After(index, rank, threads_, p.then), rank, acc_up);
    const int64_t first = u.group * kGroupRows;
    job.kernels->finish_glu(
        {.acc = acc,
         .up = acc_up,
         .tokens = u.tokens,
         .rows = static_cast<int>(std::min<int64_t>(u.groups * kGroupRows, gate.rows - first)),
         .activation = p.activation,
         .y = p.y.row(u.token) + first,
         .y_stride = p.y.stride(0)});
  });
}

}  // namespace baton::cpu
