// Three ways to the same result. On a GPU, causal attention is one flash kernel, and a window is
// chunks of rows against the sink, the chunk before and their own. All else goes by tiles of rows
// with an additive mask, made anew in the backward pass, so that nothing of n x n is ever stored.
//
// A sink needs no kernel of its own: the backward pass of softmax attention only sees o and lse, so
// it is right when both include the sink; d sink = -sum p_sink (o . do).
#include "train/attend.h"

#include <array>
#include <limits>

#include "base/check.h"

namespace baton::train {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

constexpr int64_t kTileRows = 512;
constexpr double kNever = -std::numeric_limits<double>::infinity();

#if BATON_TORCH_FUSED
// Fused kernels take 16-bit types, and masks whose rows begin at multiples of 16 bytes.
bool Fused(const Tensor& q, const Tensor& bias) {
  const bool small = q.scalar_type() == torch::kBFloat16 || q.scalar_type() == torch::kFloat16;
  return q.is_cuda() && small && q.size(3) % 8 == 0 && q.size(2) % 32 == 0 &&
         (!bias.defined() || bias.size(3) % 8 == 0);
}
#endif

// For q's heads, which share its storage.
Tensor Spread(const Tensor& bias, const Tensor& q) {
  return bias.expand({q.size(0), q.size(1), bias.size(2), bias.size(3)});
}

// Of one tile, bias [B or 1, 1, rows, keys], 0 or -inf; k and v have q's heads. sink: [B or 1, H],
// or empty.
struct Tile {
  Tensor o, lse;
};

Tensor Logits(const Tensor& q, const Tensor& k, const Tensor& bias, double scale) {
  return torch::matmul(q, k.transpose(2, 3)).to(SumType(q)) * scale + Spread(bias, q);
}

Tile TileForward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& bias,
                 const Tensor& sink, double scale) {
  Tensor s;
  if (sink.numel() > 0) s = sink.to(SumType(q)).unsqueeze(2);
#if BATON_TORCH_FUSED
  if (Fused(q, bias)) {
    auto [o, lse, seed, offset] = at::_scaled_dot_product_efficient_attention(
        q, k, v, Spread(bias, q), /*compute_log_sumexp=*/true, 0.0, false, scale);
    if (!s.defined()) return {o, lse};
    const Tensor share = torch::sigmoid(lse - s).unsqueeze(3).to(o.scalar_type());
    return {o * share, torch::logaddexp(lse, s)};
  }
#endif
  const Tensor z = Logits(q, k, bias, scale);
  Tensor lse = torch::logsumexp(z, 3);
  if (s.defined()) lse = torch::logaddexp(lse, s);
  return {torch::matmul((z - lse.unsqueeze(3)).exp().to(v.scalar_type()), v), lse};
}

struct Gradients {
  Tensor q, k, v;
};

Gradients TileBackward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& bias,
                       const Tile& out, const Tensor& grad, double scale) {
#if BATON_TORCH_FUSED
  if (Fused(q, bias)) {
    const Tensor unused = torch::zeros({}, q.options().dtype(torch::kInt64));  // of dropout
    // The kernel takes every stride of o but that of rows, which it expects after heads.
    const Tensor o = out.o.transpose(1, 2).contiguous().transpose(1, 2);
    auto [dq, dk, dv, dbias] = at::_scaled_dot_product_efficient_attention_backward(
        grad, q, k, v, Spread(bias, q), o, out.lse, unused, unused, 0.0,
        std::array<bool, 4>{true, true, true, false}, false, scale);
    return {dq, dk, dv};
  }
#endif
  const auto sum = SumType(q);
  const Tensor p = (Logits(q, k, bias, scale) - out.lse.unsqueeze(3)).exp();
  const Tensor g = grad.to(sum);
  const Tensor delta = (g * out.o.to(sum)).sum(3, /*keepdim=*/true);
  const Tensor dp = torch::matmul(grad, v.transpose(2, 3)).to(sum);
  const Tensor dz = (p * (dp - delta) * scale).to(q.scalar_type());
  return {torch::matmul(dz, k), torch::matmul(dz.transpose(2, 3), q),
          torch::matmul(p.to(v.scalar_type()).transpose(2, 3), grad)};
}

