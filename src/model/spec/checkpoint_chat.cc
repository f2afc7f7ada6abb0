#include "model/spec/checkpoint.h"
#include "model/spec/checkpoint_storage.h"

namespace baton {

Result<ChatSource> Checkpoint::LoadChatSource() const {
  return storage->folder ? ChatSourceOfFolder(path) : ChatSourceOfGguf(storage->metadata);
}

}  // namespace baton
