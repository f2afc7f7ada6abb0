// Passes of the CUDA backend: what is recorded runs once, in order, on the tables of its own pass,
// whether launched one by one or replayed as a graph.
#include "kernels/cuda/recorder.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "base/buffer.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/scratch.h"

namespace baton::cuda {
namespace {

constexpr int64_t kValues = 1000;

__global__ void ScaleAndAdd(float* x, const float* table, int64_t n, float factor) {
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (i < n) x[i] = x[i] * factor + table[i];
}

class RecorderTest : public testing::Test {
 protected:
  void SetUp() override {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
      cudaGetLastError();
      GTEST_SKIP() << "this machine has no GPU";
    }
    BATON_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }
  void TearDown() override {
    if (stream_) cudaStreamDestroy(stream_);
  }
  cudaStream_t stream_ = nullptr;
};

std::vector<float> Ramp(float first) {
  std::vector<float> v(kValues);
  std::iota(v.begin(), v.end(), first);
  return v;
}

void Launch(Recorder& recorder, float* x, const std::vector<float>& table, float factor) {
  Recorder::Operation operation(recorder);
  recorder.Launch(ScaleAndAdd, dim3(4), dim3(256), 0, x,
                  recorder.Table(std::span<const float>(table)), kValues, factor);
}

// What `count` launches do to x.
void Apply(std::vector<float>& x, int count, float first) {
  for (int l = 0; l < count; ++l) {
    const std::vector<float> table = Ramp(first + static_cast<float>(l));
    for (size_t i = 0; i < x.size(); ++i) x[i] = x[i] * 0.5f + table[i];
  }
}

TEST_F(RecorderTest, ReplayedPassesReadTheirOwnTables) {
  for (const bool graphs : {false, true}) {
    Recorder recorder(stream_, {.graphs = graphs});
    CudaDevice device(recorder);
    Array<float> x(device);
    x.Reserve(kValues);
    std::vector<float> want(kValues), got(kValues);
    constexpr int kPasses = 7, kLaunches = 12;
    for (int pass = 0; pass < kPasses; ++pass) {
      const auto first = static_cast<float>(100 * pass);
      recorder.BeginPass();
      for (int l = 0; l < kLaunches; ++l)
        Launch(recorder, x.data(), Ramp(first + static_cast<float>(l)), 0.5f);
      recorder.EndPass();
      Apply(want, kLaunches, first);
      if (pass % 3 != 2) continue;  // several passes in flight between downloads
      x.Download(got);
      EXPECT_EQ(got, want) << "pass " << pass;
    }
    x.Download(got);
    EXPECT_EQ(got, want);
    const Recorder::Counts& c = recorder.counts();
    EXPECT_EQ(c.passes, kPasses);
    EXPECT_EQ(c.captures, graphs ? 1 : 0);
    EXPECT_EQ(c.replays, graphs ? kPasses - 1 : 0);
    EXPECT_EQ(c.launches, graphs ? kLaunches : kPasses * kLaunches);
  }
}

TEST_F(RecorderTest, APassThatDiffersIsNotReplayed) {
  Recorder recorder(stream_, {});
  CudaDevice device(recorder);
  Array<float> x(device);
  x.Reserve(kValues);
  std::vector<float> want(kValues), got(kValues);
  for (int pass = 0; pass < 6; ++pass) {
    const int launches = 10 + pass % 2;
    recorder.BeginPass();
    for (int l = 0; l < launches; ++l)
      Launch(recorder, x.data(), Ramp(static_cast<float>(l)), 0.5f);
    recorder.EndPass();
    Apply(want, launches, 0);
  }
  x.Download(got);
  EXPECT_EQ(got, want);
  EXPECT_EQ(recorder.counts().captures, 2);
  EXPECT_EQ(recorder.counts().replays, 4);
}

TEST_F(RecorderTest, LongPassesStartBeforeTheyEnd) {
  Recorder recorder(stream_, {});
  CudaDevice device(recorder);
  Array<float> x(device);
  x.Reserve(kValues);
  std::vector<float> want(kValues), got(kValues);
  constexpr int kPasses = 4, kLaunches = 300;
  for (int pass = 0; pass < kPasses; ++pass) {
    const auto first = static_cast<float>(10 * pass);
    recorder.BeginPass();
    for (int l = 0; l < kLaunches; ++l)
      Launch(recorder, x.data(), Ramp(first + static_cast<float>(l)), 0.5f);
    recorder.EndPass();
    Apply(want, kLaunches, first);
  }
  x.Download(got);
  EXPECT_EQ(got, want);
  EXPECT_GT(recorder.counts().captures, 1) << "pieces of a pass";
  // The first pass, whose tables still grow, is cut elsewhere than those that follow.
  EXPECT_GE(recorder.counts().replays, (kPasses - 2) * recorder.counts().captures);
  EXPECT_LE(recorder.counts().replays, (kPasses - 1) * recorder.counts().captures);
}

TEST_F(RecorderTest, TablesOutgrowTheirMemory) {
  Recorder recorder(stream_, {});
  CudaDevice device(recorder);
  Array<float> x(device);
  x.Reserve(kValues);
  std::vector<float> want(kValues), got(kValues);
  const std::vector<float> filler(1 << 20);  // with those below more than the first table memory
  for (int pass = 0; pass < 5; ++pass) {
    recorder.BeginPass();
    for (int l = 0; l < 10; ++l) {
      Launch(recorder, x.data(), Ramp(static_cast<float>(l)), 0.5f);
      Recorder::Operation operation(recorder);
      if (l % 3 == 0) recorder.Table(std::span<const float>(filler));
    }
    recorder.EndPass();
    Apply(want, 10, 0);
  }
  x.Download(got);
  EXPECT_EQ(got, want);
  EXPECT_GT(recorder.counts().replays, 0) << "addresses settle";
}

TEST_F(RecorderTest, CopiesKeepTheirPlaceAmongOperations) {
  Recorder recorder(stream_, {});
  CudaDevice device(recorder);
  Array<float> x(device), y(device);
  x.Reserve(kValues), y.Reserve(kValues);
  std::vector<float> got(kValues);
  for (int pass = 0; pass < 4; ++pass) {
    std::vector<float> values = Ramp(static_cast<float>(pass));
    recorder.BeginPass();
    x.Upload(values);
    std::vector<float> want = values;
    values.assign(kValues, -1);  // an upload's source may change
    for (int l = 0; l < 5; ++l) Launch(recorder, x.data(), Ramp(1), 0.5f);
    for (int l = 0; l < 5; ++l) Apply(want, 1, 1);
    device.Copy(reinterpret_cast<std::byte*>(y.data()), reinterpret_cast<std::byte*>(x.data()),
                kValues * 4);
    device.Zero(reinterpret_cast<std::byte*>(x.data()), kValues * 4);
    for (int l = 0; l < 5; ++l) Launch(recorder, x.data(), Ramp(2), 0.5f);
    std::vector<float> zero(kValues);
    for (int l = 0; l < 5; ++l) Apply(zero, 1, 2);
    if (pass % 2 == 1) {  // the pass goes on after a download
      y.Download(got);
      EXPECT_EQ(got, want);
      Launch(recorder, x.data(), Ramp(7), 0.5f);
      Apply(zero, 1, 7);
    }
    recorder.EndPass();
    y.Download(got);
    EXPECT_EQ(got, want);
    x.Download(got);
    EXPECT_EQ(got, zero);
  }
}

TEST_F(RecorderTest, LargeCopiesArriveWhole) {
  Recorder recorder(stream_, {});
  CudaDevice device(recorder);
  constexpr int64_t kMany = (40 << 20) / 4 + 3;
  std::vector<int32_t> values(kMany), got(kMany, -1);
  std::iota(values.begin(), values.end(), 5);
  Array<int32_t> x(device);
  x.Reserve(kMany);
  x.Download(got);
  EXPECT_EQ(got, std::vector<int32_t>(kMany, 0)) << "new memory is zero";
  x.Upload(values);
  x.Download(got);
  EXPECT_EQ(got, values);
}

TEST_F(RecorderTest, MemoryIsFreedAfterItsReaders) {
  Recorder recorder(stream_, {});
  CudaDevice device(recorder);
  Scratch scratch(recorder);
  Array<float> x(device);
  x.Reserve(kValues);
  std::vector<float> want(kValues), got(kValues);
  for (int pass = 0; pass < 4; ++pass) {
    recorder.BeginPass();
    for (int l = 0; l < 10; ++l) {
      Buffer buffer = Buffer::AllocateOrDie(kValues * 4, device);
      const std::vector<float> values = Ramp(static_cast<float>(l));
      device.Upload(buffer.data(), values.data(), kValues * 4);
      float* grown = scratch.Get<float>(Scratch::kInput, kValues * (1 + l + 10 * pass));
      Recorder::Operation operation(recorder);
      recorder.Copy(grown, buffer.data(), kValues * 4);
      recorder.Launch(ScaleAndAdd, dim3(4), dim3(256), 0, x.data(), grown, kValues, 0.5f);
    }
    recorder.EndPass();
    Apply(want, 10, 0);
  }
  x.Download(got);
  EXPECT_EQ(got, want);
}

TEST_F(RecorderTest, MoreMemoryThanThereIsIsAnError) {
  Recorder recorder(stream_, {});
  CudaDevice device(recorder);
  const Result<Buffer> buffer = Buffer::Allocate(int64_t{1} << 50, device);
  ASSERT_FALSE(buffer.ok());
  EXPECT_EQ(buffer.error().code(), Error::Code::kResource);
  EXPECT_NE(buffer.error().message().find("GPU memory"), std::string::npos);
}

}  // namespace
}  // namespace baton::cuda
