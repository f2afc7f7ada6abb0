// Libraries that are opened at run time, so that the program starts without them.
#pragma once

#include <dlfcn.h>

#include <string>
#include <type_traits>

namespace baton::cuda {

// Null where there is no such library. It stays loaded until the process ends: closing a library of
// CUDA's at exit is not safe.
inline void* OpenLibrary(const std::string& name) {
  for (const std::string& path : {name, "/usr/local/cuda/lib64/" + name}) {
    if (void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
  }
  return nullptr;
}

// Whether the library has the function.
template <typename F>
bool FindFunction(void* library, const char* name, F& function) {
  function = reinterpret_cast<F>(dlsym(library, name));
  return function != nullptr;
}

}  // namespace baton::cuda