// o, lse, grad: all rows.
Tensor SinkGradient(const Tensor& sink, const Tile& out, const Tensor& grad) {
  if (sink.numel() == 0) return Tensor();
  const auto sum = SumType(out.o);
  const Tensor p = (sink.to(sum).unsqueeze(2) - out.lse).exp();
  const Tensor all = -(p * (out.o.to(sum) * grad.to(sum)).sum(3)).sum(2);
  return (sink.size(0) == 1 ? all.sum(0, /*keepdim=*/true) : all).to(sink.scalar_type());
}

// The bias is given and kept: that of a chunk.
class MaskedAttention : public Function<MaskedAttention> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& q, const Tensor& k, const Tensor& v,
                        const Tensor& sink, const Tensor& bias, double scale) {
    const Tile out = TileForward(q, k, v, bias, sink, scale);
    context->save_for_backward({q, k, v, sink, bias, out.o, out.lse});
    context->saved_data["scale"] = scale;
    return out.o;
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const variable_list s = context->get_saved_variables();
    const Tile out{s[5], s[6]};
    const Tensor grad = grads[0].contiguous();
    const Gradients d =
        TileBackward(s[0], s[1], s[2], s[4], out, grad, context->saved_data["scale"].toDouble());
    return {d.q, d.k, d.v, SinkGradient(s[3], out, grad), Tensor(), Tensor()};
  }
};

// Tiles of rows, each against the keys up to its end.
class RowTiles : public Function<RowTiles> {
 public:
  static variable_list forward(AutogradContext* context, const Tensor& q, const Tensor& k,
                               const Tensor& v, const Tensor& sink,
                               const c10::intrusive_ptr<Visible>& visible, double scale) {
    std::vector<Tensor> o, lse;
    for (int64_t first = 0; first < q.size(2); first += kTileRows) {
      const int64_t end = std::min(first + kTileRows, q.size(2));
      const Tile tile = TileForward(q.narrow(2, first, end - first), k.narrow(2, 0, end),
                                    v.narrow(2, 0, end), visible->Bias(first, end, q), sink, scale);
      o.push_back(tile.o);
      lse.push_back(tile.lse);
    }
    const Tile out{torch::cat(o, 2), torch::cat(lse, 2)};
    context->save_for_backward({q, k, v, sink, out.o, out.lse});
    context->saved_data["visible"] = c10::IValue::make_capsule(visible);
    context->saved_data["scale"] = scale;
    context->mark_non_differentiable({out.lse});
    return {out.o, out.lse};
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const variable_list s = context->get_saved_variables();
    const auto visible =
        c10::static_intrusive_pointer_cast<Visible>(context->saved_data["visible"].toCapsule());
    const double scale = context->saved_data["scale"].toDouble();
    const Tensor &q = s[0], &k = s[1], &v = s[2];
    const Tensor grad = grads[0].contiguous();
    std::vector<Tensor> dq;
    Tensor dk = torch::zeros(k.sizes(), k.options().dtype(SumType(k))), dv = torch::zeros_like(dk);
    for (int64_t first = 0; first < q.size(2); first += kTileRows) {
      const int64_t end = std::min(first + kTileRows, q.size(2)), rows = end - first;
      const auto of = [&](const Tensor& t) { return t.narrow(2, first, rows); };
      const Gradients d = TileBackward(of(q), k.narrow(2, 0, end), v.narrow(2, 0, end),
                                       visible->Bias(first, end, q),
                                       {of(s[4]), of(s[5]).contiguous()}, of(grad), scale);
      dq.push_back(d.q);
      dk.narrow(2, 0, end).add_(d.k);
      dv.narrow(2, 0, end).add_(d.v);
    }
    return {torch::cat(dq, 2),
            dk.to(k.scalar_type()),
            dv.to(v.scalar_type()),
            SinkGradient(s[3], {s[4], s[5]}, grad),
            Tensor(),
            Tensor()};
  }
};

