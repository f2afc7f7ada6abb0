#include "model/run/weights.h"

#include "formats/dequantize.h"

namespace baton {
namespace {

std::vector<float> Expand(const TensorInfo& t, float add) {
  std::vector<float> values(static_cast<size_t>(t.elements()));
  Dequantize(t.dtype, t.data, 0, t.elements(), values.data());
  for (float& v : values) v += add;
  return values;
}

RawMatrix Raw(const TensorInfo& t) { return {t.dtype, t.data, t.shape[0], t.shape[1]}; }

bool IsNorm(TensorRole role) {
  switch (role) {
    case TensorRole::kOutputNorm:
    case TensorRole::kAttnNorm:
    case TensorRole::kQNorm:
    case TensorRole::kKNorm:
    case TensorRole::kPostAttnNorm:
    case TensorRole::kFfnNorm:
    case TensorRole::kPostFfnNorm:
      return true;
    default:
      return false;
  }
}

class Loader {
 public:
  Loader(const Checkpoint& checkpoint, Ops& ops) : checkpoint_(checkpoint), ops_(ops) {}

  Result<Weights> Run() {
    // The largest first: while one is packed, its original counts beside all copies made so far.
    BATON_TRY(Pack(TensorRole::kOutput, checkpoint_.model, &out_.model));
    BATON_TRY(LoadSet(checkpoint_.model, &out_.model));
    for (const TensorSet& tensors : checkpoint_.layers)
      BATON_TRY(LoadSet(tensors, &out_.layers.emplace_back()));
    if (const TensorInfo* smear = checkpoint_.model[TensorRole::kSmear])
      out_.smear = Expand(*smear, 0);
    out_.embedding = Raw(*checkpoint_.model[TensorRole::kEmbedding]);
    return std::move(out_);
  }

 private:
  Status LoadSet(const TensorSet& tensors, WeightSet* to) {
    for (size_t i = 0; i < kTensorRoles; ++i) {
      const auto role = static_cast<TensorRole>(i);
      const TensorInfo* t = tensors[role];
      // The embedding is looked up in the file, and its smear beside it; rope divisors are part of
      // the config.
      if (t == nullptr || to->matrix(role) != nullptr || role == TensorRole::kEmbedding ||
          role == TensorRole::kSmear || role == TensorRole::kOutput ||
          role == TensorRole::kRopeDivisors)
        continue;
      if (t->shape.size() > 1) {
        BATON_TRY(Pack(role, tensors, to));
      } else {
        const bool plus_one = checkpoint_.config.norm_plus_one && IsNorm(role);
        to->vectors[static_cast<size_t>(role)] =
            UploadArray<float>(Expand(*t, plus_one ? 1.0f : 0.0f), ops_.device());
      }
    }
    return Status::Ok();
  }

  Status Pack(TensorRole role, const TensorSet& tensors, WeightSet* to) {
    std::unique_ptr<Matrix>& matrix = to->matrices[static_cast<size_t>(role)];
    BATON_ASSIGN(matrix, ops_.Pack(Raw(*tensors[role])));
    if (checkpoint_.storage)
      checkpoint_.Release(*tensors[role]);  // the copy is what is read from now on
    out_.bytes_per_token += matrix->bytes;
    return Status::Ok();
  }

  const Checkpoint& checkpoint_;
  Ops& ops_;
  Weights out_;
};

}  // namespace

Result<Weights> Weights::Load(const Checkpoint& checkpoint, Ops& ops) {
  return Loader(checkpoint, ops).Run();
}

}  // namespace baton
