// Prefix tree blocks on disk: files of a folder, found again after a restart, written by a thread
// of its own so that no step waits, the least recently used one deleted when they are too many.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kv/prefix_file.h"
#include "kv/prefix_tree.h"

namespace baton {

class PrefixDisk {
 public:
  // Reads the headers of the folder's files, which is made if it does not exist. Files that are
  // damaged are deleted and counted. Errors: a folder that cannot be made, read or written.
  static Result<std::unique_ptr<PrefixDisk>> Open(const std::string& folder, int64_t most_bytes);
  ~PrefixDisk();  // after what Save was given is written; no path may be left in Written()

  // Blocks of a path to write: pages[i] are those of header.blocks[i], in the order of its caches.
  // `path` pins them; it comes back through Written. The checksums are still to be made. False, and
  // nothing is written, when the disk is behind by too much.
  using Page = std::array<std::span<std::byte>, 2>;  // KvStore::PageBytes
  struct Job {
    PrefixFileHeader header;
    std::vector<std::vector<Page>> pages;
    std::vector<std::string> hashes;  // PrefixHash at the end of each block
    PrefixPath path;
  };
  bool Save(Job job);
  // Paths of jobs that are done, for the thread that owns the tree. `wait`: of all jobs.
  std::vector<PrefixPath> Written(bool wait);

  // Whether the block whose path has this hash has a page of this cache.
  bool Has(const std::string& hash, int cache) const;
  bool Has(const std::string& hash) const;
  // Reads pages of the block into those that are wanted ([caches], empty spans: not this one), and
  // marks them in `read`; what the others hold then is undefined. A file that is damaged or gone is
  // forgotten and counted.
  void Read(const std::string& hash, std::span<const int32_t> tokens,
            const std::vector<Page>& wanted, std::vector<bool>* read);

  struct Counts {
    int64_t bytes = 0, most_bytes = 0, files = 0;
    int64_t written_bytes = 0, read_bytes = 0, damaged = 0, skipped = 0;
  };
  Counts counts() const;

 private:
  struct File {
    std::string path;
    PrefixFileHeader header;
    std::vector<std::string> hashes;
    std::vector<int64_t> offsets;  // of the blocks' payloads
    int64_t bytes = 0;
    int64_t used = 0;  // nanoseconds, as the file's time of modification
  };
  using Place = std::pair<std::shared_ptr<File>, size_t>;  // a file's block

  PrefixDisk(std::string folder, int64_t most_bytes);
  Status ReadFolder();
  void WriteJobs();
  Status Write(Job& job);
  // With the mutex held:
  void Add(std::shared_ptr<File> file);
  void Forget(const std::shared_ptr<File>& file);
  void Shrink();

  const std::string folder_;
  mutable std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::unordered_map<std::string, std::vector<Place>> places_;  // by hash
  std::vector<std::shared_ptr<File>> files_;
  std::deque<Job> jobs_;
  bool writing_ = false, stop_ = false;
  std::vector<PrefixPath> written_;
  int64_t last_name_ = 0;
  Counts counts_;
  std::thread thread_;  // last
};

}  // namespace baton