#if BATON_TORCH_FUSED
// Causal attention in one kernel that also gives lse.
class Flash : public Function<Flash> {
 public:
  static variable_list forward(AutogradContext* context, const Tensor& q, const Tensor& k,
                               const Tensor& v, double scale) {
    auto r =
        at::_scaled_dot_product_flash_attention(q, k, v, 0.0, /*is_causal=*/true, false, scale);
    context->save_for_backward(
        {q, k, v, std::get<0>(r), std::get<1>(r), std::get<6>(r), std::get<7>(r)});
    context->saved_data["scale"] = scale;
    context->mark_non_differentiable({std::get<1>(r)});
    return {std::get<0>(r), std::get<1>(r)};
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const variable_list s = context->get_saved_variables();
    auto [dq, dk, dv] = at::_scaled_dot_product_flash_attention_backward(
        grads[0].contiguous(), s[0], s[1], s[2], s[3], s[4], Tensor(), Tensor(), s[0].size(2),
        s[1].size(2), 0.0, /*is_causal=*/true, s[5], s[6], context->saved_data["scale"].toDouble());
    return {dq, dk, dv, Tensor()};
  }
};
#endif

// [B, H, n, D] -> [B * chunks, H, rows, D].
Tensor Chunks(const Tensor& t, int64_t rows) {
  return t.reshape({t.size(0), t.size(1), -1, rows, t.size(3)})
      .transpose(1, 2)
      .reshape({-1, t.size(1), rows, t.size(3)});
}

// Every chunk with the sink and the chunk before it; before the first lie zeros, which the mask
// hides.
Tensor WithBefore(const Tensor& t, int64_t rows, int64_t sink) {
  const Tensor before = torch::constant_pad_nd(t, {0, 0, rows, 0}).narrow(2, 0, t.size(2));
  const int64_t chunks = t.size(2) / rows;
  const Tensor first =
      t.narrow(2, 0, sink)
          .unsqueeze(1)
          .expand({t.size(0), chunks, t.size(1), sink, t.size(3)})
          .reshape({t.size(0) * chunks, t.size(1), sink, t.size(3)});  // no -1: sink may be 0
  return torch::cat({first, Chunks(before, rows), Chunks(t, rows)}, 2);
}

// [B * chunks, 1, rows, sink + 2 rows], 0 or -inf. Keys of the sink count there alone.
Tensor ChunkBias(const Visible& visible, const Tensor& q, int64_t rows) {
  const int64_t chunks = q.size(2) / rows;
  const auto options = torch::TensorOptions(q.device()).dtype(torch::kInt64);
  const Tensor chunk = torch::arange(chunks, options).reshape({-1, 1, 1}) * rows;
  const Tensor row = chunk + torch::arange(rows, options).reshape({1, -1, 1});
  const Tensor key = chunk - rows + torch::arange(2 * rows, options).reshape({1, 1, -1});
  Tensor mask = (key <= row) & (row - key < visible.recent) & (key >= visible.sink);
  if (visible.sink > 0) {
    const Tensor in_sink = torch::arange(visible.sink, options).reshape({1, 1, -1}) <= row;
    mask = torch::cat({in_sink, mask}, 2);
  }
  mask = visible.starts.defined()
             ? mask.unsqueeze(0) & (key >= visible.starts.reshape({q.size(0), chunks, rows, 1}))
             : mask.unsqueeze(0).expand({q.size(0), -1, -1, -1});
  const Tensor bias =
      torch::zeros(mask.sizes(), q.options()).masked_fill_(mask.logical_not(), kNever);
  return bias.reshape({-1, 1, rows, mask.size(3)});
}

