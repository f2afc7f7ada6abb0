#include <cublasLt.h>

#include <map>
#include <string>
#include <tuple>

#include "kernels/cuda/library_gemm.h"
#include "kernels/cuda/open_library.h"

namespace baton::cuda {
namespace {

constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;
// The number of tokens for which a matrix's kernel is chosen.
constexpr uint64_t kTypicalTokens = 512;

void CheckLibrary(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  fmt::print(stderr, "cuda: cublasLt: {}: status {}\n", what, static_cast<int>(status));
  std::abort();
}

// The functions of the library that are used.
struct Functions {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtDestroy) destroy;
  decltype(&cublasLtMatmul) matmul;
  decltype(&cublasLtMatmulDescCreate) new_product;
  decltype(&cublasLtMatmulDescSetAttribute) set_product;
  decltype(&cublasLtMatrixLayoutCreate) new_layout;
  decltype(&cublasLtMatrixLayoutDestroy) delete_layout;
  decltype(&cublasLtMatmulPreferenceCreate) new_preference;
  decltype(&cublasLtMatmulPreferenceDestroy) delete_preference;
  decltype(&cublasLtMatmulPreferenceSetAttribute) set_preference;
  decltype(&cublasLtMatmulAlgoGetHeuristic) choose;

  bool Find(void* library) {
    const auto find = [&](auto& function, const char* name) {
      return FindFunction(library, name, function);
    };
    return find(create, "cublasLtCreate") && find(destroy, "cublasLtDestroy") &&
           find(matmul, "cublasLtMatmul") && find(new_product, "cublasLtMatmulDescCreate") &&
           find(set_product, "cublasLtMatmulDescSetAttribute") &&
           find(new_layout, "cublasLtMatrixLayoutCreate") &&
           find(delete_layout, "cublasLtMatrixLayoutDestroy") &&
           find(new_preference, "cublasLtMatmulPreferenceCreate") &&
           find(delete_preference, "cublasLtMatmulPreferenceDestroy") &&
           find(set_preference, "cublasLtMatmulPreferenceSetAttribute") &&
           find(choose, "cublasLtMatmulAlgoGetHeuristic");
  }
};

}  // namespace

struct LibraryGemm::State {
  Functions f = {};
  cublasLtHandle_t handle = nullptr;
  cublasLtMatmulDesc_t product = nullptr;
  std::map<std::pair<int64_t, int64_t>, cublasLtMatmulAlgo_t> kernels;  // by (out, in)
  std::map<std::pair<int64_t, int64_t>, cublasLtMatrixLayout_t> bf16_layouts, float_layouts;

  // Column-major [rows, cols]; made once.
  cublasLtMatrixLayout_t Layout(cudaDataType_t type, int64_t rows, int64_t cols) {
    auto& layout = (type == CUDA_R_16BF ? bf16_layouts : float_layouts)[{rows, cols}];
    if (layout == nullptr) {
      CheckLibrary(f.new_layout(&layout, type, static_cast<uint64_t>(rows),
                                static_cast<uint64_t>(cols), rows),
                   "layout");
    }
    return layout;
  }

  const cublasLtMatmulAlgo_t& Kernel(int64_t out, int64_t in) {
    const auto [at, is_new] = kernels.try_emplace({out, in});
    if (!is_new) return at->second;
    cublasLtMatmulPreference_t preference;
    CheckLibrary(f.new_preference(&preference), "preference");
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t name, const auto& value) {
      CheckLibrary(f.set_preference(preference, name, &value, sizeof(value)), "preference");
    };
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(kWorkspaceBytes));
    set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t{CUBLASLT_REDUCTION_SCHEME_NONE});
    for (const auto name :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
      set(name, uint32_t{16});
    }
    cublasLtMatmulHeuristicResult_t result = {};
    int found = 0;
    const auto y = Layout(CUDA_R_32F, out, kTypicalTokens);
    CheckLibrary(
        f.choose(handle, product, Layout(CUDA_R_16BF, in, out),
                 Layout(CUDA_R_16BF, in, kTypicalTokens), y, y, preference, 1, &result, &found),
        "heuristic");
    BATON_CHECK_EQ(found, 1);
    CheckLibrary(f.delete_preference(preference), "preference");
    return at->second = result.algo;
  }
};

LibraryGemm::LibraryGemm(std::unique_ptr<State> state) : state_(std::move(state)) {}

// The library stays loaded until the process ends: closing it at exit is not safe.
LibraryGemm::~LibraryGemm() {
  for (const auto* layouts : {&state_->bf16_layouts, &state_->float_layouts})
    for (const auto& [shape, layout] : *layouts) state_->f.delete_layout(layout);
  state_->f.destroy(state_->handle);
}

std::unique_ptr<LibraryGemm> LibraryGemm::Load() {
  auto state = std::make_unique<State>();
  void* library = OpenLibrary("libcublasLt.so." + std::to_string(CUDART_VERSION / 1000));
  if (library == nullptr || !state->f.Find(library)) return nullptr;
  const Functions& f = state->f;
  if (f.create(&state->handle) != CUBLAS_STATUS_SUCCESS) return nullptr;
  // Row-major y = x w^T is column-major y^T = w x^T, w being stored as its transpose.
  CheckLibrary(f.new_product(&state->product, CUBLAS_COMPUTE_32F, CUDA_R_32F), "product");
  const cublasOperation_t transposed = CUBLAS_OP_T;
  CheckLibrary(
      f.set_product(state->product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)),
      "product");
  return std::unique_ptr<LibraryGemm>(new LibraryGemm(std::move(state)));
}

void LibraryGemm::Multiply(Recorder& recorder, Scratch& scratch, const Params& p) {
  State& s = *state_;
  const cublasLtMatmulAlgo_t kernel = s.Kernel(p.out, p.in);
  const auto w = s.Layout(CUDA_R_16BF, p.in, p.out);
  const auto x = s.Layout(CUDA_R_16BF, p.in, p.tokens);
  const auto y = s.Layout(CUDA_R_32F, p.out, p.tokens);
  std::byte* workspace = scratch.Get<std::byte>(Scratch::kWorkspace, kWorkspaceBytes);
  std::vector<std::byte> key;
  const auto append = [&](auto value) {
    const auto* bytes = reinterpret_cast<const std::byte*>(&value);
    key.insert(key.end(), bytes, bytes + sizeof(value));
  };
  append(p.x), append(p.w), append(p.y), append(p.tokens), append(p.out), append(p.in);
  append(int64_t{p.accumulate}), append(workspace);
  recorder.Add(key, [=, &s](cudaStream_t stream) {
    const float alpha = 1, beta = p.accumulate ? 1.0f : 0.0f;
    CheckLibrary(s.f.matmul(s.handle, s.product, &alpha, p.w, w, p.x, x, &beta, p.y, y, p.y, y,
                            &kernel, workspace, kWorkspaceBytes, stream),
                 "product");
  });
}

}  // namespace baton::cuda