// Rows of a chunk for windows of this size; 0: chunks are no gain, or each document has its sink.
int64_t ChunkRows(const Visible& visible, int64_t n) {
  const int64_t rows = (visible.recent + 63) / 64 * 64;
  const bool usable =
      visible.kind == Visible::Kind::kWindow && (visible.sink == 0 || !visible.starts.defined());
  return usable && n % rows == 0 && 2 * rows + visible.sink < n ? rows : 0;
}

Tensor Window(const AttendInput& in, const Tensor& k, const Tensor& v, const Tensor& sink,
              int64_t rows) {
  const int64_t first = in.visible->sink;
  const Tensor o = MaskedAttention::apply(Chunks(in.q, rows), WithBefore(k, rows, first),
                                          WithBefore(v, rows, first), sink,
                                          ChunkBias(*in.visible, in.q, rows), in.scale);
  const int64_t batch = in.q.size(0), heads = in.q.size(1);
  return o.reshape({batch, -1, heads, rows, o.size(3)})
      .transpose(1, 2)
      .reshape({batch, heads, -1, o.size(3)});
}

// KV heads repeated for the query heads that read them.
Tensor Repeated(const Tensor& t, int64_t heads) {
  const int64_t times = heads / t.size(1);
  if (times == 1) return t;
  return t.unsqueeze(2)
      .expand({t.size(0), t.size(1), times, t.size(2), t.size(3)})
      .reshape({t.size(0), heads, t.size(2), t.size(3)});
}

}  // namespace

AttendOutput Attend(const AttendInput& in, bool need_lse) {
  BATON_CHECK_EQ(in.q.size(2), in.k.size(2));
  const Tensor sink = in.sink.defined() ? in.sink.unsqueeze(0) : torch::empty({0}, in.q.options());
  const Visible& visible = *in.visible;
#if BATON_TORCH_FUSED
  const bool causal = visible.kind == Visible::Kind::kAll && !visible.starts.defined();
  if (causal && sink.numel() == 0 && Fused(in.q, Tensor())) {
    const variable_list out = Flash::apply(in.q, in.k, in.v, in.scale);
    return {out[0], out[1]};
  }
#endif
  const Tensor k = Repeated(in.k, in.q.size(1)), v = Repeated(in.v, in.q.size(1));
  const int64_t rows = ChunkRows(visible, in.q.size(2));
  if (rows > 0 && !need_lse) return {Window(in, k, v, sink, rows), Tensor()};
  const int64_t groups = visible.kind == Visible::Kind::kList ? visible.list.size(1) : 1;
  if (groups == 1) {
    const variable_list out = RowTiles::apply(in.q, k, v, sink, in.visible, in.scale);
    return {out[0], out[1]};
  }
  // Heads with a list of their own become sequences.
  const int64_t batch = in.q.size(0), heads = in.q.size(1), n = in.q.size(2);
  const auto split = [&](const Tensor& t) {
    return t.reshape({batch * groups, heads / groups, n, t.size(3)});
  };
  auto of_groups = c10::make_intrusive<Visible>(visible);
  of_groups->list = visible.list.reshape({batch * groups, 1, n, -1});
  if (visible.starts.defined()) of_groups->starts = visible.starts.repeat_interleave(groups, 0);
  const Tensor of_heads = sink.numel() > 0 ? sink.reshape({groups, -1}).repeat({batch, 1}) : sink;
  const variable_list out =
      RowTiles::apply(split(in.q), split(k), split(v), of_heads, of_groups, in.scale);
  return {out[0].reshape(in.q.sizes()), out[1].reshape({batch, heads, n})};
}

Tensor AttendBiased(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& bias,
                    double scale) {
  return MaskedAttention::apply(q, Repeated(k, q.size(1)), Repeated(v, q.size(1)),
                                torch::empty({0}, q.options()), bias, scale);
}

}  // namespace baton::train
